package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/virt"
)

const (
	// holdMax bounds what is done while a guest is held for its mirrors.
	holdMax = 2 * time.Second
	// holdWakeMax is when a guest that is held is resumed by its waker.
	holdWakeMax = 5 * time.Second
	// mirrorBegunPoll is how often is looked whether a mirror is set up, the guest
	// being held.
	mirrorBegunPoll = 2 * time.Millisecond
	// qemuMirrorMisses is the first QEMU whose mirrors miss what is written while they
	// begin, instead of crashing; some later one does not.
	qemuMirrorMisses = 8
)

// heldDir is where wakers keep note of the guests that are held.
func (d *Daemon) heldDir() string { return filepath.Join(d.cfg.RunDir, "held") }

// wake resumes a guest that an earlier daemon held when it, and its waker, were
// killed. It must come before anything else decides whether the guest may run.
func (d *Daemon) wake(ctx context.Context, uuid string) error {
	return d.virt.Wake(ctx, d.heldDir(), uuid)
}

// wakeOthers does so for guests whose protection ended: nobody takes them up.
func (d *Daemon) wakeOthers(takenUp []marker.Marker) {
	held, err := virt.Held(d.heldDir())
	if err != nil {
		d.log.Error("it is not known whether an earlier daemon left guests held", "err", err)
	}
	for _, uuid := range held {
		if slices.ContainsFunc(takenUp, func(m marker.Marker) bool { return m.UUID == uuid && !m.Ended() }) {
			continue
		}
		go func() {
			for err := d.wake(d.ctx, uuid); err != nil && d.ctx.Err() == nil; err = d.wake(d.ctx, uuid) {
				d.log.Error("a guest that an earlier daemon held may not run yet; trying on", "uuid", uuid, "err", err)
				afterOrDone(d.ctx, takeUpRetry)
			}
		}()
	}
}

// hold has the guest stand still while do runs, which must end with its context, and
// tells for how long. A guest that does not run is left as it is. Nothing else
// changes meanwhile whether it runs: no checkpoint, and not the machine. Whatever
// becomes of us, it goes on: see virt.Waker.
func (p *primary) hold(ctx context.Context, waker *virt.Waker, do func(context.Context) error) (time.Duration, error) {
	p.capMu.Lock()
	defer p.capMu.Unlock()
	p.runMu.Lock()
	defer p.runMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, holdMax)
	defer cancel()
	status, err := queryStatus(ctx, p.dom)
	switch {
	case err != nil:
		return 0, err
	case isStopped(status):
		return 0, do(ctx)
	}
	if err := waker.Hold(); err != nil {
		return 0, err
	}
	began := time.Now()
	err = p.dom.Suspend(ctx)
	p.clock.Paused()
	if err == nil {
		err = do(ctx)
	} else {
		err = fmt.Errorf("the guest cannot be held for a moment: %w", err)
	}
	// Also when it was not: what was sent to libvirtd may still come about.
	p.clock.Resuming()
	if p.insist("resume", p.dom.Resume, isResumed) {
		err = errors.Join(err, waker.Rest())
	}
	p.clock.Resumed()
	return time.Since(began), err
}

// holdOnce is hold for a single time.
func (p *primary) holdOnce(ctx context.Context, do func(context.Context) error) error {
	waker, err := p.startWaker(ctx)
	if err != nil {
		return err
	}
	defer waker.Release()
	_, err = p.hold(ctx, waker, do)
	return err
}

func (p *primary) startWaker(ctx context.Context) (*virt.Waker, error) {
	return p.dom.StartWaker(ctx, p.d.heldDir(), holdWakeMax)
}

