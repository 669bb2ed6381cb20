package sim

import (
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// Kind is what goes wrong.
type Kind uint8

// The kinds of faults. Those with a duration heal after For.
const (
	CutLink Kind = iota
	ResetLink
	KillDaemonA
	KillDaemonB
	LoseHostA
	LoseHostB
	GuestCrash
	GuestShutdown
	StandbyDeath
	CaptureFails
	CaptureFatal
	ArbiterDown
	ArbiterDownA
	ArbiterDownB
	RehearsalFails
	MakeFails
	LoadFails
	CommitFails
	Unprotect
	Activate
	ActivateForce
	ActivateA
	FreezeDaemonA
	FreezeHostA
	HandOver
	UnprotectB
	kinds
)

var kindNames = [kinds]string{"CutLink", "ResetLink", "KillDaemonA", "KillDaemonB", "LoseHostA", "LoseHostB", "GuestCrash",
	"GuestShutdown", "StandbyDeath", "CaptureFails", "CaptureFatal", "ArbiterDown", "ArbiterDownA", "ArbiterDownB", "RehearsalFails",
	"MakeFails", "LoadFails", "CommitFails", "Unprotect", "Activate", "ActivateForce", "ActivateA",
	"FreezeDaemonA", "FreezeHostA", "HandOver", "UnprotectB"}

func (k Kind) String() string { return kindNames[k] }

// Fault strikes before step Step, or at time At when Step is 0.
type Fault struct {
	Kind Kind
	Step int
	At   time.Duration
	For  time.Duration
}

func (f Fault) String() string {
	if f.Step > 0 {
		return fmt.Sprintf("%v@step %d for %v", f.Kind, f.Step, f.For)
	}
	return fmt.Sprintf("%v@%v for %v", f.Kind, f.At, f.For)
}

// strike has f happen. It counts as open until it healed.
func (w *World) strike(f Fault) {
	w.logf("---- %v", f)
	if len(w.cfg.Faults) == 1 {
		w.expect(f) // nothing else goes wrong
	}
	undo := w.inflict(f.Kind)
	if undo == nil {
		w.faultHealed()
		return
	}
	w.after(f.For, func() {
		w.logf("---- healed: %v", f)
		undo()
		w.faultHealed()
	})
}

// expect notes what has to come of f alone.
func (w *World) expect(f Fault) {
	if w.takesA(f) {
		// What B acknowledged has to go on there.
		w.mustRun = w.b.sess != nil && w.b.acked.session == w.b.sess.id
	}
	if w.a.m == nil || w.a.m.State() != ftengine.PrimaryProtected {
		return
	}
	switch f.Kind {
	case GuestShutdown:
		w.must = mustEnd
	case HandOver:
		w.must = mustSwitch
	}
}

// takesA tells whether f leaves the guest nowhere to be heard but on B.
func (w *World) takesA(f Fault) bool {
	switch f.Kind {
	case LoseHostA, GuestCrash:
		return true
	case KillDaemonA: // for good, as far as B can know
		return !w.cfg.Manual && w.limits.Grace > 0 && f.For > w.limits.Grace+time.Second
	}
	return false
}

func (w *World) faultHealed() {
	w.open--
	w.healed = w.now
	w.good = -1
}

// inflict returns what heals the fault, or nil if it is over at once.
func (w *World) inflict(k Kind) (undo func()) {
	a, b := w.a, w.b
	switch k {
	case CutLink:
		w.link.cut()
		return w.link.heal
	case ResetLink:
		w.link.reset()
	case KillDaemonA:
		a.kill(false)
		return a.restart
	case KillDaemonB:
		b.kill(false)
		return b.restart
	case LoseHostA:
		return w.loseA()
	case LoseHostB:
		return w.loseB()
	case GuestCrash:
		a.endGuest(false)
	case GuestShutdown:
		a.endGuest(true)
	case StandbyDeath:
		b.endStandby()
	case CaptureFails:
		a.captureFails, a.captureFatal = 1, false
	case CaptureFatal:
		a.captureFails, a.captureFatal = 1, true
	case ArbiterDown:
		return w.arb.hide(sideA, sideB)
	case ArbiterDownA:
		return w.arb.hide(sideA)
	case ArbiterDownB:
		return w.arb.hide(sideB)
	case RehearsalFails:
		b.rehearseFails = 1
	case MakeFails:
		b.makeFails = 1
	case LoadFails:
		b.loadFails = 1 + w.rng.IntN(2)
	case CommitFails:
		b.commitFails = 1
	case Unprotect:
		a.post(ftengine.Unprotect{Reason: "unprotected by the operator"})
	case Activate:
		a.grants = false
		w.decide(forB, func() { b.post(ftengine.OperatorActivate{}) })
	case ActivateForce:
		a.grants = false
		w.decide(forB, func() { b.post(ftengine.OperatorActivate{Force: true}) })
	case ActivateA:
		w.decide(forA, func() { a.post(ftengine.OperatorActivate{}) })
	case HandOver: // a person's word for B, as the only arbiter
		a.grants = a.grants || w.person == nobody
		w.decide(forB, a.swap)
	case UnprotectB:
		b.leave()
	case FreezeDaemonA:
		return a.freeze(false)
	case FreezeHostA:
		return a.freeze(true)
	}
	return nil
}

// decide is a person's word. As the only arbiter a person does not decide for
// both hosts; with another one that is harmless.
func (w *World) decide(side person, say func()) {
	if w.cfg.Manual {
		if w.person != nobody && w.person != side {
			return
		}
		w.person = side
	}
	say()
}

func (a *arbiter) hide(sides ...int) func() {
	for _, s := range sides {
		a.down[s]++
	}
	return func() {
		for _, s := range sides {
			a.down[s]--
		}
	}
}

// loseA takes the power from host A: nothing of it is heard any more.
func (w *World) loseA() func() {
	if !w.a.alive {
		return nil
	}
	w.a.kill(true)
	w.a.alive, w.a.guestUp = false, false
	for _, s := range w.link.sessions {
		s.aUp, s.toA.queue, s.toB.queue = false, nil, nil
		w.after(w.limits.Detect+w.between(0, 60), func() { s.downB(ftengine.Silent) })
	}
	return func() {
		w.a.alive = true
		w.a.restart()
	}
}

func (w *World) loseB() func() {
	if !w.b.alive {
		return nil
	}
	w.b.kill(true)
	w.b.alive = false
	w.b.destroy()
	for _, s := range w.link.sessions {
		s.bUp, s.toA.queue, s.toB.queue = false, nil, nil
		w.after(w.limits.Detect+w.between(0, 60), func() { s.downA(ftengine.Silent) })
	}
	return func() {
		w.b.alive = true
		w.b.restart()
	}
}
