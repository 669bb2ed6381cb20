package explore

import "github.com/virt-ft/virt-ft/pkg/ftengine"

// records is what the arbiter of s knows. One that is manual is a person, and
// each host has notes of its own.
func (x *explorer) records(w *world, s side) *arbiter {
	if x.cfg.Manual && s == sideB {
		return &w.notes
	}
	return &w.arb
}

// side is one of the hosts; 0 is nobody.
type side uint8

const (
	sideA side = iota + 1
	sideB
)

// gensMax bounds the generations of a run. Each is won by somebody, and a
// bounded number of faults and sessions gives cause for few.
const gensMax = 8

// record is what the arbiter knows of one generation: who claimed it, and
// whether it said that it runs. A record that was handed back has no holder.
type record struct {
	holder  side
	running bool
	free    bool // it was handed back
}

// arbiter has the semantics of internal/arbiter: atomic, in two steps, and
// withdrawable. The record of generation g is arbiter[g].
type arbiter [gensMax]record

func (a *arbiter) top() ftengine.Generation {
	for g := gensMax - 1; g > 0; g-- {
		if a[g].holder != 0 {
			return ftengine.Generation(g)
		}
	}
	return 0
}

// claim is a claim of s taken. A record that is not there, of an arbiter that
// is manual, only a person makes, or the word of the one that hands over.
func (a *arbiter) claim(s side, c request, manual bool) ftengine.Verdict {
	r := &a[c.gen]
	switch {
	case a.top() > ftengine.Generation(c.gen):
		return ftengine.Lost
	case r.holder == 0 && manual && c.cause != ftengine.ByOperator && c.cause != ftengine.HandedOver:
		return ftengine.NeedOperator
	case r.holder == 0:
		r.holder, r.free = s, false
		return ftengine.Won
	case r.holder == s:
		return ftengine.Won
	}
	return ftengine.Lost
}

func (a *arbiter) confirm(s side, gen uint8) bool {
	r := &a[gen]
	if a.top() > ftengine.Generation(gen) || r.holder != s {
		return false
	}
	r.running = true
	return true
}

func (a *arbiter) withdraw(s side, gen uint8) {
	if r := &a[gen]; r.holder == s && !r.running {
		r.holder, r.free = 0, true
	}
}

// overtake is a step of s taken: an older one of the same daemon finds its place
// taken, should it come at last (internal/arbiter sees to that).
func (w *world) overtake(s side) {
	if !w.late[s].orphan {
		w.late[s] = request{}
	}
}
