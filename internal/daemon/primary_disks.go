package daemon

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/virt"
)

// noteSources writes down where the guest's images are.
func (p *primary) noteSources(list []virt.Disk) {
	err := p.d.disks.Change(p.uuid, p.name, func(rec *marker.DiskRecord) {
		clear(rec.Disks)
		for _, disk := range list {
			rec.Disks[disk.Target] = marker.DiskImage{Path: disk.Path, Kind: marker.ImageSource, Raw: disk.Format == "raw" && !disk.Backing}
		}
		rec.Active, rec.Since = "", p.generation()
	})
	if err != nil {
		p.log.Error("the record of the guest's disks could not be written", "err", err)
		p.warn("record of disks not written: " + err.Error())
	}
	clearStale(p.ctx, p.log, p.dom)
}

// clearStale takes back what an earlier life of the guest elsewhere left in the
// definition of a domain whose guest runs here.
func clearStale(ctx context.Context, log *slog.Logger, dom *virt.Domain) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), guestCallTimeout)
	defer cancel()
	if err := dom.ClearStale(ctx); err != nil && !errors.Is(err, virt.ErrNoDomain) {
		log.Warn("the domain's definition may still say that its disks are stale", "err", err)
	}
}

// diskPlaces is where the operator wants the backup's images.
func (p *primary) diskPlaces() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mark.Disks
}

// noteGone writes down that a guest that is gone here may go on at the peer, unless
// that is known; whether it does is found out.
func (p *primary) noteGone(reason string) {
	if rec, err := p.d.disks.Get(p.uuid); err == nil && rec.Active != "" {
		p.persist(p.m.Generation(), marker.PhaseEnded, reason)
		return
	}
	p.mu.Lock()
	m := p.mark
	p.mu.Unlock()
	if err := p.d.lost(m, reason, false); err != nil {
		p.log.Error("the marker could not be written: nothing keeps the guest from being started here", "err", err)
	}
}

// noteStale writes down that the guest's images here are of the past: it goes on
// at the peer.
func (p *primary) noteStale() {
	gen, peer := uint64(p.m.Generation())+1, p.peerName() // or a later one; ours is over
	had, err := p.d.noteStale(p.uuid, p.name, peer, gen)
	if err != nil {
		p.log.Error("the record of the guest's disks could not be written: nothing here says that they are stale", "err", err)
	}
	if !had {
		return
	}
	p.async(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), guestCallTimeout)
		defer cancel()
		err := p.dom.NoteStale(ctx, virt.Stale{Generation: gen, ActiveHost: peer, Since: time.Now()})
		if err != nil && !errors.Is(err, virt.ErrNoDomain) {
			p.log.Warn("the domain's definition does not say that its disks are stale", "err", err)
		}
	})
}

// noteHere takes back that a guest went on elsewhere: it runs here, or a standby of
// it, and what its disks are here is written down by who opens them.
func (d *Daemon) noteHere(uuid, name string) {
	rec, err := d.disks.Get(uuid)
	if err == nil && rec.Active != "" {
		err = d.disks.Change(uuid, name, func(rec *marker.DiskRecord) { rec.Active = "" })
	}
	if err != nil {
		d.log.Error("the record of the guest's disks could not be written", "domain", name, "err", err)
	}
}

// noteStale writes down that a guest went on elsewhere, and reports whether it
// had disks here.
func (d *Daemon) noteStale(uuid, name, host string, gen uint64) (had bool, err error) {
	err = d.disks.Change(uuid, name, func(rec *marker.DiskRecord) {
		had = len(rec.Disks) > 0
		rec.Become(marker.ImageStale)
		rec.Active, rec.Since = host, gen
	})
	return had, err
}

// reportDisks adds what status shows of the guest's disks.
func (p *primary) reportDisks(s *control.Status) {
	l := p.currentLink()
	if l == nil {
		return
	}
	d := l.disks.Load()
	if d == nil {
		return
	}
	for i, st := range d.src.Stats() {
		s.Disks = append(s.Disks, control.DiskStatus{Name: d.list[i].Target, Path: d.list[i].Path, SizeBytes: d.sizes[i].SizeBytes,
			WrittenBytes: uint64(st.WrittenBytes), SentBytes: uint64(st.ShippedBytes), EqualBytes: uint64(st.EqualBytes)})
	}
}
