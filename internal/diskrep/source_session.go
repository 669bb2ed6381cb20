package diskrep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// session is a Source between Begin and End.
type session struct {
	o    SourceOptions
	ship func(ctx context.Context, ws []Write) error
	ctx  context.Context
	stop context.CancelFunc

	disks   []*sessionDisk
	gone    atomic.Bool   // err is set
	copying atomic.Bool   // zeros may be owed to the backup
	work    chan struct{} // there may be something to ship
	done    chan struct{} // closed when the pump has ended

	mu    sync.Mutex
	err   error // why writes are forgotten from now on
	queue sourceQueue
	bytes int64 // cost of what is in the queue or being shipped
	// wakeBytes is the cost from which on what is in the queue is shipped before
	// the cut. Constant.
	wakeBytes int64
	writers   []*writer
	// Positions in the sequence of all writes of the session: where the epoch
	// began, where it is cut (if it is), and how far ship has taken them.
	epochAt, cutAt, shipped uint64
	cut                     bool
	progress                chan struct{} // closed when one of these changes; nil when nobody waits
}

// writer is a request that waits for room. It is queued on its behalf, so that
// writers keep their order.
type writer struct {
	parts []Write
	cost  int64
	kept  bool          // set before done is closed
	done  chan struct{} // parts are in the queue, or will never be
}

func newSession(ctx context.Context, disks []Disk, o SourceOptions, ship func(context.Context, []Write) error) *session {
	s := &session{o: o, ship: ship, wakeBytes: min(shipBytesMin, o.QueueBytesMax/2), work: make(chan struct{}, 1), done: make(chan struct{})}
	s.ctx, s.stop = context.WithCancel(ctx)
	sums := new(atomic.Int64)
	for _, d := range disks {
		sd := &sessionDisk{}
		sd.compare.Store(newComparer(d, sums, o.Log))
		s.disks = append(s.disks, sd)
	}
	return s
}

func (s *session) end() {
	s.fail(ErrNoSession, false)
	s.stop()
	<-s.done
	for _, d := range s.disks {
		d.compare.Store(nil) // their memory; the session stays for its counts
	}
}

// pump hands what is queued to ship.
func (s *session) pump() {
	defer close(s.done)
	for {
		ws, cost := s.next()
		if len(ws) == 0 {
			select {
			case <-s.work:
			case <-s.ctx.Done():
				s.fail(s.over(), false)
				return
			}
			continue
		}
		for i := range ws {
			s.disks[ws[i].Disk].stats.ships(&ws[i])
		}
		if err := s.ship(s.ctx, ws); err != nil {
			if s.ctx.Err() != nil {
				s.fail(s.over(), false)
			} else {
				s.fail(fmt.Errorf("writes of the guest's disks do not get to the backup: %w", err), true)
			}
			return
		}
		s.sent(len(ws), cost)
	}
}

// over says that somebody ended the context that Begin was given.
func (s *session) over() error { return fmt.Errorf("%w: %w", ErrNoSession, context.Cause(s.ctx)) }

// next takes what may be shipped now.
func (s *session) next() (ws []Write, cost int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	until := s.queue.added
	if s.cut {
		until = s.cutAt
	}
	ws = s.queue.take(until)
	return ws, costOf(ws)
}

// sent makes room for those who wait.
func (s *session) sent(writes int, cost int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.shipped += uint64(writes)
	s.bytes -= cost
	for len(s.writers) > 0 && s.room(s.writers[0].cost) {
		w := s.writers[0]
		s.writers = slices.Delete(s.writers, 0, 1)
		s.keep(w.parts, w.cost)
		w.kept = true
		close(w.done)
	}
	s.changed()
}

// room, keep and changed are called with mu held.
func (s *session) room(cost int64) bool {
	return s.bytes == 0 || s.bytes+cost <= s.o.QueueBytesMax
}

func (s *session) keep(parts []Write, cost int64) {
	s.queue.add(parts)
	s.bytes += cost
}

func (s *session) changed() {
	if s.progress != nil {
		close(s.progress)
		s.progress = nil
	}
}

func (s *session) wake() {
	select {
	case s.work <- struct{}{}:
	default:
	}
}

