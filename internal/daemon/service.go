package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// connectGrace is how long protect waits for a peer to answer at all.
	connectGrace = 10 * time.Second
	// endGrace is how long a command waits for a protection to end.
	endGrace = 60 * time.Second
)

// Version implements control.Service.
func (d *Daemon) Version() control.Version {
	v := control.BuildVersion()
	v.Host = d.cfg.Host
	return v
}

// Protect implements control.Service.
func (d *Daemon) Protect(ctx context.Context, req control.ProtectRequest, progress func(control.Status)) error {
	p, err := d.prepare(ctx, req, progress)
	if err != nil || req.DryRun {
		return err
	}
	changed, stop := p.subscribe()
	defer stop()
	p.start()
	began := time.Now()
	tick := time.NewTicker(200 * time.Millisecond) // rates and ages change without an event
	defer tick.Stop()
	for {
		st := p.report()
		progress(st)
		if st.State == control.StateProtected {
			return nil
		}
		if st.State == ftengine.PrimaryConnecting.String() && st.Error != "" && time.Since(began) > connectGrace {
			_ = d.endPrimary(p, "the backup never answered")
			return control.Errorf(control.CodeUnavailable, "is virt-ft's daemon running there, and the port open?", "%s", st.Error)
		}
		select {
		case <-p.done:
			return control.Errorf(control.CodeRefused, "", "%s is not protected: %s", p.name, p.lastReason())
		case <-ctx.Done():
			_ = d.endPrimary(p, "protect was interrupted")
			return ctx.Err()
		case <-changed:
		case <-tick.C:
		}
	}
}

// prepare checks everything that can be known before the guest is touched and
// registers the runner, or if nothing is to be done tells plan what would be in force.
func (d *Daemon) prepare(ctx context.Context, req control.ProtectRequest, plan func(control.Status)) (*primary, error) {
	pacing := req.Pacing.Apply(pacingOf(d.cfg))
	if err := d.checkPacing(pacing); err != nil {
		return nil, err
	}
	addr, err := d.peerAddr(req.To)
	if err != nil {
		return nil, err
	}
	dom, pid, err := d.running(ctx, req.Domain)
	if err != nil {
		return nil, err
	}
	if err := d.wake(ctx, dom.UUID()); err != nil {
		return nil, err
	}
	if err := checkPlaces(ctx, dom, req.Disks); err != nil {
		return nil, err
	}
	kind := req.Arbiter
	if kind == "" {
		kind = d.cfg.Arbiter.Kind
	}
	if err := d.refuse(ctx, dom, addr, kind, req.Disks); err != nil {
		return nil, err
	}
	arb, err := d.arbiterFor(ctx, kind, "")
	if err != nil {
		return nil, control.Errorf(control.CodeInvalid, "", "%w", err)
	}
	d.mu.Lock()
	untaken := d.untaken[dom.UUID()]
	d.mu.Unlock()
	if untaken {
		return nil, control.Errorf(control.CodeConflict, "wait, and see the daemon's log", "an earlier protection of %s is still to be taken up", dom.Name())
	}
	gen := d.store.LastGeneration(dom.UUID())
	if r, err := arb.Inspect(ctx, dom.UUID()); err == nil {
		gen = max(gen, r.Generation)
	} else {
		return nil, control.Errorf(control.CodeUnavailable, "", "the arbiter does not answer: %w", err)
	}
	// The peer may know of more: it takes an older generation for an old copy.
	if w, err := d.askPeer(ctx, addr, dom.UUID(), dom.Name()); err == nil {
		gen = max(gen, w.Generation)
	}
	m := marker.Marker{Domain: dom.Name(), UUID: dom.UUID(), Role: marker.RolePrimary, Phase: marker.PhaseConnecting, Protection: strings.ReplaceAll(randomUUID(), "-", ""),
		Generation: gen + 1, Peer: addr, PeerName: req.To, Arbiter: kind, ArbiterID: identityOf(arb), Pacing: marker.Pacing(pacing), Disks: req.Disks}
	if req.DryRun {
		plan(planned(m))
		return nil, d.mayRegister(m)
	}
	return d.register(m, dom, pid)
}

