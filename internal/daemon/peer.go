package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// askPeer asks the daemon at addr what it has of a domain; no session begins.
func (d *Daemon) askPeer(ctx context.Context, addr, uuid, name string) (*replica.Welcome, error) {
	id, err := replica.ParseUUID(uuid)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := replica.Dialer{Transport: d.transport(), HandshakeTimeout: dialTimeout}
	// The protection is not known to who asks about it; the guest's name for it does.
	return dialer.Ask(ctx, addr, id, replica.Hello{Domain: id, DomainName: name, Host: d.cfg.Host, Software: d.Version().Version})
}

// answerPeer tells another daemon what this host has of a domain: BackupActive when
// the guest runs here, BackupStandby when it could go on here, BackupNone when it
// can do neither, with the generation under which it ran here last: one that the asker
// does not know tells that the guest ran here since. While all that is being
// decided nobody is told anything.
func (d *Daemon) answerPeer(ctx context.Context, uuid string, p *primary, b *backup, w *replica.Welcome) (*replica.Welcome, *replica.Refuse) {
	w.Generation = d.ranUnder(uuid)
	switch {
	case p != nil:
		switch state := p.stateNow(); state {
		case ftengine.PrimaryConnecting.String(), ftengine.PrimarySyncing.String(), ftengine.PrimaryProtected.String(), ftengine.PrimaryAlone.String():
			w.State, w.Generation = replica.BackupActive, p.generation()
		default:
			return nil, busy(fmt.Sprintf("%s is %s here", p.name, state))
		}
	case b != nil:
		b.holdMu.Lock()
		holds, runs := b.holds, b.runs
		b.holdMu.Unlock()
		switch state := b.stateNow(); {
		case runs:
			w.State, w.Generation = replica.BackupActive, uint64(holds)
		case state == ftengine.BackupSyncing.String(), state == ftengine.BackupStandby.String(), state == ftengine.BackupOrphaned.String():
			w.State, w.Generation = replica.BackupStandby, b.generation()
		case state != ftengine.BackupWaiting.String():
			return nil, busy(fmt.Sprintf("%s is %s here", b.name, state))
		}
	default:
		// Nobody protects it here, but it may run.
		dom, err := d.virt.Lookup(ctx, uuid)
		if errors.Is(err, virt.ErrNoDomain) {
			return w, nil
		}
		var st virt.State
		if err == nil {
			st, err = dom.State(ctx)
		}
		if err != nil {
			return nil, busy("libvirt does not say whether it runs here")
		}
		if st.Active() {
			w.State = replica.BackupActive
		}
	}
	return w, nil
}

// stateNow is what status shows.
func (b *base) stateNow() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status.State
}
