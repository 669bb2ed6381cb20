package sim

import (
	"time"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

type gateMode uint8

const (
	gateOpen gateMode = iota
	gateHolds
	gateSealed // the guest was handed over: nothing leaves, unless B cannot go on
)

// gate is what stands between the guest on A and the world. Its mode and the
// end of the lease are the kernel's and outlive the daemon. What is held is in
// the daemon's memory: with the daemon dead it is dropped, as is what comes.
type gate struct {
	w     *World
	mode  gateMode
	lease time.Duration // until when something that is held may leave

	outs     []output // all that the guest on A ever sent, in order
	leftLast int      // the last one that left
	held     []int    // numbers of outputs
	opened   int      // how often: an older capture does not hold any more
	dead     bool     // the guest was known to be, when it was sealed
	byPerson bool     // opened by a person, who answers for B (manual only)

	sess     *session       // of the standing order
	standing ftengine.Epoch // what is to be released
	told     ftengine.Epoch // what the backup was told of
	moving   bool
}

// output is one frame; its number is its place, from 1.
type output struct {
	at                    time.Duration
	epoch                 checkpoint // that it was shipped with; zero: none yet
	left, lost, performed bool
}

func (g *gate) out(n int) *output { return &g.outs[n-1] }

// send is the guest sending something.
func (g *gate) send() {
	g.outs = append(g.outs, output{at: g.w.now})
	n := len(g.outs)
	switch {
	case g.mode == gateOpen:
		g.leave(n)
	case g.mode == gateHolds && g.w.a.up:
		g.held = append(g.held, n)
	default:
		g.out(n).lost = true
	}
}

// leave is output n reaching the world.
func (g *gate) leave(n int) {
	switch {
	case g.w.wentOn && !g.byPerson:
		g.w.fail("output %d leaves A after the guest went on on B", n)
	case g.out(n).left || n <= g.leftLast:
		g.w.fail("output %d leaves A after %d", n, g.leftLast)
	case g.mode == gateSealed:
		g.w.fail("output %d leaves A after the guest was handed over", n)
	}
	g.out(n).left = true
	g.leftLast = n
}

// cut is the pause of checkpoint c: what is held and of no epoch of c's session
// yet belongs to c, and is shipped with it.
func (g *gate) cut(c checkpoint, holds bool) (with []int) {
	if holds && g.mode == gateOpen {
		g.mode = gateHolds
	}
	for _, n := range g.held {
		if o := g.out(n); o.epoch.session != c.session {
			o.epoch = c
			with = append(with, n)
		}
	}
	return with
}

// uncut is the capture of c failing after its pause.
func (g *gate) uncut(c checkpoint) {
	for _, n := range g.held {
		if o := g.out(n); o.epoch == c {
			o.epoch = checkpoint{}
		}
	}
}

// release is the standing order to perform what is held up to epoch e of s.
func (g *gate) release(s *session, e ftengine.Epoch) {
	if g.sess != s {
		g.sess, g.told = s, 0
	}
	g.standing = e
	g.move()
}

// due tells whether the first of what is held may leave, but for the lease.
func (g *gate) due() bool {
	if len(g.held) == 0 || g.sess == nil || g.mode == gateSealed {
		return false
	}
	c := g.out(g.held[0]).epoch
	return c.session == g.sess.id && c.epoch <= g.standing
}

// move performs what is due, one frame after the other; a daemon that is
// frozen between two of them goes on later, and the kernel looks at each.
func (g *gate) move() {
	if g.moving || g.sess == nil {
		return
	}
	a := g.w.a
	if !g.due() {
		if g.told < g.standing {
			g.told = g.standing
			a.tell(g.sess, ftengine.ReleasedTo{Epoch: g.told})
		}
		return
	}
	g.moving = true
	life, took := a.life, g.w.between(0, 1)/8
	if g.w.chance(4) {
		took = g.w.between(5, 80) // it has to wait for a processor
	}
	a.later(took, func() {
		if life != a.life {
			return
		}
		g.moving = false
		if !g.due() || g.w.now >= g.lease {
			return // opened meanwhile, or held until the lease is renewed
		}
		n := g.held[0]
		if c := g.out(n).epoch; g.sess.acked < c.epoch {
			g.w.fail("output %d of %v leaves A, %d is acknowledged", n, c, g.sess.acked)
		}
		g.held = g.held[1:]
		g.leave(n)
		g.move()
	})
}

// renew is an answered heartbeat of s.
func (g *gate) renew(s *session, until time.Duration) {
	if g.sess != s {
		g.sess, g.standing, g.told = s, 0, 0 // orders of another session are void
	}
	g.lease = max(g.lease, until)
	g.move()
}

// open lets out what is held and holds nothing any more.
func (g *gate) open(byPerson bool) {
	if g.mode == gateSealed && g.dead {
		g.w.fail("the gate of a dead guest that was handed over is opened")
	}
	g.opened++
	g.byPerson = byPerson
	g.mode, g.sess = gateOpen, nil
	for _, n := range g.held {
		g.leave(n)
	}
	g.held = nil
}

func (g *gate) seal() {
	g.sess = nil // orders that were given are void
	g.mode, g.dead = gateSealed, g.w.a.m.State() == ftengine.PrimaryHandedOver
}

// drop loses what the daemon held.
func (g *gate) drop() {
	for _, n := range g.held {
		g.out(n).lost = true
	}
	g.held, g.sess, g.moving = nil, nil, false
}

// stuck tells whether something is held for longer than it should be.
func (g *gate) stuck() bool {
	return len(g.held) > 0 && g.w.now-g.out(g.held[0]).at > heldMax
}

// covers checks, in the moment in which B goes on from c, what the world has
// seen: nothing that c does not know of, and all that c believes was said.
func (g *gate) covers(c checkpoint, last int, forgot bool) {
	if g.byPerson {
		return
	}
	if g.leftLast > last {
		g.w.fail("B goes on from %v, which knows outputs up to %d; the world saw %d", c, last, g.leftLast)
	}
	for n := 1; n <= last && !forgot; n++ {
		o := g.out(n)
		mine := o.epoch.session == c.session && o.epoch.epoch <= c.epoch
		if !o.left && !o.performed && (mine || !o.lost) {
			g.w.fail("B goes on from %v, output %d of %v was performed by nobody", c, n, o.epoch)
		}
	}
}
