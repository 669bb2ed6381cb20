package diskrep

const (
	// shipBytesMin is what is worth waking the pump for. Less waits for more, or
	// for the cut: waking it for each write of 4 KiB made that write take twice
	// as long, for the answer has to share its processor with the shipping. What
	// is left for the cut is sent in less than a millisecond.
	shipBytesMin = 64 << 10
	// shipBytesMax and shipWritesMax bound what one call of ship gets.
	shipBytesMax  = 4 << 20
	shipWritesMax = 1024
	// writeCostBytes is what a Write in the queue costs besides its data, so
	// that zeros are bounded too.
	writeCostBytes = 64
)

// sourceQueue is a list of writes in the order in which they came. The zero
// value is ready.
type sourceQueue struct {
	head, tail   *sourceChunk // head is the first that has something left to take or room
	added, taken uint64       // writes since the beginning
}

// sourceChunk is a part of a queue. What was taken from it is not touched
// again, so that who took it owns it, without copying.
type sourceChunk struct {
	ws           [shipWritesMax]Write
	added, taken int
	next         *sourceChunk
}

// costOf is what ws count for a queue's bound, in bytes.
func costOf(ws []Write) int64 {
	cost := int64(0)
	for i := range ws {
		cost += writeCostBytes + int64(len(ws[i].Data))
	}
	return cost
}

func (q *sourceQueue) add(ws []Write) {
	for len(ws) > 0 {
		if q.tail == nil || q.tail.added == shipWritesMax {
			c := new(sourceChunk)
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		n := copy(q.tail.ws[q.tail.added:], ws)
		q.tail.added += n
		q.added += uint64(n)
		ws = ws[n:]
	}
}

// take returns the oldest writes, none that came after the first until, and not
// more than ship gets at one time.
func (q *sourceQueue) take(until uint64) []Write {
	c := q.head
	if c == nil || q.taken >= until {
		return nil
	}
	first := c.taken
	bytes := 0
	for c.taken < c.added && q.taken < until {
		bytes += len(c.ws[c.taken].Data)
		if bytes > shipBytesMax {
			break
		}
		c.taken++
		q.taken++
	}
	if c.taken == shipWritesMax {
		if q.head = c.next; q.head == nil {
			q.tail = nil
		}
	}
	return c.ws[first:c.taken:c.taken]
}

// freeAll frees what was not taken.
func (q *sourceQueue) freeAll() {
	for c := q.head; c != nil; c = c.next {
		for ; c.taken < c.added; c.taken++ {
			c.ws[c.taken].Free()
		}
	}
	*q = sourceQueue{}
}
