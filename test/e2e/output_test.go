package e2e

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// clients puts a guest under acceptance: whatever happens to it, no answer that
// a client got may be forgotten or contradicted, and no connection reset.
func (p *pair) clients() *lab.Client {
	p.t.Helper()
	c, err := p.StartClient(p.step(), lab.ClientOptions{Seed: 1, TCP: 3, UDP: 2, IPv6: true, Pace: 5 * time.Millisecond, Jitter: 20 * time.Millisecond, AnswerMax: stepMax})
	p.must(err)
	p.t.Cleanup(c.Stop)
	p.answered(c)
	return c
}

// survives kills the guest's QEMU on A and asks for all that its clients were
// told, on B.
func (p *pair) survives(g *lab.Guest, c *lab.Client) {
	p.t.Helper()
	p.killQEMU(p.A, g.Name)
	p.answered(c)
	p.faithful(c)
	p.verified(p.B)
}

// copyEnds waits until there is no copy of the guest on A any more.
func (p *pair) copyEnds(g *lab.Guest) {
	p.t.Helper()
	p.eventually("the copy on A still runs", func() error {
		if _, err := p.A.QEMU(g.Name); err != nil {
			return nil
		}
		return errStillThere
	})
}

// answered waits for answers to requests that are sent from now on.
func (p *pair) answered(c *lab.Client) {
	p.t.Helper()
	for want := c.Verdict().Acked + 25; c.Verdict().Acked < want; {
		_, err := c.WaitAnswer(p.step(), time.Now())
		p.must(err)
	}
}

// faithful asks the guest what it knows of all that it has answered.
func (p *pair) faithful(c *lab.Client) {
	p.t.Helper()
	v, err := c.Check(p.step())
	p.must(err)
	p.must(v.Err())
}

// spokeOnce fails if the guest was heard from one host, then the other, then
// the first again: the second copy took over, and the first was not silent.
func (p *pair) spokeOnce(since time.Time) {
	p.t.Helper()
	all, err := p.out.Speeches(since)
	p.must(err)
	if len(all) > 2 {
		p.t.Errorf("the guest was heard from both hosts in turn: %v", all)
	}
}

// gate is what status says of the guest's output on h.
type gate struct {
	Mode        string  `json:"mode"`
	HeldFrames  uint64  `json:"held_frames"`
	DroppedFull uint64  `json:"dropped_full"`
	OldestMs    float64 `json:"oldest_ms"`
	Stalled     string  `json:"stalled"`
	Logged      uint64  `json:"inputs_logged"`
}

func (p *pair) gate(h *lab.Host, domain string) gate {
	p.t.Helper()
	var all []struct {
		Output gate `json:"output"`
	}
	if err := h.PollInto(p.step(), domain, &all); err != nil || len(all) != 1 {
		p.t.Fatalf("status of %s on %s: %+v (%v)", domain, h.Name, all, err)
	}
	return all[0].Output
}

// freeze stops the processes for good until the returned function is called.
func (p *pair) freeze(pids ...int) (thaw func()) {
	p.t.Helper()
	for _, pid := range pids {
		p.must(syscall.Kill(pid, syscall.SIGSTOP))
	}
	thaw = func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT) // it may be gone
		}
	}
	p.t.Cleanup(thaw)
	return thaw
}

// muteWhile fails if a client is answered while do runs.
func (p *pair) muteWhile(c *lab.Client, do func()) {
	p.t.Helper()
	before := c.Verdict().Acked
	do()
	if n := c.Verdict().Acked - before; n > 0 {
		p.t.Errorf("%d answers came while nothing may leave", n)
	}
}

// outputStory is one of TestOutput's.
type outputStory struct {
	name string
	tell func(*pair, *lab.Guest, *lab.Client)
	long bool // chaos does it, too: only when asked for
}

