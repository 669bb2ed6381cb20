package sim

import (
	"time"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// dupMax is the longest time for which two copies may run while A's
	// daemon lives: it has to notice the silence, and to be told by the
	// arbiter, or that the arbiter does not answer.
	dupMax = 1500 * time.Millisecond
	// restMax is how long after the last fault healed the world may take
	// to come to rest.
	restMax = 20 * time.Second
	// restTime is how long it has to stay there.
	restTime = 700 * time.Millisecond
	// heldMax is how long an output of a guest that is protected may be
	// held when nothing is wrong.
	heldMax = time.Second
)

// released checks the release of an epoch's outputs: in order, once, and only
// after the backup acknowledged it.
func (w *World) released(e ftengine.Epoch) {
	s := w.a.sess
	switch {
	case s == nil:
		w.fail("epoch %d is released without a session", e)
	case e != s.released+1:
		w.fail("epoch %d is released after %d", e, s.released)
	case s.acked < e:
		w.fail("epoch %d is released, %d is acknowledged", e, s.acked)
	default:
		s.released = e
	}
}

// claimed checks that nobody activates a guest that another side decided on.
func (w *World) claimed(c ftengine.Claim, v ftengine.Verdict) {
	if v == ftengine.Won && c.Because == ftengine.HandedOver && w.a.runs() {
		w.fail("the guest was handed over and runs on A")
	}
}

// resumed checks the moment in which the guest goes on on B.
func (w *World) resumed(q *qemu) {
	b := w.b
	w.logf("B: the guest goes on from %v", q.holds)
	if q.holds != b.acked {
		w.fail("B goes on from %v, it acknowledged %v", q.holds, b.acked)
	}
	for _, s := range w.link.sessions {
		if r := (checkpoint{s.id, s.released}); s.released > 0 && q.holds.before(r) {
			w.fail("B goes on from %v, A performed the outputs of %v", q.holds, r)
		}
	}
	if b.final != (checkpoint{}) {
		w.fail("B goes on with a guest that was shut down in order, %v was its end", b.final)
	}
	if p := b.parcels[q.holds]; b.disk != p.wrote {
		w.fail("B goes on from %v with %d writes on its disks, it wrote %d", q.holds, b.disk, p.wrote)
	}
	w.wentOn = true
	g := &w.a.gate
	g.covers(q.holds, b.parcels[q.holds].last, b.forgot)
	// A copy on A is only left running when nothing was heard of A for the
	// detection limit, when its daemon is gone, or a person said so; and
	// the world hears nothing of it.
	known := b.cause == ftengine.PeerSilent && b.loss == ftengine.Silent || b.cause == ftengine.DaemonGone && b.loss == ftengine.Closed
	if w.a.runs() && b.cause != ftengine.ByOperator && !known {
		w.fail("B goes on because of %q after the session was %v, A's copy runs", b.cause, b.loss)
	}
	if w.a.runs() && g.mode == gateOpen && !g.byPerson {
		w.fail("B goes on, A's copy runs and its gate is open")
	}
	gen := b.marker.gen
	if r := w.arb.stores[sideB][gen]; r == nil || r.host != sideB || r.free || !r.running {
		w.fail("B runs in generation %d without the right to", gen)
	}
	if w.a.marker.gen >= gen && w.a.guestUp {
		w.fail("B runs in generation %d, A is in %d", gen, w.a.marker.gen)
	}
}

// ended checks the end of a guest that was shut down in order, in the moment in
// which B lets go of its standby: its images hold all that it wrote.
func (w *World) ended() {
	if w.b.disk != w.a.wrote {
		w.fail("the guest was shut down in order: B's disks hold %d writes of %d", w.b.disk, w.a.wrote)
	}
}

// outcome checks what has to have come of a fault in a world in which nothing
// else went wrong.
func (w *World) outcome() {
	a, b := w.a, w.b
	if w.mustRun && !b.runs() {
		w.fail("the guest is lost")
	}
	if b.final != (checkpoint{}) && b.up && !b.torn && b.disk != a.wrote {
		w.fail("B acknowledged the end of the guest, its disks hold %d writes of %d", b.disk, a.wrote)
	}
	switch w.must {
	case mustEnd:
		if b.final == (checkpoint{}) || a.ended == "" || b.runs() {
			w.fail("the guest was shut down in order: its end is %v on B, where it runs %v; A's last word is %q", b.final, b.runs(), a.ended)
		}
	case mustSwitch:
		if !b.runs() || a.guestUp || !a.switched {
			w.fail("the guest was not handed over: runs on B %v, is on A %v, answered %v", b.runs(), a.guestUp, a.switched)
		}
		if p := b.parcels[b.acked]; p.last != len(a.gate.outs) || p.wrote != a.wrote {
			w.fail("the guest was handed over with %d outputs of %d, %d writes of %d", p.last, len(a.gate.outs), p.wrote, a.wrote)
		}
	default:
		return
	}
	for n := range a.gate.outs {
		if o := a.gate.outs[n]; !o.left && !o.performed {
			w.fail("output %d of %v was performed by nobody", n+1, o.epoch)
		}
	}
}

