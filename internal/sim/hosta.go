package sim

import (
	"time"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const epochInterval = 80 * time.Millisecond

// hostA is the host on which the guest lives at first: QEMU, and a daemon
// that may die and come back without it.
type hostA struct {
	w     *World
	alive bool // the host has power
	up    bool // the daemon runs
	life  int  // of the daemon: answers for an older one are lost
	inbox []ftengine.Event
	busy  bool

	m      *ftengine.Primary
	marker struct {
		gen   ftengine.Generation
		phase string
	}
	sess    *session
	dialing bool

	guestUp, paused bool
	wrote           int // all that the guest ever wrote to its disks, in order
	gate            gate
	because         ftengine.Cause   // of the last claim since the gate was opened
	verdict         ftengine.Verdict // on it
	ended           string           // the machine's last word, if it ended
	watching        map[ftengine.Generation]bool

	asked    bool          // for a hand over, which was not answered yet
	grants   bool          // it is the only word of a person for B
	owes     bool          // the answer: the machine knows of it
	switched bool          // it was: B runs the guest
	since    time.Duration // of the hand over that is under way, or -1

	captureFails int // how many of the next captures fail
	captureFatal bool

	frozen  bool     // the daemon, or the whole host, does nothing for a while
	stopped bool     // it is the whole host
	freezes int      // so far
	thaw    []func() // what it does when it goes on
}

func newHostA(w *World) *hostA {
	return &hostA{w: w, alive: true, guestUp: true, gate: gate{w: w}, since: -1}
}

func (a *hostA) runs() bool { return a.guestUp && !a.paused }

// protect is what the user asked for at the beginning.
func (a *hostA) protect() {
	a.up = true
	a.life++
	a.watching = map[ftengine.Generation]bool{}
	a.m = ftengine.NewPrimary(1, false, a.w.limits)
	a.start()
	a.talk()
}

func (a *hostA) start() {
	a.busy = true
	a.perform(a.m.Start(), a.idle)
}

func (a *hostA) idle() {
	a.busy = false
	a.pump()
}

// talk has the guest write something to its disks, or send something, now and
// then. It also keeps time going.
func (a *hostA) talk() {
	a.w.after(a.w.between(5, 25), func() {
		if a.runs() && !a.stopped {
			if a.w.chance(40) {
				a.wrote++
			}
			a.gate.send()
		}
		a.talk()
	})
}

// restart is the daemon coming back and finding its marker.
func (a *hostA) restart() {
	if a.up || !a.alive {
		return
	}
	a.up = true
	a.life++
	a.inbox, a.busy, a.dialing, a.sess = nil, false, false, nil
	a.watching = map[ftengine.Generation]bool{}
	a.w.logf("A: daemon starts, marker %v", a.marker)
	switch {
	case a.marker.phase == "":
		a.ended = "the daemon died before the protection began"
	case a.marker.phase == "ended" || a.marker.phase == "handed-over":
		if a.ended == "" {
			a.ended = "it had handed over"
		}
	case !a.guestUp:
		a.marker.phase, a.ended = "ended", "the guest was gone when the daemon came back"
	default:
		a.m = ftengine.RestorePrimary(a.marker.gen, a.marker.phase, a.w.limits)
		a.ended = ""
		a.start()
	}
}

// kill ends the daemon; the guest runs on.
func (a *hostA) kill(silently bool) {
	if !a.up {
		return
	}
	a.up = false
	a.life++
	a.inbox, a.asked, a.owes, a.since = nil, false, false, -1
	a.frozen, a.stopped, a.thaw = false, false, nil
	a.gate.drop()
	if s := a.sess; s != nil {
		if silently {
			s.aUp, s.toB.queue = false, nil
		} else {
			s.closeA(a.w.chance(50))
		}
	}
	a.sess = nil
}

func (a *hostA) post(e ftengine.Event) {
	if !a.up || a.m == nil || a.ended != "" {
		return
	}
	a.inbox = append(a.inbox, e)
	a.pump()
}

func (a *hostA) pump() {
	if a.busy || len(a.inbox) == 0 {
		return
	}
	a.busy = true
	life := a.life
	a.later(a.w.between(0, 1)/4, func() {
		if life != a.life {
			return
		}
		if len(a.inbox) == 0 {
			a.busy = false
			return
		}
		e := a.inbox[0]
		a.inbox = a.inbox[1:]
		a.w.step("A <- %T%v", e, e)
		a.run(func() {
			if life != a.life {
				return
			}
			acts := a.m.Step(e)
			a.answered(e, acts)
			a.perform(acts, a.idle)
		})
	})
}

// perform does acts in order; a fault may strike before each of them.
func (a *hostA) perform(acts []ftengine.Action, done func()) {
	if len(acts) == 0 {
		done()
		return
	}
	life, act := a.life, acts[0]
	a.w.step("A    %T%v  [%v]", act, act, a.m.State())
	a.run(func() {
		if life != a.life {
			return
		}
		a.do(act)
		a.w.check()
		a.perform(acts[1:], done)
	})
}

// run does f, or will when A is not frozen any more.
func (a *hostA) run(f func()) {
	if a.frozen {
		a.thaw = append(a.thaw, f)
		return
	}
	f()
}

// later runs f after d.
func (a *hostA) later(d time.Duration, f func()) {
	a.w.after(d, func() { a.run(f) })
}

// freeze stops the daemon, or the whole host, until the returned func is called.
func (a *hostA) freeze(host bool) (undo func()) {
	if !a.up || a.frozen {
		return nil
	}
	w := a.w
	a.frozen, a.stopped = true, host
	a.freezes++
	id := a.freezes
	if s := a.sess; s != nil {
		w.after(w.limits.Detect+w.between(0, 60), func() {
			if a.frozen && a.freezes == id {
				s.downB(ftengine.Silent)
			}
		})
	}
	since := w.now
	return func() {
		if !a.frozen || a.freezes != id {
			return // it was killed meanwhile
		}
		a.frozen, a.stopped = false, false
		if s := a.sess; s != nil && w.now-since > w.limits.Detect && w.chance(50) {
			a.thaw = append(a.thaw, func() { s.downA(ftengine.Silent) })
		}
		for len(a.thaw) > 0 && !a.frozen {
			f := a.thaw[0]
			a.thaw = a.thaw[1:]
			f()
		}
	}
}

// answer posts e after a delay, unless the daemon dies before.
func (a *hostA) answer(d time.Duration, e ftengine.Event) {
	life := a.life
	a.later(d, func() {
		if life == a.life {
			a.post(e)
		}
	})
}

func (a *hostA) do(act ftengine.Action) {
	w := a.w
	switch act := act.(type) {
	case ftengine.Persist:
		a.marker.gen, a.marker.phase = act.Generation, act.Phase
	case ftengine.Connect:
		if !a.dialing {
			a.dialing = true
			a.dial(a.life)
		}
	case ftengine.CloseSession:
		if a.sess != nil {
			a.sess.closeA(false)
			a.sess = nil
		}
	case ftengine.RetryAfter:
		a.answer(act.Delay, ftengine.Retry{Token: act.Token})
	case ftengine.Claim:
		a.claim(act)
	case ftengine.Withdraw:
		a.withdraw(act.Generation)
	case ftengine.WatchWinner:
		if !a.watching[act.Generation] {
			a.watching[act.Generation] = true
			a.watch(a.life, act.Generation)
		}
	case ftengine.Capture:
		a.capture(act)
	case ftengine.ReopenCapture:
	case ftengine.Release:
		w.released(act.Epoch)
		a.gate.release(a.sess, act.Epoch)
	case ftengine.OpenGate:
		// By a claim of a person, or at the end of a protection that the
		// arbiter leaves to the person who ended it.
		left := a.verdict == ftengine.NeedOperator && a.m.State() == ftengine.PrimaryStopped
		a.gate.open(w.cfg.Manual && (a.because == ftengine.ByOperator || left))
		a.because, a.verdict = 0, 0
	case ftengine.PauseGuest:
		a.paused = true
	case ftengine.ResumeGuest:
		a.paused = false
	case ftengine.DestroyGuest:
		a.guestUp = false
	case ftengine.Finish:
		a.marker.gen, a.marker.phase = a.m.Generation(), "ended"
		a.ended = act.Reason
	case ftengine.Refuse:
		second := a.because == ftengine.ByOperator || a.gate.byPerson
		if w.person == forA && !second || w.person == forB && a.grants && !a.m.HandedOver() {
			w.person = nobody
		}
	case ftengine.Switched:
	case ftengine.SendGuestDead:
		a.gate.seal()
		a.send(act)
	default:
		a.send(act)
	}
}

// send does the actions that are messages to the backup.
func (a *hostA) send(act ftengine.Action) {
	s, b := a.sess, a.w.b
	if s == nil || !s.aUp {
		return
	}
	switch act := act.(type) {
	case ftengine.SendSetup:
		s.toB.send(func() { b.setup(s) })
		return
	case ftengine.SendGuestDead:
		a.tell(s, ftengine.GuestDead{Reason: act.Reason})
	case ftengine.SendStandDown:
		a.tell(s, ftengine.StandDown{Reason: act.Reason})
	default:
		a.w.fail("A cannot %T", act)
	}
}

// tell sends what is an event to the backup.
func (a *hostA) tell(s *session, e ftengine.Event) {
	if a.sess == s && s.aUp {
		s.toB.send(func() { a.w.b.hear(s, e) })
	}
}

const heartbeat = 80 * time.Millisecond

// beat sends heartbeats; each one that is answered renews the lease.
func (a *hostA) beat(s *session, life int) {
	if life != a.life || a.sess != s || !s.aUp {
		return
	}
	w, sent := a.w, a.w.now
	s.toB.send(func() {
		if !w.b.beaten(s) {
			return
		}
		s.toA.send(func() {
			a.run(func() {
				if life == a.life && a.sess == s && s.aUp {
					a.gate.renew(s, sent+w.limits.Detect)
				}
			})
		})
	})
	a.later(heartbeat, func() { a.beat(s, life) })
}

// hear is a message of the backup arriving.
func (a *hostA) hear(s *session, e ftengine.Event) {
	if s.aUp && a.sess == s {
		a.post(e)
	}
}

func (a *hostA) dial(life int) {
	w := a.w
	a.later(w.between(5, 120), func() {
		if life != a.life || !a.dialing {
			return
		}
		if w.link.cuts > 0 || !w.b.up {
			a.dial(life)
			return
		}
		s, holds, again := w.b.admit(a.m.Generation())
		if again {
			a.dial(life)
			return
		}
		a.dialing = false
		if s == nil {
			a.post(ftengine.SessionUp{Generation: holds, PeerRuns: true})
			return
		}
		if a.sess != nil {
			a.sess.closeA(false)
		}
		a.sess = s
		a.beat(s, life)
		a.post(ftengine.SessionUp{})
	})
}

func (a *hostA) claim(act ftengine.Claim) {
	w, life := a.w, a.life
	a.because = act.Because
	verdict := ftengine.Unknown
	w.arb.call(sideA,
		func() { verdict = w.arb.claim(sideA, act.Generation, act.Because) },
		func(known bool) {
			if life != a.life {
				return
			}
			if !known {
				verdict = ftengine.Unknown
			}
			a.verdict = verdict
			a.post(ftengine.ClaimDone{Generation: act.Generation, Verdict: verdict})
		})
}

func (a *hostA) withdraw(gen ftengine.Generation) {
	w, life := a.w, a.life
	w.arb.call(sideA, func() { w.arb.withdraw(sideA, gen) }, func(known bool) {
		if !known && life == a.life {
			a.withdraw(gen)
		}
	})
}

func (a *hostA) watch(life int, gen ftengine.Generation) {
	w := a.w
	a.later(w.between(50, 100), func() {
		if life != a.life {
			return
		}
		var e ftengine.Event
		if w.arb.down[sideA] == 0 {
			top, r := w.arb.top(sideA)
			at := w.arb.stores[sideA][gen]
			switch {
			case top > gen, top == gen && r != nil && r.running:
				e = ftengine.WinnerRunning{}
			case at != nil && at.free:
				e = ftengine.WinnerWithdrew{}
			}
		}
		if e == nil {
			a.watch(life, gen)
			return
		}
		delete(a.watching, gen)
		a.post(e)
	})
}
