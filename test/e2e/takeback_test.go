package e2e

import (
	"os"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/lab"
)

// takenBack has B win the right to the guest, and be lost before it uses it: A's copy
// stays paused. A person lets it go on, and B, back from the dead, does not run.
func takenBack(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	before := p.tickFrom(p.A)
	began := time.Now()
	p.claimFor(p.B, g.Name)
	p.must(p.FreezeHost(p.B))
	p.t.Cleanup(func() { _ = p.ThawHost(p.B) }) // a test that failed ends sooner
	p.state(p.A, g.Name, "fenced")
	if _, err := p.A.Ctl(p.step(), "activate", g.Name); err == nil || !strings.Contains(err.Error(), "--force") {
		p.t.Errorf("activate of a copy that may run elsewhere: %v", err)
	}
	p.must(p.mayNotRun(p.A, g.Name))
	_, err := p.A.Ctl(p.step(), "activate", "--force", g.Name)
	p.must(err)
	if now := p.verified(p.A); now.BootID != before.BootID || now.Pid != before.Pid {
		p.t.Errorf("it is another guest: %+v became %+v", before, now)
	}
	p.must(p.ThawHost(p.B))
	p.state(p.A, g.Name, "protected") // and B is its backup again
	p.must(p.mayNotRun(p.B, g.Name))
	p.heardOnce(began, p.B)
	p.unprotect(g.Name)
}

// claimFor has h win the next generation of the guest that A protects, as its daemon
// would.
func (p *pair) claimFor(h *lab.Host, domain string) {
	p.t.Helper()
	dir, err := h.Root(lab.SharedDir)
	p.must(err)
	id, err := h.Root("/etc/machine-id")
	p.must(err)
	machine, err := os.ReadFile(id)
	p.must(err)
	a, err := arbiter.OpenFile(p.step(), dir, arbiter.FileOptions{Machine: strings.TrimSpace(string(machine))})
	p.must(err)
	uuid := strings.TrimSpace(p.virsh(p.A, "domuuid", domain))
	generation := p.state(p.A, domain, "protected").Generation + 1
	v, err := a.Claim(p.step(), arbiter.Claim{Domain: uuid, Generation: generation, Host: h.Name})
	p.must(err)
	if !v.Won {
		p.t.Fatalf("generation %d: %+v", generation, v)
	}
}
