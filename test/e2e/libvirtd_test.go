package e2e

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// TestLibvirtdAway has a host's libvirtd away when it is needed most, as while it is
// upgraded: what is to be done with the guest is done when it is back, and be it by
// the next daemon.
func TestLibvirtdAway(t *testing.T) {
	p := newPair(t, "reprotect = false\n")
	g := p.guest(small(lab.GuestOptions{}))
	for _, s := range []struct {
		name string
		tell func(*pair)
	}{
		{"take-over", func(p *pair) { takeOverAway(p, g, func(int) { p.must(p.B.Libvirtd.Start(p.step())) }) }},
		{"take-over, and the daemon is to stop", func(p *pair) { takeOverAway(p, g, func(behind int) { stopsMeanwhile(p, behind) }) }},
		{"resume", func(p *pair) { resumeAway(p, g, func() {}) }},
		{"resume, by the next daemon", func(p *pair) { resumeAway(p, g, func() { p.must(p.B.Daemon.Stop()) }) }},
		{"a copy that lost", func(p *pair) { loserAway(p, g) }},
	} {
		p.story(s.name, s.tell)
	}
}

// takeOverAway: the guest dies on A when B's libvirtd is not there. B waits for it, with
// what it keeps of the guest. back brings libvirtd back; B's log is known up to behind.
func takeOverAway(p *pair, g *lab.Guest, back func(behind int)) {
	p.protect(p.A, g.Name)
	behind := len(p.log(p.B))
	p.must(p.B.Libvirtd.Kill())
	p.killQEMU(p.A, g.Name)
	p.says(p.B, behind, "could not load the standby")
	back(behind)
	p.state(p.B, g.Name, "active")
	p.verified(p.B)
	p.unprotectTaken(g)
}

// stopsMeanwhile: somebody stops B's daemon, which has all that is left of the guest,
// before libvirtd is back.
func stopsMeanwhile(p *pair, behind int) {
	p.must(p.B.Daemon.Process().Signal(syscall.SIGTERM))
	p.says(p.B, behind, "this daemon stops when")
	p.must(p.B.Libvirtd.Start(p.step()))
	p.must(p.B.Daemon.Stop())
	p.tickFrom(p.B)
	p.must(p.B.Daemon.Start(p.step()))
}

// resumeAway: B's libvirtd goes between the moment in which the standby holds the
// guest and the one in which it is to go on. Then happens what then says.
func resumeAway(p *pair, g *lab.Guest, then func()) {
	p.protect(p.A, g.Name)
	behind := len(p.log(p.B))
	standby, err := p.B.QEMU(g.Name)
	p.must(err)
	thaw := p.freeze(standby) // it does not load before the arbiter is away
	p.killQEMU(p.A, g.Name)
	p.state(p.B, g.Name, "activating")
	p.must(p.B.CutArbiter())
	thaw()
	p.says(p.B, behind, "the arbiter does not take RUNNING")
	p.must(p.B.Libvirtd.Kill())
	p.must(p.B.HealArbiter())
	p.says(p.B, behind, "could not resume the standby")
	then()
	p.must(p.B.Libvirtd.Start(p.step()))
	if p.B.Daemon.Process() == nil {
		p.must(p.B.Daemon.Start(p.step()))
	}
	p.state(p.B, g.Name, "active")
	p.verified(p.B)
	if now, err := p.B.QEMU(g.Name); err != nil || now != standby {
		p.t.Errorf("another QEMU has the guest: %d, then %d (%v)", standby, now, err)
	}
	p.unprotectTaken(g)
}

// unprotectTaken ends the protection of a guest that B took over; B is A from then on.
func (p *pair) unprotectTaken(g *lab.Guest) {
	p.t.Helper()
	p.turn()
	p.unprotect(g.Name)
}

// loserAway: B wins while A's libvirtd is not there to end A's copy, and A's daemon
// stops, in order. Nobody hears of that copy, and the next daemon ends it.
func loserAway(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	behind, began := len(p.log(p.A)), time.Now()
	p.must(errors.Join(p.A.CutArbiter(), p.CutReplication()))
	p.state(p.B, g.Name, "active")
	p.says(p.A, behind, "did=pause")
	p.must(errors.Join(p.A.Libvirtd.Kill(), p.A.HealArbiter()))
	p.says(p.A, behind, "could not destroy the guest")
	p.must(p.A.Daemon.Stop())
	if _, err := p.A.QEMU(g.Name); err != nil {
		p.t.Errorf("there is no copy any more that could be heard: %v", err)
	}
	p.must(p.A.Libvirtd.Start(p.step()))
	p.must(p.A.Daemon.Start(p.step()))
	p.noQEMU(p.A, g.Name)
	p.must(p.HealReplication())
	p.verified(p.B)
	p.heardOnce(began, p.A)
}