// planned is what status would show of a protection at its beginning.
func planned(m marker.Marker) control.Status {
	s := control.Status{Domain: m.Domain, UUID: m.UUID, Role: string(m.Role), Peer: m.Peer, Generation: m.Generation, Arbiter: m.Arbiter, Pacing: control.Pacing(m.Pacing)}
	for name, path := range m.Disks {
		s.Disks = append(s.Disks, control.DiskStatus{Name: name, Path: path})
	}
	slices.SortFunc(s.Disks, func(a, b control.DiskStatus) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// mayRegister reports why register would refuse.
func (d *Daemon) mayRegister(m marker.Marker) error {
	d.mu.Lock()
	b, p := d.backups[m.UUID], d.primaries[m.UUID]
	d.mu.Unlock()
	switch {
	case b != nil && !b.active() && !b.idle():
		return control.Errorf(control.CodeConflict, "run virt-ft protect on the host where the guest runs", "this host stands by for %s", m.Domain)
	case p != nil:
		return control.Errorf(control.CodeConflict, "see virt-ft status "+m.Domain, "%s is protected already, to %s", m.Domain, p.peerAddr)
	}
	return nil
}

// register makes the runner of a domain's primary, which must be the only one.
func (d *Daemon) register(m marker.Marker, dom *virt.Domain, pid int) (*primary, error) {
	arb, err := d.arbiterFor(d.ctx, m.Arbiter, m.ArbiterID)
	if err != nil {
		return nil, err
	}
	if err := d.mayRegister(m); err != nil {
		return nil, err
	}
	d.mu.Lock()
	old := d.backups[m.UUID]
	d.mu.Unlock()
	if old != nil {
		old.stop() // its work is done, or never began: the guest is an ordinary one here now
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.primaries[m.UUID]; p != nil {
		return nil, control.Errorf(control.CodeConflict, "see virt-ft status "+m.Domain, "%s is protected already, to %s", m.Domain, p.peerAddr)
	}
	d.dropNamesakes(m)
	delete(d.lostOnes, m.UUID) // its new life counts
	p, err := newPrimary(d, dom, pid, m, arb)
	if err != nil {
		return nil, err
	}
	d.primaries[m.UUID] = p
	return p, nil
}

// peerAddr resolves a name of the configuration, or takes to as an address.
func (d *Daemon) peerAddr(to string) (string, error) {
	if to == "" {
		return "", control.Errorf(control.CodeInvalid, "name it with --to HOST", "no peer was named")
	}
	addr := to
	if a, ok := d.cfg.Peers[to]; ok {
		addr = a
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), config.DefaultPort)
	}
	return addr, nil
}

func (d *Daemon) running(ctx context.Context, name string) (*virt.Domain, int, error) {
	dom, err := d.lookup(ctx, name)
	if err != nil {
		return nil, 0, err
	}
	st, err := dom.State(ctx)
	if err != nil {
		return nil, 0, err
	}
	if !st.Active() {
		return nil, 0, control.Errorf(control.CodeConflict, "start it first: virsh start "+dom.Name(), "%s does not run on this host", dom.Name())
	}
	pid, err := dom.PID()
	if err != nil {
		return nil, 0, err
	}
	return dom, pid, nil
}

func (d *Daemon) lookup(ctx context.Context, name string) (*virt.Domain, error) {
	dom, err := d.virt.Lookup(ctx, name)
	switch {
	case errors.Is(err, virt.ErrNoDomain):
		return nil, control.Errorf(control.CodeNotFound, "virsh list --all shows the domains of this host", "there is no domain %q on this host", name)
	case errors.Is(err, virt.ErrDisconnected):
		return nil, control.Errorf(control.CodeUnavailable, "is libvirtd running?", "libvirt at %s does not answer: %w", d.cfg.LibvirtURI, err)
	}
	return dom, err
}

// endPrimary ends a protection in order and waits for it, within bounds. One of
// which it is not known whose the guest is goes on, and ends when that is.
func (d *Daemon) endPrimary(p *primary, reason string) error {
	go p.post(ftengine.Unprotect{Reason: reason})
	select {
	case <-p.done:
		return nil
	case <-time.After(endGrace):
	}
	switch state := p.stateNow(); state {
	case ftengine.PrimaryUndecided.String(), ftengine.PrimaryFenced.String(), ftengine.PrimarySwitching.String(), ftengine.PrimaryStopping.String():
		return control.Errorf(control.CodeUnavailable, "bring the arbiter and the backup back", "%s is %s, and its protection ends when it is known which host the guest belongs to", p.name, state)
	default:
		p.log.Error("the protection does not end in time; it is cut off", "after", endGrace)
		p.stop()
		return nil
	}
}

// Unprotect implements control.Service.
func (d *Daemon) Unprotect(ctx context.Context, domain string) error {
	p, b := d.find(domain)
	switch {
	case p != nil:
		return d.endPrimary(p, "unprotected by the operator")
	case b != nil && b.connected():
		return control.Errorf(control.CodeConflict, "run virt-ft unprotect on host "+b.peerName(), "this host stands by for %s, whose primary is connected", b.name)
	case b != nil && b.active():
		b.stop()
		// Else the next daemon would protect it again.
		return b.keep(func(m *marker.Marker) {
			m.Phase, m.Ran, m.Reason = marker.PhaseEnded, true, "unprotected by the operator"
		})
	case b != nil:
		go b.post(ftengine.StandDown{Reason: "the operator gave the standby up"})
		select {
		case <-b.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return d.notProtected(ctx, domain)
}

// Activate implements control.Service.
func (d *Daemon) Activate(ctx context.Context, domain string, force bool) error {
	p, b := d.find(domain)
	switch {
	case b != nil:
		if err := b.wish(ctx, ftengine.OperatorActivate{Force: force}); err != nil {
			return control.Errorf(control.CodeConflict, "", "%s was not activated: %w", domain, err)
		}
		return nil
	case p != nil:
		// A person decides that the guest goes on here, whatever the backup holds.
		err := p.wish(ctx, ftengine.OperatorActivate{Force: force})
		if err != nil && force && p.stateNow() == ftengine.PrimaryFenced.String() {
			err = p.takeBack(ctx)
		}
		if err != nil {
			return control.Errorf(control.CodeConflict, "", "%s does not go on alone here: %w", domain, err)
		}
		return nil
	}
	return d.release(ctx, domain, force)
}

// find returns the runner of a domain, by name or UUID. A name may be that of
// another domain, too, whose guest is gone and for whose primary we still wait.
func (d *Daemon) find(domain string) (*primary, *backup) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for uuid, p := range d.primaries {
		if uuid == domain || p.name == domain {
			return p, nil
		}
	}
	var found *backup
	for uuid, b := range d.backups {
		if uuid == domain || b.name == domain && (found == nil || found.idle()) {
			found = b
		}
		if uuid == domain {
			break
		}
	}
	return nil, found
}

// notProtected says so, with the last word on the domain if there is one.
func (d *Daemon) notProtected(ctx context.Context, domain string) error {
	ms, _ := d.store.All()
	slices.SortFunc(ms, func(a, b marker.Marker) int { return b.At.Compare(a.At) }) // of guests of one name, the last
	for _, m := range ms {
		if m.UUID != domain && m.Domain != domain {
			continue
		}
		d.mu.Lock()
		untaken := d.untaken[m.UUID]
		d.mu.Unlock()
		if untaken {
			return control.Errorf(control.CodeUnavailable, "ask again in a moment; the daemon's log says what it waits for",
				"the protection of %s could not be taken up again yet", m.Domain)
		}
		if m.Reason != "" {
			remedy := ""
			if rec, err := d.disks.Get(m.UUID); err == nil && rec.Active != "" {
				remedy = fmt.Sprintf("do not start it here: its disks on this host are of the past, the guest went on at %s", rec.Active)
			}
			return control.Errorf(control.CodeNotProtected, remedy, "%s is not protected any more: %s", m.Domain, m.Reason)
		}
	}
	if _, err := d.lookup(ctx, domain); err != nil {
		return err
	}
	return control.Errorf(control.CodeNotProtected, fmt.Sprintf("virt-ft protect %s --to HOST", domain), "%s is not protected", domain)
}

// Status implements control.Service.
func (d *Daemon) Status(ctx context.Context, domain string) ([]control.Status, error) {
	if domain != "" {
		p, b := d.find(domain)
		switch {
		case p != nil:
			return []control.Status{p.report()}, nil
		case b != nil:
			return []control.Status{b.report()}, nil
		}
		return nil, d.notProtected(ctx, domain)
	}
	d.mu.Lock()
	var all []control.Status
	for _, p := range d.primaries {
		all = append(all, p.report())
	}
	for _, b := range d.backups {
		all = append(all, b.report())
	}
	d.mu.Unlock()
	slices.SortFunc(all, func(a, b control.Status) int { return strings.Compare(a.Domain, b.Domain) })
	return all, nil
}

// Events implements control.Service.
func (d *Daemon) Events(ctx context.Context, q control.EventQuery) (<-chan control.Event, error) {
	return d.hub.subscribe(ctx, q), nil
}

// Domains implements control.Service.
func (d *Daemon) Domains(ctx context.Context) ([]control.Domain, error) {
	all, err := d.virt.Domains(ctx)
	if err != nil {
		return nil, control.Errorf(control.CodeUnavailable, "is libvirtd running?", "libvirt at %s does not answer: %w", d.cfg.LibvirtURI, err)
	}
	list := make([]control.Domain, 0, len(all))
	d.mu.Lock()
	for _, i := range all {
		dom := control.Domain{Name: i.Name, UUID: i.UUID, Active: i.State.Active()}
		switch {
		case d.primaries[i.UUID] != nil:
			dom.Role = control.RolePrimary
		case d.backups[i.UUID] != nil:
			dom.Role = control.RoleBackup
		}
		list = append(list, dom)
	}
	d.mu.Unlock()
	slices.SortFunc(list, func(a, b control.Domain) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Epochs implements control.Service.
func (d *Daemon) Epochs(ctx context.Context, domain string, last int, follow bool) (<-chan control.Epoch, error) {
	p, b := d.find(domain)
	switch {
	case p != nil:
		ctx, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(p.ctx, cancel)
		context.AfterFunc(ctx, func() { stop() })
		return p.stats.follow(ctx, last, follow), nil
	case b != nil:
		return nil, control.Errorf(control.CodeConflict, "run virt-ft epochs on host "+b.peerName(), "this host stands by for %s", b.name)
	}
	return nil, d.notProtected(ctx, domain)
}