// beginMirrors has QEMU mirror all disks from now on, and copy what they hold.
func (d *disks) beginMirrors(ctx context.Context) error {
	p := d.l.p
	waker, err := p.startWaker(ctx)
	if err != nil {
		return err
	}
	defer waker.Release()
	d.begun.Store(true)
	var all []time.Duration
	for _, disk := range d.list {
		held, err := p.hold(ctx, waker, func(ctx context.Context) error { return d.beginMirror(ctx, disk.Target) })
		if err != nil {
			return fmt.Errorf("disk %s cannot be mirrored: %w", disk.Target, err)
		}
		all = append(all, held)
	}
	p.log.Info("mirroring disks", "held", all)
	return nil
}

// beginMirror begins with one disk. The guest is held.
func (d *disks) beginMirror(ctx context.Context, target string) error {
	p := d.l.p
	if err := p.dom.StartCopy(ctx, target, d.socket, target); err != nil {
		return err
	}
	for {
		begun, err := p.dom.CopyBegun(ctx, target)
		switch {
		case begun:
			return nil
		case ctx.Err() != nil && d.l.ctx.Err() == nil:
			return p.mirrorIsSlow()
		case err != nil:
			return err
		}
		afterOrDone(ctx, mirrorBegunPoll)
	}
}

// mirrorIsSlow decides what follows when a mirror was not set up in the time for
// which the guest may be held.
func (p *primary) mirrorIsSlow() error {
	ctx, cancel := context.WithTimeout(p.ctx, guestCallTimeout)
	defer cancel()
	raw, err := p.dom.QMP(ctx, "query-version", nil)
	if err != nil {
		return err
	}
	var v struct {
		QEMU struct {
			Major int `json:"major"`
		} `json:"qemu"`
	}
	switch err := json.Unmarshal(raw, &v); {
	case err != nil:
		return fmt.Errorf("query-version: %w", err)
	case v.QEMU.Major >= qemuMirrorMisses:
		return fmt.Errorf("QEMU does not begin within %v: is the storage slow, or the image much fragmented? What the guest writes meanwhile would be missed", holdMax)
	}
	return nil
}

// endMirrors lets the guest write to its own disks only. Mirrors that are not
// complete yet do not end well under writes.
func (d *disks) endMirrors(ctx context.Context) {
	p := d.l.p
	end := func(ctx context.Context) (err error) {
		for _, disk := range d.list {
			err = errors.Join(err, p.dom.AbortCopy(ctx, disk.Target))
		}
		return err
	}
	var err error
	if d.copied.Load() || !d.begun.Load() {
		err = end(ctx)
	} else if err = p.holdOnce(ctx, end); err != nil && !processGone(p.pid) && ctx.Err() == nil {
		p.log.Warn("the guest was not held until its disks' mirrors ended", "err", err)
		err = end(ctx)
	}
	if err != nil && !processGone(p.pid) {
		p.log.Warn("mirrors of the guest's disks could not be ended in order; they end with their server", "err", err)
	}
}

// endCopies ends mirrors into servers of ours that are of no use any more, and those
// that libvirt has lost sight of: it was killed, or had given up, while they began.
func (p *primary) endCopies(ctx context.Context, live string) error {
	mine, bare, err := virt.SplitCopies(live, func(c virt.Copy) bool { return strings.HasPrefix(c.Socket, p.d.nbdDir()+"/") })
	if err != nil {
		return err
	}
	whole := !slices.ContainsFunc(mine, func(c virt.Copy) bool { return c.Ready != "yes" })
	strays, err := p.dom.CopyJobs(ctx, bare)
	if err != nil {
		return err
	}
	if len(strays) == 0 {
		bare = nil // nothing more is to be asked of them
	} else {
		p.log.Warn("copies that libvirt does not know of are ended", "jobs", slices.Collect(maps.Keys(strays)))
	}
	end := func(ctx context.Context) error {
		if err := p.dom.EndCopies(ctx, mine, bare); err != nil {
			return fmt.Errorf("earlier mirrors do not end: %w", err)
		}
		return nil
	}
	if whole && len(strays) == 0 {
		return end(ctx)
	}
	return p.holdOnce(ctx, end)
}
