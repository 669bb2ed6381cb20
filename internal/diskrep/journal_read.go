package diskrep

import (
	"errors"
	"fmt"
	"io"
)

// span is a whole epoch in a journal: records from to to-1, counted from the
// first of the first segment.
type span struct {
	epoch    uint64
	from, to uint64
	writes   uint64
}

// census learns from the records of a journal, one after the other, which
// epochs are whole and were not dropped.
type census struct {
	disks []Disk // nil: whatever they are
	at    uint64 // records seen
	whole []span
	open  span // epoch 0: none
}

// see takes the next record. An error wraps errTorn: nobody wrote that there.
func (c *census) see(r record) error {
	at := c.at
	c.at++
	last := uint64(0)
	if n := len(c.whole); n > 0 {
		last = c.whole[n-1].epoch
	}
	switch r.kind {
	case recordWrite:
		w := Write{Disk: int(r.disk), Off: int64(r.off), Len: int64(r.len)}
		if c.disks != nil {
			if err := w.check(c.disks); err != nil {
				return fmt.Errorf("%w: epoch %d: %w", errTorn, r.epoch, err)
			}
		}
		if c.open.epoch == 0 {
			c.open = span{epoch: r.epoch, from: at}
		}
		if r.epoch != c.open.epoch || r.epoch <= last {
			return fmt.Errorf("%w: epoch %d within epoch %d behind %d", errTorn, r.epoch, c.open.epoch, last)
		}
		c.open.writes++
	case recordEnd:
		if c.open.epoch != r.epoch || c.open.writes != r.off {
			return fmt.Errorf("%w: end of epoch %d and %d writes, in epoch %d and %d writes", errTorn, r.epoch, r.off, c.open.epoch, c.open.writes)
		}
		if len(c.whole) >= spansMax {
			return fmt.Errorf("the journal has more than %d epochs", spansMax)
		}
		c.open.to = c.at
		c.whole = append(c.whole, c.open)
		c.open = span{}
	case recordDrop:
		if c.open.epoch > r.epoch {
			c.open = span{}
		}
		for n := len(c.whole); n > 0 && c.whole[n-1].epoch > r.epoch; n-- {
			c.whole = c.whole[:n-1]
		}
	}
	return nil
}

// last is the latest whole epoch, 0 if there is none.
func (c *census) last() uint64 {
	if len(c.whole) == 0 {
		return 0
	}
	return c.whole[len(c.whole)-1].epoch
}

// readSegment gives each record of a segment to visit. prev tells where the
// segment before it ended; the first one that is needed has none (nil). It
// returns where this one ends; an error that wraps errTorn where the records
// end before the file does, and everything behind is void.
func readSegment(r io.Reader, size int64, want segmentHead, first bool, visit func(record, []byte) error) (chain uint32, err error) {
	s, head, err := newSegmentReader(r, size)
	if err != nil {
		return 0, err
	}
	if head.journal != want.journal || head.number != want.number || !first && head.chain != want.chain {
		return 0, fmt.Errorf("%w: it does not follow the segment before it", errTorn)
	}
	for {
		rec, data, err := s.next()
		if errors.Is(err, io.EOF) {
			return s.chain, nil
		}
		if err == nil {
			err = visit(rec, data)
		}
		if err != nil {
			return 0, err
		}
	}
}
