package netgate

import (
	"sync"
	"time"
)

// queue is what is held: the open queue, and how much was cut and is not done.
// It is bounded; who finds it full waits, and the kernel's queue behind it
// fills. Safe for concurrent use.
type queue struct {
	bytesMax, framesMax int

	mu      sync.Mutex
	room    sync.Cond // of mu: there may be room, or stopped is set
	stopped bool
	open    []Frame
	bytes   int // of the frames in open
	since   time.Time
	cuts    []batch // oldest first
	held    batch   // frames and bytes of open and cuts together
}

// batch is what one cut took and is not done yet.
type batch struct {
	frames, bytes int
	since         time.Time // when its oldest frame came
}

func newQueue(bytesMax, framesMax int) *queue {
	q := &queue{bytesMax: bytesMax, framesMax: framesMax}
	q.room.L = &q.mu
	return q
}

func (q *queue) hasRoom() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.roomLocked()
}

func (q *queue) roomLocked() bool { return q.held.bytes < q.bytesMax && q.held.frames < q.framesMax }

// waitRoom returns false when the queue was stopped.
func (q *queue) waitRoom() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.stopped && !q.roomLocked() {
		q.room.Wait()
	}
	return !q.stopped
}

func (q *queue) stop() {
	q.mu.Lock()
	q.stopped = true
	q.mu.Unlock()
	q.room.Broadcast()
}

// add appends to the open queue and returns true if that was empty.
func (q *queue) add(f Frame) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	first := len(q.open) == 0
	if first {
		q.since = time.Now()
	}
	q.open = append(q.open, f)
	q.bytes += len(f.Data)
	q.held.frames++
	q.held.bytes += len(f.Data)
	return first
}

// cut closes the open queue and opens the next. What it returns is held until
// done.
func (q *queue) cut() []Frame {
	q.mu.Lock()
	defer q.mu.Unlock()
	fs := q.open
	if len(fs) == 0 {
		return nil
	}
	q.cuts = append(q.cuts, batch{frames: len(fs), bytes: q.bytes, since: q.since})
	q.open, q.bytes = nil, 0
	return fs
}

// take is cut for frames that are performed at once.
func (q *queue) take() []Frame {
	q.mu.Lock()
	defer q.mu.Unlock()
	fs := q.open
	q.held.frames -= len(fs)
	q.held.bytes -= q.bytes
	q.open, q.bytes = nil, 0
	q.room.Broadcast()
	return fs
}

// done takes frames of the oldest cuts off the bound. More than were cut is no
// error: forget may have come first.
func (q *queue) done(fs []Frame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, f := range fs {
		if len(q.cuts) == 0 {
			break
		}
		b := &q.cuts[0]
		bytes := min(len(f.Data), b.bytes)
		b.frames--
		b.bytes -= bytes
		q.held.frames--
		q.held.bytes -= bytes
		if b.frames == 0 {
			q.held.bytes -= b.bytes
			q.cuts = q.cuts[1:]
		}
	}
	q.room.Broadcast()
}

// forget counts everything that was cut as done.
func (q *queue) forget() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, b := range q.cuts {
		q.held.frames -= b.frames
		q.held.bytes -= b.bytes
	}
	q.cuts = nil
	q.room.Broadcast()
}

func (q *queue) openEmpty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.open) == 0
}

// now returns how much is held, and since when.
func (q *queue) now() batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.held
	switch {
	case len(q.cuts) > 0:
		b.since = q.cuts[0].since
	case len(q.open) > 0:
		b.since = q.since
	}
	return b
}

// slab is memory that frames are read into one after the other. The garbage
// collector frees it when the last of them is gone. The zero value is ready.
type slab struct{ free []byte }

// space returns where the next frame goes: need bytes or more, all zero.
func (s *slab) space(need int) []byte {
	if len(s.free) < need {
		s.free = make([]byte, slabBytes)
	}
	return s.free
}

// take returns the first n bytes of space as a frame of its own.
func (s *slab) take(n int) []byte {
	b := s.free[:n:n]
	s.free = s.free[n:]
	return b
}
