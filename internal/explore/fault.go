package explore

import "github.com/virt-ft/virt-ft/pkg/ftengine"

// repairs are what heals by itself, at any time.
func (x *explorer) repairs(w *world) {
	if w.cut {
		n := *w
		n.cut = false
		x.begin(step{what: "the link heals"})
		x.emit(&n, step{what: "the link heals", repair: true})
	}
	if !w.a.up && !w.unnoticed(sideA) {
		n := *w
		n.a.power = true
		x.begin(step{what: "A's daemon starts"})
		acts := x.restartA(&n)
		x.again(&n, "A's daemon starts", acts, x.performA, x.killA)
	}
	if !w.b.up && !w.unnoticed(sideB) {
		n := *w
		n.b.power = true
		x.begin(step{what: "B's daemon starts"})
		acts := x.restartB(&n)
		x.again(&n, "B's daemon starts", acts, x.performB, x.killB)
	}
}

// again performs the first actions of a machine that was restored; its daemon
// may die behind each of them.
func (x *explorer) again(w *world, what string, acts []ftengine.Action, perform func(*world, []ftengine.Action, int, int) int, kill func(*world)) {
	n := *w
	perform(&n, acts, 0, -1)
	x.emit(&n, step{what: what, repair: true})
	if w.faults >= uint8(x.cfg.Faults) {
		return
	}
	for i := 1; i < len(acts); i++ {
		n := *w
		x.begin(step{what: what, then: "; it dies again"})
		perform(&n, acts, 0, i)
		x.strike(&n)
		kill(&n)
		x.emit(&n, step{what: what, then: "; it dies again", fault: true})
	}
}

// unnoticed tells whether a host is without power, and the other one has not
// seen it yet: a host takes longer to come back than the other to notice.
func (w *world) unnoticed(s side) bool {
	for i := range w.sessions {
		t := &w.sessions[i]
		if s == sideA && t.aLost && t.bUp && w.b.up || s == sideB && t.bLost && t.aUp && w.a.up {
			return true
		}
	}
	return false
}

// strike counts a fault.
func (x *explorer) strike(w *world) {
	w.faults++
	w.mustRun = false
}

// faults are those that strike between two steps; others are where they belong.
func (x *explorer) faults(w *world) {
	x.fault(w, w.a.up, "A's daemon dies", x.killA)
	x.fault(w, w.b.up, "B's daemon dies", x.killB)
	x.fault(w, w.a.power, "host A is lost", func(n *world) {
		x.loseA(n)
		n.mustRun = x.enough(w)
	})
	x.fault(w, w.b.power, "host B is lost", x.loseB)
	x.fault(w, !w.cut, "the link is cut", func(n *world) { n.cut = true })
	for i := uint8(1); i <= w.count; i++ {
		s := &w.sessions[i]
		x.fault(w, s.carries() && !w.cut, "the connection is reset", func(n *world) {
			s := &n.sessions[i]
			s.reset, s.toA, s.toB = true, queue{}, queue{}
		})
	}
	x.fault(w, w.a.guest == running || w.a.guest == paused, "A's QEMU dies", func(n *world) {
		x.endGuest(n, crashed)
		n.mustRun = x.enough(w)
	})
	x.fault(w, w.b.standby == waiting || w.b.standby == loaded, "the standby dies", func(n *world) {
		n.b.standby, n.b.died = absent, n.b.up
	})
	x.fault(w, w.b.standby == running, "the guest ends on B", func(n *world) {
		n.b.standby, n.b.died = absent, n.b.up && n.b.m != 0
	})
	x.fault(w, w.a.capture.epoch != 0 && w.a.capture.answer == pending, "the capture fails", func(n *world) { n.spoil(failed) })
	x.fault(w, w.a.capture.epoch != 0 && w.a.capture.answer == pending, "the capture session breaks", func(n *world) { n.spoil(unusable) })
}

// spoil fails a capture after its pause.
func (w *world) spoil(how answer) {
	c := &w.a.capture
	c.answer = how
	if c.initial && !c.void && w.a.gate == passing {
		w.a.gate = holding
	}
}

func (x *explorer) fault(w *world, may bool, what string, do func(*world)) {
	if !may {
		return
	}
	n := *w
	x.begin(step{what: what})
	x.strike(&n)
	do(&n)
	x.emit(&n, step{what: what, fault: true})
}

// endGuest is QEMU ending on A.
func (x *explorer) endGuest(w *world, how ending) {
	w.a.guest = absent
	if w.a.m != 0 {
		w.a.gone = how
	}
}

// enough tells whether B, when A's guest dies in w, has all that it needs to go
// on, and nothing else went wrong.
func (x *explorer) enough(w *world) bool {
	return !x.cfg.Manual && w.faults == 0 && w.ops == 0 && w.b.m != 0 && w.b.sess != 0 && w.b.acked.session() == w.b.sess
}

// operations are what a person does.
func (x *explorer) operations(w *world) {
	if w.a.m != 0 {
		x.operation(w, "virt-ft failback", true, ftengine.HandOver{})
		x.operation(w, "virt-ft unprotect", true, ftengine.Unprotect{})
		x.operation(w, "virt-ft activate on A", true, ftengine.OperatorActivate{})
	}
	if w.b.m != 0 {
		x.operation(w, "virt-ft activate on B", false, ftengine.OperatorActivate{})
		x.operation(w, "virt-ft activate --force on B", false, ftengine.OperatorActivate{Force: true})
	}
	if w.b.m != 0 && w.b.sess == 0 && x.stateB(w) == ftengine.BackupActive {
		n := *w
		n.ops++
		n.mustRun = false
		x.begin(step{what: "virt-ft unprotect on B"})
		n.b.leave()
		x.emit(&n, step{what: "virt-ft unprotect on B", fault: true})
	}
	if w.a.guest == running {
		n := *w
		n.ops++
		n.mustRun = false
		x.begin(step{what: "the guest shuts down"})
		x.endGuest(&n, shutDown)
		x.emit(&n, step{what: "the guest shuts down", fault: true})
	}
}

func (x *explorer) operation(w *world, what string, onA bool, e ftengine.Event) {
	n := *w
	n.ops++
	n.mustRun = false
	s := step{what: what, fault: true}
	if !onA {
		x.tellB(&n, s, e)
		return
	}
	if _, ok := e.(ftengine.HandOver); ok {
		n.a.asked = true
	}
	x.tell(&n, s, e)
}
