package sim

import (
	"time"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

func (a *hostA) capture(act ftengine.Capture) {
	w, s, life, opened := a.w, a.sess, a.life, a.gate.opened
	took := w.between(2, 8)
	if act.Initial {
		took = w.between(20, 60)
	}
	fail := func() {
		a.post(ftengine.CaptureFailed{Epoch: act.Epoch, Fatal: a.captureFatal})
		a.answer(epochInterval, ftengine.PaceDue{})
	}
	a.later(took, func() {
		if life != a.life {
			return
		}
		broken := a.captureFails > 0
		if broken {
			a.captureFails--
		}
		if s == nil || a.guestUp == act.Final || broken && w.chance(50) {
			fail()
			return
		}
		// The pause.
		c := checkpoint{s.id, act.Epoch}
		p := parcel{c: c, last: len(a.gate.outs), wrote: a.wrote, final: act.Final}
		if opened == a.gate.opened {
			p.with = a.gate.cut(c, act.Initial)
		}
		a.later(w.between(0, 3), func() {
			switch {
			case life != a.life:
				return
			case broken || !s.aUp || a.guestUp == act.Final:
				a.gate.uncut(c)
				fail()
				return
			}
			s.toB.send(func() { w.b.stage(s, p) })
			if w.chance(20) { // the acknowledgement may overtake our own word
				a.answer(w.between(0, 6), ftengine.Captured{Epoch: act.Epoch})
			} else {
				a.post(ftengine.Captured{Epoch: act.Epoch})
			}
			a.answer(epochInterval, ftengine.PaceDue{})
		})
	})
}

// endGuest is QEMU ending on A.
func (a *hostA) endGuest(orderly bool) {
	if !a.guestUp {
		return
	}
	a.guestUp = false
	a.answer(a.w.between(0, 3), ftengine.GuestGone{Orderly: orderly, Reason: "QEMU ended"})
}

// swap is virt-ft failback. Like the daemon it lets one person ask at a time.
func (a *hostA) swap() {
	if a.asked || !a.up || a.m == nil || a.ended != "" {
		return
	}
	a.post(ftengine.HandOver{Reason: "swapped by the operator"})
	a.asked = true
}

// answered looks for the answer to a hand over. What comes with an operator's
// activation answers that.
func (a *hostA) answered(e ftengine.Event, acts []ftengine.Action) {
	w := a.w
	_, other := e.(ftengine.OperatorActivate)
	if _, ok := e.(ftengine.HandOver); ok {
		a.owes = true
	}
	for _, act := range acts {
		switch act := act.(type) {
		case ftengine.Refuse:
			if !other && !a.asked {
				w.fail("A refuses what nobody asked for: %s", act.Reason)
			}
			a.asked, a.owes = a.asked && other, a.owes && other
		case ftengine.Switched:
			if _, r := w.arb.top(sideB); !a.asked || r == nil || r.host != sideB || !r.running {
				w.fail("A says that the guest was handed over; asked %v", a.asked)
			}
			a.asked, a.owes, a.switched = false, false, true
		case ftengine.Finish:
			if a.owes {
				w.fail("A ends, and a hand over is not answered")
			}
		}
	}
	switch {
	case a.m.State() != ftengine.PrimarySwitching:
		a.since = -1
	case a.since < 0:
		a.since = w.now
	}
}

// bounded checks that a hand over does not take for ever.
func (a *hostA) bounded() {
	switch {
	case a.since < 0:
	case a.frozen:
		a.since = a.w.now // from the thaw on
	case a.w.now-a.since > switchMax:
		a.w.fail("a hand over takes %v", a.w.now-a.since)
	}
}

// switchMax is the longest time for which a hand over may be under way.
const switchMax = 16 * time.Second
