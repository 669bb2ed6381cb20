package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// takeUpRetry is the pause before a protection that could not be taken up is
// tried again: libvirtd, or the arbiter's storage, may come later than we do.
const takeUpRetry = 2 * time.Second

// recover takes up what an earlier daemon left behind.
func (d *Daemon) recover() {
	d.destroyLeftovers()
	ms, err := d.store.all()
	if err != nil {
		d.log.Error("some markers cannot be read; their protections are not taken up again", "err", err)
	}
	for _, m := range ms {
		if m.ended() {
			// It may have ended between its last word and its gate.
			if err := netgate.Remove(d.pinsOf(m.UUID)); err != nil {
				d.log.Error("the gate of a protection that ended cannot be opened", "domain", m.Domain, "err", err)
			}
			if m.Role == "backup" {
				d.recoverDisks(m)
			}
			continue
		}
		if err := d.takeUp(m); err != nil {
			d.log.Error("a protection is not taken up again yet", "domain", m.Domain, "phase", m.Phase, "err", err)
			d.mu.Lock()
			d.untaken[m.UUID] = true
			d.mu.Unlock()
			go d.takeUpLater(m)
		}
	}
	d.mu.Lock()
	d.recovered = true
	d.mu.Unlock()
}

// takeUpLater tries on. Until then nobody else may begin with this guest.
func (d *Daemon) takeUpLater(m marker) {
	for {
		afterOrDone(d.ctx, takeUpRetry)
		if d.ctx.Err() != nil {
			return
		}
		err := d.takeUp(m)
		if err == nil {
			break
		}
		d.log.Debug("a protection is not taken up again yet", "domain", m.Domain, "err", err)
	}
	d.mu.Lock()
	delete(d.untaken, m.UUID)
	d.mu.Unlock()
}

// mayRun tells that a backup's marker says that its standby may be the guest.
func (m marker) mayRun() bool {
	return m.Role == "backup" && (m.Phase == "claimed" || m.Phase == "active")
}

// destroyLeftovers ends standbys that nobody can feed any more: the socket to
// their QEMU died with the daemon that made them. One that may be the guest by
// now is left to takeUp.
func (d *Daemon) destroyLeftovers() {
	ctx, cancel := context.WithTimeout(d.ctx, guestCallTimeout)
	defer cancel()
	doms, err := d.virt.Leftovers(ctx)
	for err != nil && ctx.Err() == nil {
		d.log.Warn("standbys of an earlier daemon cannot be listed", "err", err)
		afterOrDone(ctx, awayPoll)
		doms, err = d.virt.Leftovers(ctx)
	}
	for _, dom := range doms {
		if m, err := d.store.get(dom.UUID()); err == nil && m.mayRun() {
			continue
		}
		d.log.Info("a standby of an earlier daemon is destroyed", "domain", dom.Name(), "err", destroyAway(ctx, dom))
	}
}

func (d *Daemon) takeUp(m marker) error {
	ctx, cancel := context.WithTimeout(d.ctx, guestCallTimeout)
	defer cancel()
	if m.Role == "backup" {
		return d.takeUpBackup(ctx, m)
	}
	dom, pid, err := d.running(ctx, m.UUID)
	var gone *control.Error
	if errors.As(err, &gone) && (gone.Code == control.CodeConflict || gone.Code == control.CodeNotFound) {
		reason := "the guest ended while this host's daemon was down"
		if m.armed() {
			// Nothing that it said meanwhile was let out: its standby may
			// go on from its last checkpoint.
			reason += fmt.Sprintf("; its standby on %s goes on from the last checkpoint by itself, or with virt-ft activate %s there", m.PeerName, m.Domain)
		}
		if peer, stale := d.noteStaleGone(ctx, m); stale {
			reason = "the guest went on at " + peer + " while this host's daemon was down; its disks here are stale"
		}
		m.Phase, m.Reason = "ended", reason
		d.log.Error("a protection was lost", "domain", m.Domain, "reason", reason)
		if err := netgate.Remove(d.pinsOf(m.UUID)); err != nil {
			d.log.Warn("its gate stays", "domain", m.Domain, "err", err)
		}
		return d.store.put(m)
	}
	if err != nil {
		return err
	}
	p, err := d.register(m, dom, pid)
	if err != nil {
		return err
	}
	d.log.Info("a protection is taken up again", "domain", m.Domain, "phase", m.Phase, "generation", m.Generation)
	p.start()
	return nil
}

// noteStaleGone finds out whether a guest that is gone here went on elsewhere,
// and writes down then that its images here are of the past.
func (d *Daemon) noteStaleGone(ctx context.Context, m marker) (peer string, stale bool) {
	arb, err := d.arbiterFor(ctx, m.Arbiter, m.ArbiterID)
	if err != nil {
		return "", false
	}
	r, err := arb.Inspect(ctx, m.UUID)
	if err != nil || r.Generation <= m.Generation || r.Step != arbiter.StepRunning || r.Host == d.cfg.Host {
		return "", false
	}
	had, err := d.noteStale(m.UUID, m.Domain, r.Host, r.Generation)
	if err != nil {
		d.log.Error("the record of the guest's disks could not be written", "domain", m.Domain, "err", err)
	}
	if !had {
		return "", false
	}
	if dom, err := d.virt.Lookup(ctx, m.UUID); err == nil {
		err = dom.NoteStale(ctx, virt.Stale{Generation: r.Generation, ActiveHost: r.Host, Since: time.Now()})
		if err != nil {
			d.log.Warn("the domain's definition does not say that its disks are stale", "domain", m.Domain, "err", err)
		}
	}
	return r.Host, true
}

// takeUpBackup goes on where an earlier daemon was, as far as that is possible:
// the memory that it held is gone, a guest that was loaded is not.
func (d *Daemon) takeUpBackup(ctx context.Context, m marker) error {
	found, dom, err := d.findStandby(ctx, m)
	if err != nil {
		return err
	}
	arb, err := d.arbiterFor(ctx, m.Arbiter, m.ArbiterID)
	if err != nil {
		return err
	}
	if found == ftengine.StandbyGone {
		d.recoverDisks(m)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.primaries[m.UUID] != nil || d.backups[m.UUID] != nil {
		return nil // somebody began anew
	}
	b, first := restoreBackup(d, m, arb, found, dom)
	d.backups[m.UUID] = b
	d.log.Info("a stand-by is taken up again", "domain", m.Domain, "phase", m.Phase, "generation", m.Generation, "found", found)
	b.start(first...)
	return nil
}

// findStandby looks for what became of a standby that may be the guest.
func (d *Daemon) findStandby(ctx context.Context, m marker) (ftengine.StandbyFound, *virt.Domain, error) {
	if !m.mayRun() {
		return ftengine.StandbyGone, nil, nil // destroyLeftovers has seen to it
	}
	dom, err := d.virt.Lookup(ctx, m.UUID)
	if errors.Is(err, virt.ErrNoDomain) {
		return ftengine.StandbyGone, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	st, err := dom.State(ctx)
	switch {
	case err != nil:
		return 0, nil, err
	case !st.Active():
		return ftengine.StandbyGone, nil, nil
	case m.Phase == "active" || st.Status == virt.Running:
		return ftengine.StandbyRuns, dom, nil
	}
	status, err := queryStatus(ctx, dom)
	if err != nil {
		return 0, nil, err
	}
	if status == "inmigrate" {
		return ftengine.StandbyGone, dom, nil
	}
	return ftengine.StandbyLoaded, dom, nil
}
