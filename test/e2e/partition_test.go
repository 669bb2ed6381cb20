package e2e

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// partitions are those of TestOutput's stories in which networks are lost in part, and
// more than one at once. Whatever it is, the guest is heard from one host at a time,
// and from none that may not go on.
func partitions() []outputStory {
	return []outputStory{
		{"clients cut off", clientsCutOff, true},
		{"primary is not heard", func(p *pair, g *lab.Guest, c *lab.Client) { oneWay(p, g, c, p.B) }, true},
		{"backup is not heard", func(p *pair, g *lab.Guest, c *lab.Client) { oneWay(p, g, c, p.A) }, false},
		{"backup without an arbiter", backupCutOff, false},
		{"primary without an arbiter", primaryCutOff, false},
		{"frozen host", frozenHost, false},
	}
}

// heardOnce fails if, since then, anything with the guest's address came out of
// host from after the guest was heard from another one.
func (p *pair) heardOnce(since time.Time, from *lab.Host) {
	p.t.Helper()
	split, err := p.out.Split(since, from.Name)
	p.must(err)
	if split != (lab.Split{}) {
		all, err := p.out.Speeches(since)
		p.t.Errorf("%d frames, %d of them ticks, came from %s after the guest was heard from the other host: %+v (%v)", split.Frames, split.Ticks, from.Name, all, err)
	}
	p.spokeOnce(since)
}

// undisturbed fails unless the protection of before goes on, in the same session.
func (p *pair) undisturbed(domain string, before lab.Protection) {
	p.t.Helper()
	p.eventually("no epochs are acknowledged", func() error {
		now := p.state(p.A, domain, "protected")
		if now.Generation != before.Generation || now.Epoch.Acked < before.Epoch.Acked {
			p.t.Fatalf("another protection than before: %+v became %+v", before, now)
		}
		if now.Epoch.Acked < before.Epoch.Acked+3 {
			return errStillThere
		}
		return nil
	})
	p.state(p.B, domain, "standby")
}

// clientsCutOff pulls the cable between A and the clients. Nothing moves: virt-ft
// watches hosts and guests, not the networks that guests use. The connections
// outlive it, as they outlive it without virt-ft.
func clientsCutOff(p *pair, g *lab.Guest, c *lab.Client) {
	p.protect(p.A, g.Name)
	p.answered(c)
	before := p.state(p.A, g.Name, "protected")
	p.must(p.A.CutClient())
	p.undisturbed(g.Name, before) // what was on its way has arrived
	p.muteWhile(c, func() { p.undisturbed(g.Name, p.state(p.A, g.Name, "protected")) })
	p.must(p.A.HealClient())
	p.answered(c)
	p.undisturbed(g.Name, before)
	p.unprotect(g.Name)
}

// decided waits until one of the hosts goes on without the other, and makes that
// one A. It says which one did not.
func (p *pair) decided(domain string) (loser *lab.Host) {
	p.t.Helper()
	p.eventually("nobody goes on", func() error {
		for _, h := range p.Hosts() {
			ps, err := h.Poll(p.step(), domain)
			if err == nil && len(ps) == 1 && (ps[0].State == "alone" || ps[0].State == "active") {
				if loser = p.Peer(h); h != p.A {
					p.turn()
				}
				return nil
			}
		}
		return errStillThere
	})
	return loser
}

// oneWay breaks one fibre of the link's two: deaf hears nothing any more, and is
// heard. The guest goes on at one of the hosts, whichever asked first.
func oneWay(p *pair, g *lab.Guest, c *lab.Client, deaf *lab.Host) {
	p.kept(p.A, g.Name)
	p.answered(c)
	began, home := time.Now(), p.A
	p.must(p.DeafenReplication(deaf))
	loser := p.decided(g.Name)
	p.answered(c)
	p.must(p.HealReplication())
	p.ends(g, home, loser)
	p.heardOnce(began, loser)
}

// ends waits, on a link that is whole again, until all knows who won: the guest
// is protected again if it stayed, and no copy is left if it moved.
func (p *pair) ends(g *lab.Guest, home, loser *lab.Host) {
	p.t.Helper()
	if loser != home {
		p.state(home, g.Name, "protected")
		return
	}
	p.noQEMU(loser, g.Name)
}

// noQEMU waits until no copy of the guest is left on a host.
func (p *pair) noQEMU(h *lab.Host, domain string) {
	p.t.Helper()
	p.eventually("a copy still runs on "+h.Name, func() error {
		if _, err := h.QEMU(domain); err != nil {
			return nil
		}
		return errStillThere
	})
}

// mayNotRun is an error while h runs the guest.
func (p *pair) mayNotRun(h *lab.Host, domain string) error {
	out, err := h.Virsh(p.step(), "domstate", domain)
	if err == nil && strings.TrimSpace(out) == "running" {
		return fmt.Errorf("%s runs its copy", h.Name)
	}
	return nil // paused, or gone
}

// backupCutOff takes link and arbiter from B: it may not go on, and A does.
func backupCutOff(p *pair, g *lab.Guest, c *lab.Client) {
	p.kept(p.A, g.Name)
	p.answered(c)
	began := time.Now()
	p.must(errors.Join(p.B.HangArbiter(), p.CutReplication()))
	p.state(p.A, g.Name, "alone")
	p.answered(c)
	p.state(p.B, g.Name, "claiming", "orphaned")
	p.must(p.mayNotRun(p.B, g.Name))
	p.must(p.B.HealArbiter())
	p.state(p.B, g.Name, "waiting")
	p.must(p.HealReplication())
	p.state(p.A, g.Name, "protected")
	p.heardOnce(began, p.B)
}

// primaryCutOff takes link and arbiter from A, where the guest runs: B goes on,
// and A's copy is paused, and destroyed when A can ask again.
func primaryCutOff(p *pair, g *lab.Guest, c *lab.Client) {
	p.kept(p.A, g.Name)
	p.answered(c)
	began := time.Now()
	p.must(errors.Join(p.A.CutArbiter(), p.CutReplication()))
	p.state(p.B, g.Name, "active")
	p.answered(c)
	p.eventually("the copy that may not run runs", func() error { return p.mayNotRun(p.A, g.Name) })
	if _, err := p.A.QEMU(g.Name); err != nil {
		p.t.Errorf("who does not know that it lost keeps its copy: %v", err)
	}
	p.must(p.A.HealArbiter())
	p.noQEMU(p.A, g.Name)
	p.must(p.HealReplication())
	p.heardOnce(began, p.A)
	p.turn()
}

// frozenHost stops all of A until B has taken over, and lets it go on: the
// classic way to two copies. A says nothing, and ends its own.
func frozenHost(p *pair, g *lab.Guest, c *lab.Client) {
	p.protect(p.A, g.Name)
	p.answered(c)
	began := time.Now()
	p.must(p.FreezeHost(p.A))
	p.t.Cleanup(func() { _ = p.ThawHost(p.A) }) // a test that failed ends sooner
	p.state(p.B, g.Name, "active")
	p.answered(c)
	p.must(p.ThawHost(p.A))
	p.noQEMU(p.A, g.Name)
	p.answered(c)
	p.heardOnce(began, p.A)
	p.turn()
}
