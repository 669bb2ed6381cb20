package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/replica"
)

// A guest that ended here while no daemon of this host watched may go on at its
// backup, now or later. Until it is known that it does, or that it cannot, it must
// not be started here: the hook asks mayStart, and settleLost finds out.

// settleRetry is the pause between two tries to find out.
const settleRetry = 2 * time.Second

// lost keeps what is known of a guest that ended here unseen. One that ended in
// order is nobody's to go on with: the right to is claimed at once, so that its
// backup does not.
func (d *Daemon) lost(m marker.Marker, reason string, inOrder bool) error {
	d.log.Error("a protection was lost", "domain", m.Domain, "reason", reason)
	if err := netgate.Remove(d.pinsOf(m.UUID)); err != nil {
		d.log.Warn("its gate stays", "domain", m.Domain, "err", err)
	}
	m.Reason = reason
	if !m.Armed() && m.Phase != marker.PhaseLost {
		m.Phase = marker.PhaseEnded // no backup ever had a checkpoint of it
		return d.store.Put(m)
	}
	m.Phase = marker.PhaseLost
	m.Reason += fmt.Sprintf("; its standby on %s goes on from the last checkpoint by itself, or with virt-ft activate %s there", m.PeerName, m.Domain)
	if err := d.store.Put(m); err != nil {
		return err
	}
	d.mu.Lock()
	known := d.lostOnes[m.UUID]
	d.lostOnes[m.UUID] = true
	d.mu.Unlock()
	if !known {
		go d.settleLost(m, inOrder)
	}
	return nil
}

// isLost tells whether the fate of a guest that ended here is not known yet.
func (d *Daemon) isLost(uuid string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lostOnes[uuid]
}

// settleLost tries until the fate of a lost guest is known.
func (d *Daemon) settleLost(m marker.Marker, inOrder bool) {
	for d.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(d.ctx, guestCallTimeout)
		done, err := d.trySettle(ctx, m, inOrder)
		cancel()
		if done || !d.isLost(m.UUID) {
			return
		}
		d.log.Debug("it is not known yet where a lost guest goes on", "domain", m.Domain, "err", err)
		afterOrDone(d.ctx, settleRetry)
	}
}

// trySettle asks the arbiter and the backup. A guest that nobody has any more is
// ours: that is claimed, so that nobody goes on as it later. insist claims without
// asking the backup: a person decided that it is not to go on.
func (d *Daemon) trySettle(ctx context.Context, m marker.Marker, insist bool) (done bool, err error) {
	d.settling.Lock() // a claim beside another's would not be covered by its grant
	defer d.settling.Unlock()
	if !d.isLost(m.UUID) {
		return true, nil // it is settled, or has begun a new life here
	}
	if host, stale := d.noteStaleGone(ctx, m); stale {
		return d.settled(m, wentOnAt(host))
	}
	if !insist {
		w, err := d.askPeer(ctx, m.Peer, m.UUID, m.Domain)
		switch {
		case err != nil:
			return false, err
		case w.State == replica.BackupActive, w.State == replica.BackupNone && w.Generation > m.Generation:
			// Not every arbiter lets us see what the peer won; and what ran there may
			// have ended since.
			return d.wentOn(m, w.Host, w.Generation)
		case w.State != replica.BackupNone:
			return false, fmt.Errorf("%s holds a checkpoint of it", w.Host)
		}
	}
	arb, err := d.arbiterFor(ctx, m.Arbiter, m.ArbiterID)
	if err != nil {
		return false, err
	}
	c := arbiter.Claim{Domain: m.UUID, Generation: m.Generation + 1, Host: d.cfg.Host}
	// A person's word, or the backup's, that it holds nothing.
	if err := grant(ctx, arb, c); err != nil {
		return false, err
	}
	v, err := arb.Claim(ctx, c)
	switch {
	case err != nil:
		return false, err
	case !v.Won && insist:
		// It is the holder's, whatever becomes of that.
		return d.wentOn(m, v.Holder, c.Generation)
	case !v.Won:
		return false, fmt.Errorf("%s has the right to go on from the last checkpoint", v.Holder)
	}
	m.Generation++ // it is used up
	return d.settled(m, "the guest ended here, and nobody goes on from its last checkpoint: it may be started here")
}

// wentOn notes that a guest went on at host, and ends its marker.
func (d *Daemon) wentOn(m marker.Marker, host string, gen uint64) (done bool, err error) {
	if _, err := d.noteStale(m.UUID, m.Domain, host, max(gen, m.Generation+1)); err != nil {
		return false, err
	}
	return d.settled(m, wentOnAt(host))
}

func wentOnAt(host string) string {
	return fmt.Sprintf("the guest ended here and went on at %s; what is here of it is of the past", host)
}

