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

// TestThereAndBack loses QEMU on A, protects the guest on B to A, and loses
// QEMU on B: it is the same guest all the time.
func TestThereAndBack(t *testing.T) {
	p := newPair(t, "")
	g := p.guest(lab.GuestOptions{})
	born := p.tickFrom(p.A)
	p.protect(p.A, g.Name)
	p.killQEMU(p.A, g.Name)
	p.state(p.B, g.Name, "active")
	p.verified(p.B)
	p.protect(p.B, g.Name)
	p.killQEMU(p.B, g.Name)
	p.state(p.A, g.Name, "active")
	back := p.verified(p.A)
	if back.BootID != born.BootID || back.Pid != born.Pid {
		t.Fatalf("it is another guest: boot %v pid %d became %v pid %d", born.BootID, born.Pid, back.BootID, back.Pid)
	}
	// What libvirt users do with any domain.
	for _, do := range []string{"suspend", "resume", "destroy"} {
		_, err := p.A.Virsh(p.step(), do, g.Name)
		p.must(err)
	}
}

// TestProtectChangesNothing compares the domain's XML, and looks for what
// unprotect may have left in QEMU.
func TestProtectChangesNothing(t *testing.T) {
	p := newPair(t, "")
	g := p.guest(lab.GuestOptions{})
	xml := func() string {
		x, err := p.A.Virsh(p.step(), "dumpxml", g.Name)
		p.must(err)
		return x
	}
	before, filesBefore := xml(), p.files(p.A, g.Name)
	p.protect(p.A, g.Name)
	if now := xml(); now != before {
		t.Errorf("protecting changed the domain:\n%s\nbecame\n%s", before, now)
	}
	_, err := p.A.Ctl(p.step(), "unprotect", g.Name)
	p.must(err)
	if now := xml(); now != before {
		t.Errorf("the domain was changed:\n%s\nbecame\n%s", before, now)
	}
	if now := p.files(p.A, g.Name); now != filesBefore {
		t.Errorf("QEMU holds other files than before:\n%s\nwere\n%s", now, filesBefore)
	}
	if out, err := p.B.Virsh(p.step(), "list", "--all", "--name"); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("host B still has %q (%v)", out, err)
	}
	p.verified(p.A)
}

// files lists what a domain's QEMU has open, without what comes and goes.
func (p *pair) files(h *lab.Host, domain string) string {
	p.t.Helper()
	pid, err := h.QEMU(domain)
	p.must(err)
	return openFiles(p.t, pid)
}

// TestHostLost cuts the power of A: nobody says goodbye.
func TestHostLost(t *testing.T) {
	p := newPair(t, "")
	g := p.guest(lab.GuestOptions{})
	p.protect(p.A, g.Name)
	p.tickFrom(p.A)
	p.A.PowerOff()
	p.state(p.B, g.Name, "active")
	p.verified(p.B)
}

// TestLinkCut cuts the replication link while both hosts live: the guest runs
// on exactly one of them afterwards.
func TestLinkCut(t *testing.T) {
	p := newPair(t, "")
	g := p.guest(lab.GuestOptions{})
	p.protect(p.A, g.Name)
	p.must(p.CutReplication())
	p.state(p.A, g.Name, "alone")
	p.state(p.B, g.Name, "waiting")
	p.verified(p.A)
	p.must(p.HealReplication())
	p.state(p.A, g.Name, "protected")
	p.killQEMU(p.A, g.Name)
	p.state(p.B, g.Name, "active")
	p.verified(p.B)
}
