package daemon

import (
	"time"

	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// The methods of this file run on the work goroutine.

// commit applies a staged epoch.
func (b *backup) commit(epoch ftengine.Epoch) {
	b.stageMu.Lock()
	s := b.stage[epoch]
	delete(b.stage, epoch)
	b.stageMu.Unlock()
	if s == nil {
		return // the session it belonged to is over
	}
	defer b.free(s)
	var err error
	switch {
	case b.img != nil:
		err = b.applyEpoch(s)
	case !s.final: // whose pages have no place any more; the guest's end has none
		return
	}
	if err != nil && b.img.in != nil && b.standby != nil {
		// The stream to the standby broke: its QEMU is gone, or hangs and is
		// better gone. The memory that we hold is what counts, and another
		// standby is made from it when this one is seen to have ended.
		b.log.Warn("the standby takes no more", "err", err)
		b.img.in = nil
		b.end(b.standby)
		err = b.applyEpoch(s)
	}
	if err == nil {
		if !s.final {
			b.device, b.clock = s.device, s.clock
		} else {
			b.d.noteHere(b.uuid, b.name) // it runs nowhere
		}
		b.applied.Store(uint64(epoch))
		b.kept.committed(epoch)
		if bd := b.disks.Load(); bd != nil {
			bd.target.Commit(uint64(epoch))
		}
		b.committed.now()
		b.async(func() { b.tellCommitted(epoch) })
	}
	b.post(ftengine.CommitDone{Epoch: epoch, Err: text(err)})
}

// applyEpoch writes all of an epoch. Doing it twice does no harm.
func (b *backup) applyEpoch(s *stagedEpoch) error {
	if b.img.in != nil && b.standby != nil {
		if err := b.standby.Incoming.SetWriteDeadline(time.Now().Add(loadTimeout)); err != nil {
			return err
		}
	}
	for _, x := range s.batches {
		if err := b.img.apply(x.runs, x.data); err != nil {
			return err
		}
	}
	if b.img.in == nil {
		return nil
	}
	return b.img.in.Flush()
}

// tellCommitted lets the primary show how far we are; nothing depends on it.
func (b *backup) tellCommitted(epoch ftengine.Epoch) {
	if in := b.current(); in != nil {
		_ = in.s.Control.Send(in.ctx, replica.Stamp{Generation: b.generation(), Epoch: uint64(epoch)}, &replica.Committed{})
	}
}