// settled ends the marker of a lost guest.
func (d *Daemon) settled(m marker.Marker, reason string) (done bool, err error) {
	m.Phase, m.Reason = marker.PhaseEnded, reason
	if err := d.store.Put(m); err != nil {
		return false, err
	}
	d.mu.Lock()
	delete(d.lostOnes, m.UUID)
	d.mu.Unlock()
	d.log.Warn("the fate of a lost guest is known", "domain", m.Domain, "reason", reason)
	d.hub.emit(control.Event{Domain: m.Domain, UUID: m.UUID, Kind: control.EventState, Generation: m.Generation, Text: reason})
	return true, nil
}

// release is virt-ft activate for a guest that no runner has: a person's word that
// it is to be started here, from what is here.
func (d *Daemon) release(ctx context.Context, domain string, force bool) error {
	m, ok := d.markerOf(domain)
	if !ok {
		return d.notProtected(ctx, domain)
	}
	if d.isLost(m.UUID) {
		if !force {
			switch w, err := d.askPeer(ctx, m.Peer, m.UUID, m.Domain); {
			case err != nil:
				return control.Errorf(control.CodeConflict, "", "the backup of %s does not answer, and may go on from the last checkpoint; --force lets it be started here from its disks, without what its memory held: be sure that host %s is off (%w)", m.Domain, m.PeerName, err)
			case w.State != replica.BackupNone:
				return control.Errorf(control.CodeConflict, fmt.Sprintf("run virt-ft activate %s on host %s", m.Domain, w.Host), "%s holds the last checkpoint of %s; --force would give that up", w.Host, m.Domain)
			}
		}
		if _, err := d.trySettle(ctx, m, true); err != nil {
			return control.Errorf(control.CodeConflict, "", "%s must not be started here: %w", m.Domain, err)
		}
		return nil
	}
	rec, err := d.disks.Get(m.UUID)
	switch {
	case err != nil:
		return err
	case rec.Active == "":
		return d.notProtected(ctx, domain)
	case !force:
		return control.Errorf(control.CodeConflict, fmt.Sprintf("protect it on host %s to this one: that brings what is here up to date", rec.Active),
			"%s went on at %s; --force lets it be started here from what is here of it: everything since is lost, and two copies run if that one still does", m.Domain, rec.Active)
	}
	err = d.disks.Change(m.UUID, m.Domain, func(rec *marker.DiskRecord) {
		rec.Become(marker.ImageSource)
		rec.Active, rec.Since = "", rec.Since+1
	})
	if err != nil {
		return err
	}
	d.log.Warn("a guest may be started here again, from what is of the past", "domain", m.Domain, "by", "virt-ft activate --force")
	if dom, err := d.virt.Lookup(ctx, m.UUID); err == nil {
		clearStale(ctx, d.log, dom)
	}
	return nil
}

// markerOf is the last marker of a domain by name or UUID.
func (d *Daemon) markerOf(domain string) (last marker.Marker, found bool) {
	ms, _ := d.store.All()
	for _, m := range ms {
		if (m.UUID == domain || m.Domain == domain) && m.At.After(last.At) {
			last, found = m, true
		}
	}
	return last, found
}

// making lets the hook pass a standby of ours until what it returns is called.
func (d *Daemon) making(uuid string) (done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.starting[uuid]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.starting[uuid]--; d.starting[uuid] == 0 {
			delete(d.starting, uuid)
		}
	}
}

// mayStart tells whether libvirt may start a domain on this host now: nil, or why
// not and what to do.
func (d *Daemon) mayStart(ctx context.Context, uuid, name string) error {
	d.mu.Lock()
	p, b, starting, untaken := d.primaries[uuid], d.backups[uuid], d.starting[uuid] > 0, d.untaken[uuid] || !d.recovered
	d.mu.Unlock()
	switch {
	case starting:
		return nil // our own standby
	case untaken:
		return errors.New("what virt-ft's last daemon left of it is being looked at; try again in a moment")
	case p != nil:
		select { // its protection may be about to end
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("its protection to %s is still %s; try again in a moment", p.peerName(), p.stateNow())
		}
	case b != nil && b.idle() && !b.connected():
		return fmt.Errorf("this host waits for its primary on %s, where it ran last; virt-ft unprotect %s here gives that up", b.peerName(), name)
	case b != nil && !b.active():
		return fmt.Errorf("this host stands by for it, and it runs on %s; run virt-ft unprotect %s there first", b.peerName(), name)
	}
	if d.isLost(uuid) {
		m, err := d.store.Get(uuid)
		if err != nil {
			return err
		}
		return fmt.Errorf("%s; virt-ft activate %s here gives that up and lets it be started", m.Reason, name)
	}
	rec, err := d.disks.Get(uuid)
	if err != nil {
		return err
	}
	if rec.Active != "" {
		return fmt.Errorf("it went on at %s, or always ran there, and what is here of it is of the past; protect it there to this host, or give up what happened there with virt-ft activate --force %s", rec.Active, name)
	}
	switch m, err := d.store.Get(uuid); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err // as good as a marker that says no
	case m.Role == marker.RolePrimary && (m.Armed() || m.Phase == marker.PhaseLost):
		return fmt.Errorf("what became of its protection to %s is not known; restart virt-ft's daemon", m.PeerName)
	}
	return nil
}
