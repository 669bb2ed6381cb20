package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/replica"
)

const (
	// reprotectEvery is how often is asked whether a guest's old host is back.
	reprotectEvery = time.Second
	// reprotectMax is the longest pause after tries that came to nothing.
	reprotectMax = time.Minute
)

// reprotect protects a guest that was taken over to the host that it came from, as
// soon as that host answers and has ended its own copy. It brings there what
// differs, disks included. It ends with the daemon, with b, or when it is done.
func (d *Daemon) reprotect(b *backup) {
	if !d.cfg.Reprotect {
		return
	}
	b.mu.Lock()
	req := control.ProtectRequest{Domain: b.uuid, To: b.mark.PeerName, Arbiter: b.mark.Arbiter}
	b.mu.Unlock()
	if _, ok := d.cfg.Peers[req.To]; !ok {
		b.log.Warn("the guest is not protected again by itself: its old host is not among the peers", "host", req.To)
		return
	}
	for wait := reprotectEvery; ; {
		select {
		case <-b.done:
			return
		case <-d.ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := d.peerIsFree(b, req.To); err != nil {
			b.log.Debug("the guest's old host is not ready for it", "host", req.To, "err", err)
			wait = min(wait+reprotectEvery/2, 5*reprotectEvery)
			continue
		}
		err := d.protectAgain(req)
		if err == nil {
			return
		}
		b.log.Warn("the guest is not protected again yet", "to", req.To, "err", err)
		b.warn("not protected to " + req.To + " yet: " + err.Error())
		wait = min(2*wait, reprotectMax)
	}
}

// peerIsFree returns nil when the old host has nothing of the guest any more but
// its past.
func (d *Daemon) peerIsFree(b *backup, to string) error {
	addr, err := d.peerAddr(to)
	if err != nil {
		return err
	}
	w, err := d.askPeer(d.ctx, addr, b.uuid, b.name)
	switch {
	case err != nil:
		return err
	case w.State != replica.BackupNone:
		return errors.New("it has the guest, or a checkpoint of it")
	}
	return nil
}

// prepareMax is what finding out whether a guest can be protected may take: this host,
// the guest and the peer are looked at one after the other, and a libvirtd that probes
// QEMU first takes most of a minute.
const prepareMax = 2 * time.Minute

// protectAgain begins a protection; what becomes of it shows in status.
func (d *Daemon) protectAgain(req control.ProtectRequest) error {
	ctx, cancel := context.WithTimeout(d.ctx, prepareMax)
	defer cancel()
	p, err := d.prepare(ctx, req, nil)
	if err != nil {
		return err
	}
	p.log.Info("the guest is protected again, to the host that it came from", "host", req.To)
	p.start()
	return nil
}
