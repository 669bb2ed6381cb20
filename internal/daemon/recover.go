package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/marker"
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
	ms, err := d.store.All()
	if err != nil {
		d.log.Error("some markers cannot be read; their protections are not taken up again", "err", err)
	}
	d.wakeOthers(ms)
	// All at once: while an arbiter or a disk is slow, each of them may take seconds,
	// and the standbys of guests that live here do not wait for long.
	each(len(ms), func(i int) { d.recoverOne(ms[i]) })
	d.mu.Lock()
	d.recovered = true
	d.mu.Unlock()
}

// recoverMax bounds how many things of an earlier daemon are seen to at a time.
const recoverMax = 16

// each calls do with 0 to n-1, some of them at a time, and waits for all.
func each(n int, do func(i int)) {
	var wg sync.WaitGroup
	room := make(chan struct{}, recoverMax)
	for i := range n {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			do(i)
		})
	}
	wg.Wait()
}

// recoverOne takes up what one marker tells of.
func (d *Daemon) recoverOne(m marker.Marker) {
	if m.Ended() {
		// It may have ended between its last word and its gate.
		if err := netgate.Remove(d.pinsOf(m.UUID)); err != nil {
			d.log.Error("the gate of a protection that ended cannot be opened", "domain", m.Domain, "err", err)
		}
		if m.Role == marker.RoleBackup {
			d.recoverDisks(m)
		}
		return
	}
	if err := d.takeUp(m); err != nil {
		d.log.Error("a protection is not taken up again yet", "domain", m.Domain, "phase", m.Phase, "err", err)
		d.mu.Lock()
		d.untaken[m.UUID] = true
		d.mu.Unlock()
		go d.takeUpLater(m)
	}
}

// takeUpLater tries on. Until then nobody else may begin with this guest.
func (d *Daemon) takeUpLater(m marker.Marker) {
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
	each(len(doms), func(i int) {
		dom := doms[i]
		m, err := d.store.Get(dom.UUID())
		if err == nil && (m.MayRun() || m.Ran || m.Role == marker.RolePrimary && !m.Ended()) {
			return // the note of a standby that became the guest may stay behind
		}
		if st, err := dom.State(ctx); err != nil || st.Status == virt.Running {
			d.log.Error("a domain is noted as a standby, and runs: it is left alone", "domain", dom.Name(), "err", err)
			return
		}
		d.log.Info("a standby of an earlier daemon is destroyed", "domain", dom.Name(), "err", destroyAway(ctx, dom))
	})
}

func (d *Daemon) takeUp(m marker.Marker) error {
	ctx, cancel := context.WithTimeout(d.ctx, guestCallTimeout)
	defer cancel()
	if m.Role == marker.RoleBackup {
		return d.takeUpBackup(ctx, m)
	}
	if err := d.wake(ctx, m.UUID); err != nil {
		return err
	}
	dom, pid, err := d.running(ctx, m.UUID)
	var gone *control.Error
	if errors.As(err, &gone) && (gone.Code == control.CodeConflict || gone.Code == control.CodeNotFound) {
		return d.lost(m, "the guest ended while this host's daemon was down", d.endedInOrder(ctx, m.UUID))
	}
	if err != nil {
		return err
	}
	if m.Phase == marker.PhaseLost || m.Phase == marker.PhaseHandedOver {
		// Somebody started it all the same. Whoever protects it begins anew.
		d.log.Error("a guest that may go on elsewhere was started here", "domain", m.Domain, "peer", m.PeerName)
		m.Phase, m.Reason = marker.PhaseEnded, "it was started here while its backup might have gone on with it"
		return d.store.Put(m)
	}
	p, err := d.register(m, dom, pid)
	if err != nil {
		return err
	}
	d.log.Info("a protection is taken up again", "domain", m.Domain, "phase", m.Phase, "generation", m.Generation)
	p.start()
	return nil
}

// endedInOrder tells whether libvirt remembers that somebody wanted a domain to end.
func (d *Daemon) endedInOrder(ctx context.Context, uuid string) bool {
	dom, err := d.virt.Lookup(ctx, uuid)
	if err != nil {
		return false
	}
	st, err := dom.State(ctx)
	if err != nil || st.Status != virt.Shutoff {
		return false
	}
	switch st.Reason {
	case "shutdown", "destroyed", "saved", "migrated":
		return true
	}
	return false
}

// noteStaleGone finds out whether a guest that is gone here went on elsewhere,
// and writes down then that its images here are of the past.
func (d *Daemon) noteStaleGone(ctx context.Context, m marker.Marker) (peer string, stale bool) {
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
		return "", false
	}
	if !had {
		return r.Host, true
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
func (d *Daemon) takeUpBackup(ctx context.Context, m marker.Marker) error {
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
func (d *Daemon) findStandby(ctx context.Context, m marker.Marker) (ftengine.StandbyFound, *virt.Domain, error) {
	if !m.MayRun() {
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
	case m.Phase == marker.PhaseActive || st.Status == virt.Running:
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