// check looks at the whole world, after every step.
func (w *World) check() {
	if !w.a.runs() || !w.b.runs() || !w.a.up || w.a.frozen {
		w.dupSince = -1
	} else if w.dupSince < 0 {
		w.dupSince = w.now
	}
	// With a person as arbiter A learns of it from B only, and not at all
	// once a person ended the protection on A without reaching B.
	told := !w.cfg.Manual || w.link.cuts == 0 && w.b.up && w.a.ended == ""
	if !told {
		w.dupSince = -1
	}
	w.a.bounded()
	if w.dupSince >= 0 && w.now-w.dupSince > dupMax {
		w.fail("two copies run for %v", w.now-w.dupSince)
	}
	if q := w.b.standby; q != nil && q.runs && !q.loaded {
		w.fail("B runs what was never loaded")
	}
}

// atRest tells whether the run may end: all faults healed, and the world in a
// state that needs nobody. It fails the run if that takes too long.
func (w *World) atRest() bool {
	for _, f := range w.faults {
		if f.Step > w.steps && w.now < 3*time.Second || w.open > 0 {
			w.good = -1
			return false
		}
	}
	if w.healed == 0 && len(w.faults) > 0 && w.now < 3*time.Second {
		return false
	}
	why := w.unrest()
	switch {
	case why == "":
		if w.good < 0 {
			w.good = w.now
		}
		return w.now-w.good >= restTime && w.now-w.healed >= restTime
	case w.now-w.healed > restMax:
		w.fail("no rest %v after the last fault healed: %s", w.now-w.healed, why)
	}
	w.good = -1
	w.consult()
	return false
}

// consult is the operator, who looks after a while, and knows which guest is
// dead.
func (w *World) consult() {
	if w.operator || w.now-w.healed < 5*time.Second || w.b.m == nil || w.b.m.State() != ftengine.BackupOrphaned || w.a.guestUp {
		return
	}
	w.operator = true
	w.logf("---- operator: activate")
	w.b.post(ftengine.OperatorActivate{})
}

// unrest says why the world is not at rest, or "".
func (w *World) unrest() string {
	a, b := w.a, w.b
	switch {
	case a.guestUp && a.paused:
		return "the guest on A is paused"
	case a.asked && a.ended == "":
		return "a hand over is not answered"
	case a.runs() && a.gate.mode != gateOpen && a.ended != "":
		return "what the guest on A sends is held for good"
	case a.runs() && a.gate.mode != gateOpen && (a.m.State() != ftengine.PrimaryProtected || b.m == nil || b.m.State() != ftengine.BackupStandby):
		return "what the guest on A sends is held, nobody stands by"
	case a.runs() && a.gate.stuck():
		return "what the guest on A sends is held for too long"
	case a.runs() && b.runs() && !(w.cfg.Manual && a.ended != ""):
		return "two copies run"
	case b.m != nil && (b.m.State() == ftengine.BackupClaiming || b.m.State() == ftengine.BackupActivating):
		return "B is " + b.m.State().String()
	case a.ended == "" && a.m.State() != ftengine.PrimaryProtected:
		return "A is " + a.m.State().String()
	case a.ended == "" && !a.guestUp:
		return "A protects a dead guest"
	case a.ended == "" && (b.m == nil || b.m.State() != ftengine.BackupStandby):
		return "A is protected, B does not stand by"
	case b.m != nil && b.m.State() == ftengine.BackupActive && !b.runs():
		return "B is active without a guest"
	case b.runs() && b.m == nil && b.marker.phase != "ended":
		return "a guest runs on B that nobody knows of"
	case b.m != nil && b.m.State() == ftengine.BackupOrphaned && !a.guestUp && !w.operator:
		return "the last copy waits for an operator"
	}
	return ""
}
