package e2e

import (
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// TestCopyOfThePast: A's daemon dies, B takes the guest over, and somebody ends B's
// protection, or the guest itself there. A's copy, which nobody watched meanwhile, is
// of the past when the daemon is back: it is ended, and nobody hears of it.
func TestCopyOfThePast(t *testing.T) {
	p := newPair(t, "reprotect = false\nheartbeat.daemon_grace = \"1s\"\n")
	g := p.guest(small(lab.GuestOptions{}))
	p.protect(p.A, g.Name)
	began := time.Now()
	p.must(p.A.Daemon.Kill())
	p.state(p.B, g.Name, "active")
	p.tickFrom(p.B)
	_, err := p.B.Ctl(p.step(), "unprotect", g.Name)
	p.must(err)
	p.must(p.A.Daemon.Start(p.step()))
	p.eventually("the copy of the past is still there", func() error { return p.mayNotRun(p.A, g.Name) })
	p.tickFrom(p.B)
	p.heardOnce(began, p.A)
}
