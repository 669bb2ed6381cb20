package sim

import "github.com/virt-ft/virt-ft/pkg/ftengine"

// arbiter has the semantics of internal/arbiter: atomic, in two steps,
// withdrawable. With manual each host has records of its own, which only a
// person's or the dying primary's word creates.
type arbiter struct {
	w      *World
	manual bool
	down   [2]int // faults that hide it from host A, from host B
	stores [2]map[ftengine.Generation]*record
}

type record struct {
	host    int
	running bool
	free    bool
	ran     [2]bool // who ever confirmed: at most one may
}

const (
	sideA = 0
	sideB = 1
)

func newArbiter(w *World, manual bool) arbiter {
	a := arbiter{w: w, manual: manual}
	a.stores[sideA] = map[ftengine.Generation]*record{}
	a.stores[sideB] = a.stores[sideA]
	if manual {
		a.stores[sideB] = map[ftengine.Generation]*record{}
	}
	return a
}

func (a *arbiter) top(side int) (ftengine.Generation, *record) {
	var top ftengine.Generation
	for g, r := range a.stores[side] {
		if !r.free {
			top = max(top, g)
		}
	}
	return top, a.stores[side][top]
}

func (a *arbiter) claim(side int, gen ftengine.Generation, why ftengine.Cause) ftengine.Verdict {
	if top, _ := a.top(side); top > gen {
		return ftengine.Lost
	}
	r := a.stores[side][gen]
	if r == nil || r.free {
		if a.manual && why != ftengine.ByOperator && why != ftengine.HandedOver {
			return ftengine.NeedOperator
		}
		if r == nil {
			r = &record{}
			a.stores[side][gen] = r
		}
		r.host, r.free, r.running = side, false, false
	}
	if r.host == side {
		return ftengine.Won
	}
	return ftengine.Lost
}

func (a *arbiter) confirm(side int, gen ftengine.Generation) bool {
	r := a.stores[side][gen]
	if top, _ := a.top(side); r == nil || r.free || r.host != side || top > gen {
		return false
	}
	r.running, r.ran[side] = true, true
	if r.ran[sideA] && r.ran[sideB] {
		a.w.fail("both hosts were RUNNING in generation %d", gen)
	}
	return true
}

func (a *arbiter) withdraw(side int, gen ftengine.Generation) {
	r := a.stores[side][gen]
	if r != nil && r.host == side && !r.running {
		r.free = true
	}
}

// call has ask reach the arbiter and answer come back, or one of them not.
// answer gets false when the outcome is unknown to the caller. The request of
// a daemon that dies meanwhile may still arrive.
func (a *arbiter) call(side int, ask func(), answer func(known bool)) {
	if a.down[side] > 0 {
		if a.w.chance(30) {
			a.w.after(a.w.between(0, 5), ask)
		}
		a.w.after(a.w.between(50, 300), func() { answer(false) })
		return
	}
	a.w.after(a.w.between(0, 3), func() {
		ask()
		a.w.after(a.w.between(0, 3), func() { answer(true) })
	})
}
