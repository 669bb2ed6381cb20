package e2e

import (
	"strings"
	"syscall"
	"testing"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// killQEMU kills the guest's QEMU on h.
func (p *pair) killQEMU(h *lab.Host, domain string) {
	p.t.Helper()
	pid, err := h.QEMU(domain)
	p.must(err)
	p.must(syscall.Kill(pid, syscall.SIGKILL))
}

// failoverSettings let a standby wait for a daemon not as long as it would.
func failoverSettings() string { return webSettings() + "[heartbeat]\ndaemon_grace = \"1s\"\n" }

// TestFailovers takes one guest through all that may happen to its host, to its
// daemon and to the link: it is the same guest all the time.
func TestFailovers(t *testing.T) {
	p := newPair(t, failoverSettings())
	g := p.guest(small(lab.GuestOptions{}))
	born := p.tickFrom(p.A)
	for _, s := range []struct {
		name string
		tell func(*pair, *lab.Guest)
	}{
		{"protect changes nothing", protectChangesNothing},
		{"there and back", thereAndBack},
		{"link cut", linkCut},
		{"clock goes on", clockGoesOn},
		{"host lost", hostLost},
		{"daemon killed while nobody watched", killedWhileNobodyWatched},
		{"daemon killed and the guest lives", daemonLost},
		{"taken back", takenBack},
		{"slow link", slowLink},
	} {
		p.story(s.name, func(p *pair) {
			s.tell(p, g)
			if now := p.verified(p.A); now.BootID != born.BootID || now.Pid != born.Pid {
				p.t.Errorf("it is another guest: boot %v pid %d became %v pid %d", born.BootID, born.Pid, now.BootID, now.Pid)
			}
		})
	}
	// What libvirt users do with any domain.
	for _, do := range []string{"suspend", "resume", "destroy"} {
		_, err := p.A.Virsh(p.step(), do, g.Name)
		p.must(err)
	}
}

// thereAndBack loses QEMU on A, protects the guest on B to A, and loses QEMU on
// B.
func thereAndBack(p *pair, g *lab.Guest) {
	screens := watch(p)
	p.protect(p.A, g.Name)
	p.shows(screens, p.A, g.Name, "protected")
	p.shows(screens, p.B, g.Name, "standby")
	p.killQEMU(p.A, g.Name)
	p.state(p.B, g.Name, "active")
	p.shows(screens, p.B, g.Name, "active")
	p.shows(screens, p.A, g.Name, "ended")
	remembered(p, p.B, g.Name)
	p.verified(p.B)
	p.protect(p.B, g.Name)
	p.killQEMU(p.B, g.Name)
	p.state(p.A, g.Name, "active")
}

// protectChangesNothing compares the domain's XML, and looks for what
// unprotect may have left in QEMU.
func protectChangesNothing(p *pair, g *lab.Guest) {
	xml := func() string {
		x, err := p.A.Virsh(p.step(), "dumpxml", g.Name)
		p.must(err)
		return x
	}
	before, filesBefore := xml(), p.files(p.A, g.Name)
	p.protect(p.A, g.Name)
	if now := xml(); now != before {
		p.t.Errorf("protecting changed the domain:\n%s\nbecame\n%s", before, now)
	}
	p.unprotect(g.Name)
	if now := xml(); now != before {
		p.t.Errorf("the domain was changed:\n%s\nbecame\n%s", before, now)
	}
	if now := p.files(p.A, g.Name); now != filesBefore {
		p.t.Errorf("QEMU holds other files than before:\n%s\nwere\n%s", now, filesBefore)
	}
	if out, err := p.B.Virsh(p.step(), "list", "--all", "--name"); err != nil || strings.TrimSpace(out) != "" {
		p.t.Errorf("host B still has %q (%v)", out, err)
	}
}

// files lists what a domain's QEMU has open, without what comes and goes.
func (p *pair) files(h *lab.Host, domain string) string {
	p.t.Helper()
	pid, err := h.QEMU(domain)
	p.must(err)
	return openFiles(p.t, pid)
}

// hostLost cuts the power of A: nobody says goodbye.
func hostLost(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	p.tickFrom(p.A)
	p.A.PowerOff()
	p.state(p.B, g.Name, "active")
	p.verified(p.B)
	p.powerOn(p.A)
	p.turn()
}

// linkCut cuts the replication link while both hosts live: the guest runs
// on exactly one of them afterwards.
func linkCut(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	p.must(p.CutReplication())
	p.state(p.A, g.Name, "alone")
	p.state(p.B, g.Name, "waiting")
	p.verified(p.A)
	p.must(p.HealReplication())
	p.state(p.A, g.Name, "protected")
	p.killQEMU(p.A, g.Name)
	p.state(p.B, g.Name, "active")
	p.turn()
}