// TestOutput takes one guest, with clients at work all the time, through what
// may happen to those who hold its output, and through networks that are lost.
func TestOutput(t *testing.T) {
	p := newPair(t, "")
	g := p.guest(small(lab.GuestOptions{}))
	c := p.clients()
	for _, s := range slices.Concat([]outputStory{
		{name: "unprotected again", tell: unprotectedAgain},
		{name: "survives", tell: outputSurvives},
		{name: "frozen primary", tell: frozenPrimary},
		{name: "operator decides for the primary", tell: decidedForPrimary},
		{name: "operator decides for the standby", tell: decidedForStandby},
		{name: "stalled", tell: stalled},
		{name: "bounded queue", tell: boundedQueue},
		{name: "slow backup", tell: slowBackup},
	}, partitions()) {
		if s.long && !long() {
			continue
		}
		p.story(s.name, func(p *pair) {
			s.tell(p, g, c)
			p.answered(c)
			p.faithful(c)
			p.verified(p.A)
		})
	}
}

// outputSurvives loses QEMU, then the whole host.
func outputSurvives(p *pair, g *lab.Guest, c *lab.Client) {
	p.protect(p.A, g.Name)
	p.answered(c)
	if got := p.gate(p.A, g.Name); got.Mode != "holding" || got.Logged == 0 {
		p.t.Errorf("a protected guest's output is %+v", got)
	}
	began := time.Now()
	p.killQEMU(p.A, g.Name)
	p.state(p.B, g.Name, "active")
	p.answered(c)
	p.faithful(c)
	p.spokeOnce(began)
	p.protect(p.B, g.Name)
	p.answered(c)
	began = time.Now()
	p.B.PowerOff()
	p.state(p.A, g.Name, "active")
	p.answered(c)
	p.faithful(c)
	p.spokeOnce(began)
	p.powerOn(p.B)
}

// unprotectedAgain ends a protection, and begins another: the connections do
// not notice.
func unprotectedAgain(p *pair, g *lab.Guest, c *lab.Client) {
	for range 2 {
		p.protect(p.A, g.Name)
		p.answered(c)
		p.unprotect(g.Name)
		p.answered(c)
	}
	p.faithful(c)
}

// tickSilence lets what is in the lab's network arrive.
func (p *pair) tickSilence() {
	p.t.Helper()
	p.eventually("the guest is still heard", func() error {
		o, ok := p.out.Last()
		if ok && time.Since(o.At) < 200*time.Millisecond {
			return errStillThere
		}
		return nil
	})
}

// frozenPrimary stops A's daemon in its tracks, as a host that freezes does,
// until B has taken over, and lets it go on: what it was about to release stays
// where it is, because the kernel knows that the lease is over.
func frozenPrimary(p *pair, g *lab.Guest, c *lab.Client) {
	for range 2 {
		p.protect(p.A, g.Name)
		p.answered(c)
		began := time.Now()
		thaw := p.freeze(p.A.Daemon.Process().Pid())
		p.state(p.B, g.Name, "active")
		p.answered(c)
		thaw()
		p.copyEnds(g)
		p.answered(c)
		p.faithful(c)
		p.spokeOnce(began)
		p.turn() // the other way round now
	}
}

// operatorDecides cuts the link of a pair without an arbiter: the guest's output
// waits until a person says that it goes on at the host to.
func (p *pair) operatorDecides(g *lab.Guest, c *lab.Client, to *lab.Host, then func()) {
	p.t.Helper()
	p.kept(p.A, g.Name, "--arbiter", "manual")
	p.answered(c)
	began := time.Now()
	p.must(p.CutReplication())
	p.state(p.B, g.Name, "orphaned")
	p.state(p.A, g.Name, "undecided")
	p.tickSilence()
	p.muteWhile(c, func() {
		if got := p.gate(p.A, g.Name); got.Mode != "closed" {
			p.t.Errorf("the output of a guest that nobody decided on is %+v", got)
		}
	})
	_, err := to.Ctl(p.step(), "activate", g.Name)
	p.must(err)
	p.answered(c)
	p.must(p.HealReplication())
	then()
	p.answered(c)
	p.faithful(c)
	p.spokeOnce(began)
}

// decidedForPrimary goes on where the guest was, and is protected again, for the next
// story.
func decidedForPrimary(p *pair, g *lab.Guest, c *lab.Client) {
	p.operatorDecides(g, c, p.A, func() { p.state(p.A, g.Name, "protected") })
}

