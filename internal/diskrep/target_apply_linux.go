package diskrep

import (
	"fmt"
	"time"
)

// run is the applier: it alone syncs the journal for commits, applies them
// (Settle aside), and empties the journal.
func (t *Target) run() {
	defer close(t.stopped)
	idle := time.NewTimer(idleAfter)
	defer idle.Stop()
	var last time.Time // when the journal was synced
	for stopping := false; !stopping; {
		quiet := false
		select {
		case <-t.wake:
		case <-idle.C:
			quiet = true
		case <-t.stop:
			stopping = true
		}
		if err := t.applyCommitted(&last, quiet); err != nil {
			t.fail(err)
		}
		idle.Reset(idleAfter)
	}
}

// applyCommitted brings the images up to date. quiet: the journal is emptied
// though it is short.
func (t *Target) applyCommitted(last *time.Time, quiet bool) error {
	for {
		_, _, bytes, any := t.due()
		if !any {
			break
		}
		if t.o.Durability == DurabilityMemory {
			t.waitPace(*last, bytes)
		}
		number, end, _, any := t.due()
		if !any {
			break
		}
		*last = time.Now()
		if err := t.j.sync(end); err != nil {
			return err
		}
		if err := t.applyUpTo(number); err != nil {
			return err
		}
		if t.j.bytes() > t.o.JournalBytesMax {
			if err := t.empty(); err != nil {
				return err
			}
		}
	}
	t.mu.Lock()
	ours := t.ended >= initialEpoch && t.err == nil && t.settle == nil
	t.mu.Unlock()
	switch {
	case !ours:
		return nil
	case quiet && t.j.bytes() > 0:
		if err := t.j.syncAll(); err != nil {
			return err
		}
	case t.j.whole():
		return nil
	}
	return t.empty()
}

// due is the last committed epoch that is not applied, where it ends in the
// journal, and the data up to there.
func (t *Target) due() (number uint64, end, bytes int64, any bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil || t.settle != nil {
		return 0, 0, 0, false
	}
	for i := len(t.epochs) - 1; i >= 0; i-- { // few are not committed
		if e := t.epochs[i]; e.number <= t.committed {
			return e.number, e.end, t.behind, true
		}
	}
	return 0, 0, 0, false
}

// waitPace lets commits gather, unless there is much of them.
func (t *Target) waitPace(last time.Time, bytes int64) {
	timer := time.NewTimer(time.Until(last.Add(t.o.pace)))
	defer timer.Stop()
	for bytes < min(hurryBytes, t.o.JournalBytesMax) {
		select {
		case <-timer.C:
			return
		case <-t.stop:
			return
		case <-t.wake:
			var any bool
			if _, _, bytes, any = t.due(); !any {
				return
			}
		}
	}
}

// applyUpTo writes the epochs up to that one into the images. They are written
// by one goroutine at a time, whole and in order.
func (t *Target) applyUpTo(number uint64) error {
	t.applying <- struct{}{}
	defer func() { <-t.applying }()
	for {
		t.mu.Lock()
		if len(t.epochs) == 0 || t.epochs[0].number > number {
			t.mu.Unlock()
			return nil
		}
		e := t.epochs[0]
		t.mu.Unlock()
		if err := t.apply(e); err != nil {
			return fmt.Errorf("epoch %d is committed and cannot be applied: %w", e.number, err)
		}
		t.mu.Lock()
		t.behind -= e.bytes
		t.forget(e)
		t.epochs = t.epochs[1:]
		t.applied = e.number
		t.advance()
		t.changed.Broadcast()
		t.mu.Unlock()
	}
}

func (t *Target) apply(e *epoch) error {
	var g gather
	for _, w := range e.writes {
		if err := t.put(&g, w); err != nil {
			return err
		}
	}
	return g.flush()
}

// put writes w behind what g has gathered, or adds it to that.
func (t *Target) put(g *gather, w staged) error {
	im := t.images[w.Disk]
	switch {
	case w.spilled:
		data := make([]byte, w.Len)
		if err := t.j.readAt(data, w.at); err != nil {
			return err
		}
		return g.add(im, w.Off, data)
	case w.Data != nil:
		return g.add(im, w.Off, w.Data)
	}
	if err := g.flush(); err != nil {
		return err
	}
	return im.put(w.Write)
}

// empty syncs the images, then lets go of the part of the journal that they
// have.
func (t *Target) empty() error {
	t.mu.Lock()
	applied, whole := t.applied, t.ended >= initialEpoch
	t.mu.Unlock()
	if err := t.flushImages(); err != nil {
		return err
	}
	return t.j.trim(applied, whole)
}

// flushImages returns when all that was written to the images is on disk.
func (t *Target) flushImages() error {
	began, any := time.Now(), false
	for _, im := range t.images {
		any = any || im.dirty.Load()
		if err := im.flush(); err != nil {
			return err
		}
	}
	if any {
		t.mu.Lock()
		t.imageSync.add(time.Since(began))
		t.mu.Unlock()
	}
	return nil
}
