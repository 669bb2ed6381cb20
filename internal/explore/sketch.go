package explore

import (
	"fmt"
	"strings"
)

func (g guest) String() string {
	return [...]string{"no guest", "a standby waits", "a standby is loaded", "the guest is paused", "the guest runs"}[g]
}

func (m mode) String() string { return [...]string{"passing", "holding", "sealed"}[m] }

// sketch is a world in one line.
func (x *explorer) sketch(w *world) string {
	var b strings.Builder
	daemon := func(m machine, up bool, state string) string {
		switch {
		case !up:
			return "no daemon"
		case m == 0:
			return "nothing protected"
		}
		return state
	}
	var pst, bst string
	if w.a.m != 0 {
		p := x.primaries.get(w.a.m)
		pst = fmt.Sprintf("%v (generation %d, %d/%d)", p.State(), p.Generation(), p.Acked(), p.Captured())
	}
	if w.b.m != 0 {
		m := x.backups.get(w.b.m)
		bst = fmt.Sprintf("%v (generation %d, %d/%d)", m.State(), m.Generation(), m.Committed(), m.Acked())
	}
	fmt.Fprintf(&b, "   A: %s, %v, gate %v, marker %q", daemon(w.a.m, w.a.up, pst), w.a.guest, w.a.gate, x.words[w.a.phase])
	fmt.Fprintf(&b, " | B: %s, %v, marker %q", daemon(w.b.m, w.b.up, bst), w.b.standby, x.words[w.b.phase])
	if top := w.arb.top(); top > 0 {
		r := w.arb[top]
		fmt.Fprintf(&b, " | generation %d: %s", top, [...]string{"", "A", "B"}[r.holder])
		if r.running {
			b.WriteString(" RUNNING")
		}
	}
	if top := w.notes.top(); top > 0 {
		fmt.Fprintf(&b, " | B's notes: generation %d, RUNNING %v", top, w.notes[top].running)
	}
	if w.cut {
		b.WriteString(" | cut")
	}
	return b.String()
}
