package diskrep

import (
	"context"
	"errors"
	"fmt"
)

// Sync returns when all that is in the images is on disk; for after a failover,
// in the background.
func (t *Target) Sync(ctx context.Context) error {
	t.mu.Lock()
	if t.phase == phaseClosed {
		t.mu.Unlock()
		return ErrClosed
	}
	done := make(chan error, 1)
	t.work.Go(func() { done <- t.syncAll() })
	t.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("sync disks: %w (it goes on)", context.Cause(ctx))
	}
}

// syncAll is Sync. After a Settle that did not wait for the disk, the images
// are whole from now on.
func (t *Target) syncAll() error {
	t.mu.Lock()
	s := t.settle
	t.mu.Unlock()
	settled := false
	if s != nil {
		<-s.done
		settled = s.err == nil
	}
	if err := t.flushImages(); err != nil {
		return err
	}
	if !settled {
		return nil
	}
	return t.j.writeState(func(s *slot) { s.whole = true })
}

// settlement is a Settle.
type settlement struct {
	epoch uint64
	done  chan struct{}
	err   error // valid when done is closed
}

// Settle hands the images over to the guest: when it returns nil they are those
// of the epoch, later epochs are dropped, and the journal is never applied
// again, whatever happens to us or to the host. Under DurabilityFsync they are
// on disk as well; under DurabilityMemory it waits for no disk but for one
// block, which says that the journal is over. When ctx ends first it goes on,
// and may be asked for again.
func (t *Target) Settle(ctx context.Context, epoch uint64) error {
	s, err := t.beginSettle(epoch)
	if err == nil {
		select {
		case <-s.done:
			err = s.err
		case <-ctx.Done():
			err = fmt.Errorf("%w (it goes on)", context.Cause(ctx))
		}
	}
	if err != nil {
		return fmt.Errorf("disks at epoch %d: %w", epoch, err)
	}
	return nil
}

// beginSettle begins it, unless that was done. What failed before does not
// matter if it works now: the guest has nowhere else to go.
func (t *Target) beginSettle(epoch uint64) (*settlement, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.settle != nil && t.settle.epoch == epoch:
		return t.settle, nil
	case t.settle != nil:
		return nil, fmt.Errorf("%w, at epoch %d", ErrSettled, t.settle.epoch)
	case t.phase == phaseClosed:
		return nil, ErrClosed
	case t.phase == phaseInitial:
		return nil, errors.New("the initial copy of the disks is not complete")
	case epoch < t.committed:
		return nil, fmt.Errorf("epoch %d is committed already", t.committed)
	case epoch > t.ended:
		return nil, fmt.Errorf("it is not whole; the last one that is: %d", t.ended)
	}
	t.drop(epoch)
	t.commit(epoch)
	t.phase = phaseSettled
	s := &settlement{epoch: epoch, done: make(chan struct{})}
	t.settle = s
	t.changed.Broadcast()
	t.work.Go(func() {
		s.err = t.doSettle(epoch)
		close(s.done)
		if s.err == nil {
			t.discard()
		}
	})
	return s, nil
}

func (t *Target) doSettle(epoch uint64) error {
	if err := t.applyUpTo(epoch); err != nil {
		return err
	}
	fsync := t.o.Durability == DurabilityFsync
	if fsync {
		if err := t.flushImages(); err != nil {
			return err
		}
	}
	// Only now: killed before this, the journal is needed; killed after it, it
	// must not be looked at. Synced, though the policy be memory: names that a
	// power cut brings back would overwrite what the guest has written since.
	return t.j.retire(fsync)
}

// discard removes the journal's files when nobody uses them any more.
func (t *Target) discard() {
	t.stopApplier()
	t.staging.Lock()
	defer t.staging.Unlock()
	if err := t.j.discard(); err != nil {
		t.log.Warn("files of a journal that is over stay", "dir", t.o.JournalDir, "err", err)
	}
}

func (t *Target) stopApplier() {
	t.stopOnce.Do(func() { close(t.stop) })
	<-t.stopped
}

// Close applies what is committed, syncs the images and empties the journal. An
// epoch that ended and is not committed stays in the journal, for it may have
// been acknowledged: the next OpenTarget applies it. Drop it first if that must
// not be.
func (t *Target) Close() error {
	t.closeOnce.Do(func() { t.closeErr = t.close() })
	return t.closeErr
}

func (t *Target) close() error {
	t.mu.Lock()
	t.phase = phaseClosed
	initial := t.ended < initialEpoch
	s := t.settle
	t.changed.Broadcast()
	t.mu.Unlock()
	t.stopApplier()
	t.work.Wait()
	t.staging.Lock()
	defer t.staging.Unlock()

	t.mu.Lock()
	err, left := t.err, len(t.epochs)
	t.mu.Unlock()
	switch {
	case s != nil && s.err != nil:
		err = s.err
	case s != nil:
		err = t.flushImages()
		if err == nil {
			err = t.j.writeState(func(s *slot) { s.whole = true })
		}
	case err != nil: // the journal is needed as it is
	case left > 0:
		if dropErr := t.journalDrop(); dropErr != nil {
			// They ended, so they are some epoch's disks, if a later one than
			// was asked for.
			t.log.Warn("dropped epochs may be applied by the next one", "dir", t.o.JournalDir, "err", dropErr)
		}
		err = t.empty()
	default:
		if err = t.flushImages(); err == nil {
			err = t.j.retire(!initial || t.j.whole())
		}
		if err == nil {
			err = t.j.discard()
		}
	}
	t.mu.Lock()
	for _, e := range t.epochs {
		t.forget(e)
	}
	if t.open != nil {
		t.forget(t.open)
	}
	t.epochs, t.open = nil, nil
	t.mu.Unlock()
	t.j.close()
	for _, im := range t.images {
		im.f.Close()
	}
	if err != nil {
		return fmt.Errorf("close disks: %w", err)
	}
	return nil
}
