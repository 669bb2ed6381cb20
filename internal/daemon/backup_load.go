package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// The methods of this file run on the work goroutine.

// finishLoad gives a standby that stays paused the end of its stream.
func (b *backup) finishLoad(st *virt.Standby, img *image, device []byte) error {
	ctx, cancel := context.WithTimeout(b.ctx, loadTimeout)
	defer cancel()
	if err := st.Incoming.SetDeadline(time.Now().Add(loadTimeout)); err != nil {
		return err
	}
	if err := img.in.Finish(device); err != nil {
		return err
	}
	if err := st.Incoming.Close(); err != nil {
		return err
	}
	return st.WaitLoaded(ctx)
}

// load gives the standby its device state: from here on it is a guest.
func (b *backup) load() {
	err := errors.New("the standby is gone")
	if b.standby != nil && b.img != nil && b.img.in != nil && b.device != nil {
		// QEMU reads its disks from here on, and owns them when it runs.
		noted := b.noteRuns()
		if err = b.settleDisks(b.ctx); err == nil {
			err = b.loadStandby()
		}
		if nerr := <-noted; nerr != nil {
			b.log.Error("the record of the guest's disks could not be written: do not protect the guest to this host before it is mended", "err", nerr)
		}
	}
	b.loaded.Store(err == nil)
	if err != nil {
		b.log.Error("the standby does not load", "err", err)
	}
	b.post(ftengine.LoadDone{Err: text(err)})
}

// loadStandby gives the standby its device state, with its clocks set forward.
func (b *backup) loadStandby() error {
	pid, err := b.standby.PID()
	if err != nil {
		return err
	}
	b.takeover.close()
	prepared := b.prepareClock(pid)
	if err = b.whileAway("load", b.standby.StayPaused); err == nil {
		err = b.finishLoad(b.standby, b.img, b.setClocks(b.device, b.clock))
	}
	b.takeover.prepared = b.await(prepared)
	return err
}

func (b *backup) resume() {
	resume := b.resumeStandby
	err := b.whileAway("resume", func(ctx context.Context) error {
		defer func() { resume = b.resumeAgain }()
		return resume(ctx)
	})
	if err == nil {
		b.mu.Lock()
		b.failover = time.Since(b.started)
		b.mu.Unlock()
		b.log.Info("the guest runs here", "after", b.failover)
		b.answerOperator(nil)
		b.replayInputs()
		st := b.standby
		b.async(func() { b.announce(st); b.tidyActive() })
		go b.d.reprotect(b)
	}
	b.post(ftengine.ResumeDone{Err: text(err)})
}

// resumeAgain resumes a standby that may run already.
func (b *backup) resumeAgain(ctx context.Context) error {
	status, err := queryStatus(ctx, b.standby.Domain)
	if err == nil && status != "running" {
		err = b.standby.Resume(ctx)
	}
	return err
}

// whileAway does f to the standby, again and again while libvirtd is away: the other
// copy is being ended, so this one is the guest.
func (b *backup) whileAway(what string, f func(context.Context) error) error {
	for told := false; ; told = true {
		ctx, cancel := context.WithTimeout(b.ctx, guestCallTimeout)
		err := f(ctx)
		cancel()
		if !errors.Is(err, virt.ErrDisconnected) && !errors.Is(err, virt.ErrOutcomeUnknown) {
			return err
		}
		if pid, perr := b.standby.PID(); b.ctx.Err() != nil || perr == nil && processGone(pid) {
			return err // the next daemon finds it as it is; or it ended
		}
		if !told {
			b.log.Warn("could not "+what+" the standby; trying on", "err", err)
		}
		afterOrDone(b.ctx, awayPoll)
	}
}

// tidyActive makes an ordinary domain of what was a standby, after the guest runs.
func (b *backup) tidyActive() {
	b.later(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), guestCallTimeout)
		defer cancel()
		if b.standby != nil {
			if err := b.standby.ClearNote(ctx); err != nil {
				b.log.Warn("the standby's note stays in the domain's metadata", "err", err)
			}
			clearStale(ctx, b.log, b.standby.Domain)
		}
		if b.img != nil {
			b.closeImage() // QEMU holds the memory itself
		}
		b.closeGate()
		b.keepDisks()
	})
}