// put queues parts, which are the caller's again when it returns, their data is
// not.
func (s *session) put(ctx context.Context, disk string, parts []Write) error {
	cost := costOf(parts)
	s.mu.Lock()
	if s.err == nil && s.ctx.Err() == nil && len(s.writers) == 0 && s.room(cost) {
		s.keep(parts, cost)
		worth := !s.cut && s.bytes >= s.wakeBytes
		s.mu.Unlock()
		if worth {
			s.wake()
		}
		return nil
	}
	w := &writer{parts: parts, cost: cost, done: make(chan struct{})}
	if s.err != nil {
		close(w.done)
	} else {
		s.writers = append(s.writers, w)
	}
	s.mu.Unlock()
	s.wake() // what is in its way may be too little to be shipped by itself
	err := s.wait(ctx, disk, w)
	if !w.kept {
		for i := range parts {
			parts[i].Free()
		}
		return err
	}
	return nil
}

// wait returns when w is done. Its error is what the guest's QEMU is told.
func (s *session) wait(ctx context.Context, disk string, w *writer) error {
	stall := time.NewTimer(s.o.StallMax)
	defer stall.Stop()
	select {
	case <-w.done:
		return nil
	case <-s.ctx.Done():
		s.giveUp(w, s.over(), false)
		return nil
	case <-stall.C:
		s.giveUp(w, fmt.Errorf("disk %s: a write of the guest found no room in the queue (%d bytes) for %v: the connection to the backup stands still, or is too slow for what the guest writes",
			disk, s.o.QueueBytesMax, s.o.StallMax), true)
		return nil
	case <-ctx.Done():
		err := fmt.Errorf("disk %s: the connection of its mirror was closed while a write waited: %w", disk, context.Cause(ctx))
		s.giveUp(w, err, true)
		return err
	}
}

// giveUp fails the session because of w, unless that is done meanwhile.
func (s *session) giveUp(w *writer, err error, tell bool) {
	s.mu.Lock()
	defer func() { <-w.done }()
	if !slices.Contains(s.writers, w) {
		s.mu.Unlock()
		return
	}
	s.failAndUnlock(err, tell)
}

// fail ends the keeping of writes: what waits is freed, who waits is answered.
// Only the first error counts.
func (s *session) fail(err error, tell bool) {
	s.mu.Lock()
	s.failAndUnlock(err, tell)
}

// failAndUnlock frees without holding mu, for that calls into whoever lent us
// the data.
func (s *session) failAndUnlock(err error, tell bool) {
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	s.gone.Store(true)
	left := s.queue
	s.queue, s.bytes = sourceQueue{}, 0
	for _, w := range s.writers {
		close(w.done)
	}
	s.writers = nil
	s.changed()
	s.mu.Unlock()
	left.freeAll()
	if tell && s.o.Broken != nil {
		go s.o.Broken(err)
	}
}

func (s *session) whole() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.ctx.Err() != nil {
		return s.over()
	}
	return s.err
}

func (s *session) cutNow() {
	s.mu.Lock()
	s.cut, s.cutAt = true, s.queue.added
	s.mu.Unlock()
	s.wake()
}

func (s *session) uncut() {
	s.mu.Lock()
	s.cut = false
	s.changed()
	s.mu.Unlock()
	s.wake()
}

func (s *session) advance() {
	s.mu.Lock()
	if !s.cut || s.shipped < s.cutAt {
		s.failAndUnlock(errors.New("an epoch of the disks was ended before its writes were shipped"), true)
		return
	}
	s.cut, s.epochAt = false, s.cutAt
	s.changed()
	s.mu.Unlock()
	s.wake()
}

func (s *session) waitShipped(ctx context.Context) (writes uint64, err error) {
	for {
		s.mu.Lock()
		switch {
		case s.err != nil:
			err = s.err
		case !s.cut:
			err = errNotCut
		case s.shipped >= s.cutAt:
			writes = s.cutAt - s.epochAt
		default:
			if s.progress == nil {
				s.progress = make(chan struct{})
			}
			changed := s.progress
			s.mu.Unlock()
			select {
			case <-changed:
				continue
			case <-s.ctx.Done():
				return 0, s.over()
			case <-ctx.Done():
				return 0, fmt.Errorf("writes of the disks are not shipped yet: %w", context.Cause(ctx))
			}
		}
		s.mu.Unlock()
		return writes, err
	}
}
