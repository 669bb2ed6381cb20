package explore

import (
	"fmt"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// hostA is where the guest lives at first: QEMU, and a daemon that may die and
// come back without it.
type hostA struct {
	m           machine
	power, up   bool // of the host; of the daemon
	ended       bool // the machine finished
	guest       guest
	gate        mode
	gen         uint8 // of the marker
	phase       phase
	sess        uint8
	dialing     bool
	retry       bool // a Retry that counts is to come
	gone        ending
	asked       bool // an operator waits for the answer to HandOver
	claim       request
	withdrawing uint8          // a generation that is handed back
	watching    uint8          // a generation whose winner is watched
	decided     ftengine.Cause // of the last claim since the gate was opened
	left        bool           // it was left to a person
	capture     capture
}

// phase is what a marker says.
type phase uint8

// phases are the words for it; others get a number when they are first seen.
func phases() []string {
	return []string{"", "connecting", "armed", "protected", "fenced", "alone", "handed-over", "ended", "standby", "claimed", "active"}
}

const (
	noPhase phase = iota
	_
	_
	_
	_
	_
	phaseHandedOver
	phaseEnded
	_
	phaseClaimed
	phaseActive
)

// ending is how QEMU ended, which the machine is still to hear.
type ending uint8

const (
	notGone ending = iota
	crashed
	shutDown
)

// request is something asked of the arbiter.
type request struct {
	gen     uint8 // 0: nothing is asked
	cause   ftengine.Cause
	verdict ftengine.Verdict // 0: it was not taken yet
	orphan  bool             // its asker died since: nothing of it comes in order any more
}

// capture is one that was asked for.
type capture struct {
	epoch   uint8 // 0: none
	sess    uint8
	initial bool
	final   bool
	void    bool // the gate was opened since: it does not hold any more
	answer  answer
}

// answer is what is still to be heard of a capture.
type answer uint8

const (
	pending answer = iota
	done
	failed
	unusable
)

// stepA has A's machine take e. cut is after how many actions a fault strikes;
// see explorer.steps.
func (x *explorer) stepA(w *world, e ftengine.Event) []ftengine.Action {
	s := x.primaries.take(w.a.m, e)
	if s.panics != "" {
		x.fail("A: %s", s.panics)
		return nil
	}
	w.a.m = s.next
	w.a.retry = s.armed || w.a.retry && !s.disarms
	return s.acts
}

// doA performs one action of A.
// long: a table of what each action does.
func (x *explorer) doA(w *world, act ftengine.Action) {
	a := &w.a
	if x.followed() {
		x.say("      A: " + text(act))
	}
	switch act := act.(type) {
	case ftengine.Persist:
		if x.bug(forgetArmed) && (act.Phase == "armed" || act.Phase == "protected") {
			break
		}
		a.gen, a.phase = uint8(act.Generation), x.phase(act.Phase)
	case ftengine.Connect:
		a.dialing = true
	case ftengine.CloseSession:
		x.closeA(w, a.sess)
		a.sess = 0
	case ftengine.RetryAfter:
	case ftengine.Claim:
		if a.claim.gen != 0 {
			x.fail("A claims while its last claim is not answered")
		}
		a.claim = request{gen: uint8(act.Generation), cause: act.Because}
	case ftengine.Withdraw:
		a.withdrawing = uint8(act.Generation)
	case ftengine.WatchWinner:
		a.watching = uint8(act.Generation)
	case ftengine.Capture:
		x.askCapture(w, act)
	case ftengine.ReopenCapture:
	case ftengine.Release:
		x.release(w, uint8(act.Epoch))
	case ftengine.OpenGate:
		x.openGate(w)
	case ftengine.PauseGuest:
		if a.guest == running {
			a.guest = paused
		}
	case ftengine.ResumeGuest:
		if a.guest == paused {
			a.guest = running
		}
	case ftengine.DestroyGuest:
		x.destroyGuest(w)
	case ftengine.Switched:
		if a.asked = false; !x.running(w) {
			x.fail("a person is told that the roles are swapped, and B never said that it runs")
		}
	case ftengine.Refuse:
		a.asked = false
	case ftengine.Finish:
		a.ended, a.asked = true, false
		a.gen = uint8(x.primaries.get(a.m).Generation())
		if a.phase != phaseHandedOver {
			a.phase = phaseEnded
		}
		x.closeA(w, a.sess)
		a.m, a.sess, a.dialing, a.retry, a.watching = 0, 0, false, false, 0
		a.capture, a.gone = capture{}, notGone
	case ftengine.SendSetup:
		x.sendA(w, msgSetup)
	case ftengine.SendGuestDead:
		if !x.bug(unsealed) {
			a.gate = sealed
		}
		x.sendA(w, msgGuestDead)
	case ftengine.SendStandDown:
		x.sendA(w, msgStandDown)
	default:
		panic(fmt.Sprintf("explore: A cannot %T", act))
	}
}

func (x *explorer) sendA(w *world, m message) {
	if s := &w.sessions[w.a.sess]; w.a.sess != 0 && s.carries() && !s.toB.send(m) {
		x.bounded("messages")
	}
}

// closeA ends A's end of a session; what was sent may still arrive.
func (x *explorer) closeA(w *world, i uint8) {
	if i != 0 {
		w.sessions[i].aUp = false
	}
}

func (x *explorer) askCapture(w *world, act ftengine.Capture) {
	a := &w.a
	if a.capture.epoch != 0 {
		x.fail("A captures while its last capture is not answered")
	}
	if act.Epoch > epochsMax {
		x.bounded("epochs")
		return
	}
	a.capture = capture{epoch: uint8(act.Epoch), sess: a.sess, initial: act.Initial, final: act.Final}
}

// release is the standing order to let out what is held of an epoch.
func (x *explorer) release(w *world, e uint8) {
	s := &w.sessions[w.a.sess]
	switch {
	case w.a.sess == 0:
		x.fail("epoch %d is released without a session", e)
	case s.acked < e:
		x.fail("epoch %d is released, %d is acknowledged", e, s.acked)
	default:
		s.ordered = e
	}
}

// leave is what is ordered leaving A.
func (x *explorer) leave(w *world) {
	s := &w.sessions[w.a.sess]
	s.released = s.ordered
	w.heard = max(w.heard, 2*uint8(at(w.a.sess, s.released)))
	if w.wentOn && !w.byPerson {
		x.fail("outputs of A leave after the guest went on on B")
	}
	x.sendA(w, msgReleased|message(s.released))
}

// mayLeave tells whether it may: the program in the kernel has the last word.
func (w *world) mayLeave() bool {
	s := &w.sessions[w.a.sess]
	return w.a.up && w.a.sess != 0 && w.a.gate == holding && s.ordered > s.released && !w.leaseOver
}

func (x *explorer) openGate(w *world) {
	a := &w.a
	if a.gate == sealed && !x.mayUnseal(w) {
		x.fail("A opens a sealed gate, B may go on")
	}
	if x.cfg.Manual && (a.decided == ftengine.ByOperator || a.left && x.stateA(w) == ftengine.PrimaryStopped) {
		w.byPerson = true // who answers for B
	}
	a.capture.void = a.capture.epoch != 0
	a.gate, a.decided, a.left = passing, 0, false
	w.hear(x)
}

// mayUnseal tells whether A may open a gate that it sealed: it won the right, or
// B has nothing any more that it could go on from.
func (x *explorer) mayUnseal(w *world) bool {
	b, top := &w.b, w.arb.top()
	if w.finished || top > 0 && w.arb[top].holder == sideA && x.primaries.get(w.a.m).Generation() >= top {
		return true
	}
	if b.m != 0 {
		return x.backups.get(b.m).Acked() == 0 && b.standby != loaded && b.standby != running
	}
	return b.standby != loaded && b.standby != running
}

// hear is the guest on A sending something through a gate that is open, or what
// was held leaving when it opens.
func (w *world) hear(x *explorer) {
	if w.a.gate != passing || w.a.guest != running && w.a.guest != paused {
		return
	}
	w.heard = max(w.heard, 2*uint8(w.lastCut)+1)
	switch {
	case w.byPerson:
	case w.b.standby == running:
		x.fail("two copies are heard: A's gate is open, and the guest runs on B")
	case w.wentOn:
		x.fail("A's copy is heard after the guest went on on B")
	}
}

// running tells whether B said, to the arbiter at least, that it runs.
func (x *explorer) running(w *world) bool {
	r := x.records(w, sideB)
	top := r.top()
	return w.wentOn || top > ftengine.Generation(w.a.gen) && r[top].holder == sideB && r[top].running
}

func (x *explorer) destroyGuest(w *world) {
	a := &w.a
	switch {
	case a.guest == running:
		x.fail("A ends a copy that runs")
	case a.guest == paused && !x.running(w):
		x.fail("A ends its copy, and B never said that it runs")
	}
	a.guest = absent
}

// captured is the checkpoint itself: pause, cut, and on its way.
func (x *explorer) captured(w *world) {
	a := &w.a
	c := &a.capture
	s := &w.sessions[c.sess]
	alive := a.guest == running || a.guest == paused || c.final
	if c.initial && !c.void && a.gate == passing {
		a.gate = holding
	}
	if c.sess == 0 || !s.aUp || !alive {
		c.answer = failed
		return
	}
	c.answer = done
	m := msgEpoch
	if c.final {
		m = msgFinalEpoch
	}
	if s.carries() && !s.toB.send(m|message(c.epoch)) {
		x.bounded("messages")
	}
	w.lastCut = max(w.lastCut, at(c.sess, c.epoch))
	if x.bug(releaseEarly) {
		s.ordered = c.epoch
	}
}

// hearCapture is A's machine hearing what came of a capture.
func (w *world) hearCapture() ftengine.Event {
	c := w.a.capture
	w.a.capture = capture{}
	if c.answer == done {
		return ftengine.Captured{Epoch: ftengine.Epoch(c.epoch)}
	}
	return ftengine.CaptureFailed{Epoch: ftengine.Epoch(c.epoch), Fatal: c.answer == unusable}
}

// killA ends A's daemon. Its kernel closes its connections, and what it held
// of the guest's output is dropped.
func (x *explorer) killA(w *world) {
	x.closeA(w, w.a.sess)
	o := w.a
	w.late[sideA].orphan = w.late[sideA].gen != 0
	w.a = hostA{power: o.power, guest: o.guest, gate: o.gate, gen: o.gen, phase: o.phase, ended: o.ended}
	for i := range w.sessions {
		w.sessions[i].ordered = w.sessions[i].released
	}
}

// restartA is A's daemon coming back and finding its marker.
func (x *explorer) restartA(w *world) []ftengine.Action {
	a := &w.a
	a.up = true
	switch {
	case a.phase == noPhase || a.phase == phaseEnded || a.phase == phaseHandedOver:
		a.ended = true
		return nil
	case a.guest != running && a.guest != paused:
		a.phase, a.ended = phaseEnded, true
		return nil
	}
	p := ftengine.RestorePrimary(ftengine.Generation(a.gen), x.words[a.phase], x.cfg.limits())
	acts := p.Start()
	a.m, a.retry, a.ended = x.primaries.add(p), arms(acts, token(p)), false
	return acts
}

// loseA takes the power from host A.
func (x *explorer) loseA(w *world) {
	for i := range w.sessions {
		s := &w.sessions[i]
		if s.aUp {
			s.aLost = true
		}
		s.aUp = false
		s.toA, s.toB = queue{}, queue{}
	}
	x.killA(w)
	w.a.power, w.a.guest, w.a.gate = false, absent, passing
}