// decidedForStandby goes on at the other host; the copy that nobody heard ends.
func decidedForStandby(p *pair, g *lab.Guest, c *lab.Client) {
	p.operatorDecides(g, c, p.B, func() { p.copyEnds(g) })
	p.turn()
}

// stalled stops libvirtd, without which there are no checkpoints: output
// waits, status says so, and all of it leaves afterwards.
func stalled(p *pair, g *lab.Guest, c *lab.Client) {
	p.protect(p.A, g.Name)
	p.answered(c)
	thaw := p.freeze(p.A.Libvirtd.Process().Pid())
	p.eventually("nothing is said to be stalled", func() error {
		if p.gate(p.A, g.Name).Stalled == "" {
			return errStillThere
		}
		return nil
	})
	p.muteWhile(c, func() {
		if got := p.gate(p.A, g.Name); got.OldestMs < 1000 || got.HeldFrames == 0 {
			p.t.Errorf("stalled, with %+v", got)
		}
		if out, err := p.A.Ctl(p.step(), "status", g.Name); !strings.Contains(out, "stalled") {
			p.t.Errorf("status does not tell a person that output is stalled:\n%s (%v)", out, err)
		}
	})
	thaw()
	p.answered(c)
	p.faithful(c)
	p.eventually("it is still said to be stalled", func() error {
		if p.gate(p.A, g.Name).Stalled != "" {
			return errStillThere
		}
		return nil
	})
	p.killQEMU(p.A, g.Name)
	p.answered(c)
	p.faithful(c)
	p.turn()
}

// boundedQueue holds more than there is room for: what comes on top is lost, as on
// a network card whose queue is full, and the rest survives.
func boundedQueue(p *pair, g *lab.Guest, c *lab.Client) {
	p.configured("[output]\nqueue_frames_max = 256\n")
	p.protect(p.A, g.Name)
	p.answered(c)
	_, err := p.A.Ctl(p.step(), "set", g.Name, "--epoch-min", "10s", "--epoch-idle", "10s")
	p.must(err)
	p.eventually("nothing was dropped", func() error {
		got := p.gate(p.A, g.Name)
		if got.HeldFrames > 257 {
			p.t.Fatalf("%d frames are held, the bound is 256", got.HeldFrames)
		}
		if got.DroppedFull == 0 {
			return errStillThere
		}
		return nil
	})
	// It is the daemon's, and a restart keeps it.
	p.must(p.A.Daemon.Kill())
	p.must(p.A.Daemon.Start(p.step()))
	p.state(p.A, g.Name, "protected")
	out, err := p.A.Ctl(p.step(), "set", g.Name)
	p.must(err)
	if strings.Count(out, "10s") != 2 {
		p.t.Errorf("the pacing after a restart:\n%s", out)
	}
	_, err = p.A.Ctl(p.step(), "set", g.Name, "--epoch-min", "2ms", "--epoch-idle", "100ms")
	p.must(err)
	p.answered(c)
	p.faithful(c)
	p.survives(g, c)
	p.turn()
}

// slowBackup gives a backup up that lets output wait for longer than its operator
// wants: the guest goes on alone, and is protected again afterwards.
func slowBackup(p *pair, g *lab.Guest, c *lab.Client) {
	p.configured("[heartbeat]\nlimit = \"20s\"\n")
	p.protect(p.A, g.Name)
	p.answered(c)
	thaw := p.freeze(p.B.Daemon.Process().Pid())
	p.tickSilence()
	p.muteWhile(c, func() {
		if got := p.gate(p.A, g.Name); got.HeldFrames == 0 {
			p.t.Errorf("nothing is held for a backup that does not answer: %+v", got)
		}
	})
	_, err := p.A.Ctl(p.step(), "set", g.Name, "--held-max", "500ms")
	p.must(err)
	p.state(p.A, g.Name, "alone")
	p.answered(c)
	thaw()
	p.state(p.A, g.Name, "protected")
	p.answered(c)
	p.faithful(c)
	p.survives(g, c)
	p.turn()
	p.configured("")
}
