package explore

import "github.com/virt-ft/virt-ft/pkg/ftengine"

// comfort says how users are off in a state, should nothing happen any more.
type comfort uint8

const (
	// atRest: they can live with it for ever.
	atRest comfort = 1 << iota
	// atRestAlone: they can if what is broken stays so.
	atRestAlone
	// oneFault: no more than one fault struck, and no person did anything.
	oneFault
)

// repaired marks a way on that needs a repair.
const repaired = 1 << 31

func (x *explorer) comfort(w *world) (c comfort) {
	if x.rests(w) {
		c |= atRest | atRestAlone
	}
	if w.faults <= 1 && w.ops == 0 {
		c |= oneFault
	}
	b := &w.b
	switch {
	case b.standby == running && x.stateB(w) == ftengine.BackupActive && (w.cut || !w.a.up):
		c |= atRestAlone // a copy on A is mute
	case !w.a.up && w.a.guest == running && (b.m == 0 || x.backups.get(b.m).Acked() == 0):
		// B has nothing yet, or nothing any more, so the daemon on A has to
		// come back before the guest is heard. That is no promise of ours.
		c |= atRestAlone
	}
	return c
}

// stateA and stateB are 0 for a host without a machine.
func (x *explorer) stateA(w *world) ftengine.PrimaryState {
	if w.a.m == 0 {
		return 0
	}
	return x.primaries.get(w.a.m).State()
}

func (x *explorer) stateB(w *world) ftengine.BackupState {
	if w.b.m == 0 {
		return 0
	}
	return x.backups.get(w.b.m).State()
}

// rests tells whether users can live with w for ever: the guest is heard, or
// ended as somebody wished, or no copy of it is left that somebody could go on
// from.
func (x *explorer) rests(w *world) bool {
	a, b := &w.a, &w.b
	onA, onB := a.guest == running, b.standby == running
	pst, bst := x.stateA(w), x.stateB(w)
	switch {
	case x.cfg.Manual && (pst == ftengine.PrimaryUndecided || bst == ftengine.BackupOrphaned || onA && onB && w.byPerson):
		return !a.asked // a person has to decide, and is told so
	case a.asked, onA && onB, a.guest == paused:
		return false
	case bst == ftengine.BackupClaiming || bst == ftengine.BackupActivating:
		return false
	case onB:
		return b.m == 0 && b.phase == phaseEnded || b.up && bst == ftengine.BackupActive
	case onA:
		protected := pst == ftengine.PrimaryProtected && bst == ftengine.BackupStandby
		return a.gate == passing || protected && a.sess != 0 && a.sess == b.sess && !w.cut
	case w.onPurpose:
		return b.standby == absent
	case w.mustRun:
		return false
	}
	// The guest is dead, and nobody wished it: nothing may be left to go on from.
	return bst == 0 || b.standby == absent && !b.memory || b.acked == 0
}

// liveness finds a state from which no more faults, and no person, but all that
// may happen by itself, and all repairs, never lead to one that users can live
// with; and one with a single fault which, if it is never repaired, leaves
// users without their guest. States that were not looked at are given the
// benefit of the doubt.
func (x *explorer) liveness() {
	x.first = append(x.first, uint32(len(x.onward)))
	if s, ok := x.stuck(atRest, 0, true); ok {
		x.broken = "nothing that may still happen leads to a state that users can live with"
		x.last = way{s, wholeState}
	} else if s, ok := x.stuck(atRestAlone, oneFault, false); ok {
		x.broken = "as long as nobody repairs the one thing that is broken, nothing leads to a state that users can live with"
		x.last = way{s, wholeState}
	}
}

// stuck returns the first state, of those with all of only, from which no way
// leads to one with good.
func (x *explorer) stuck(good, only comfort, repairs bool) (uint32, bool) {
	n := uint32(len(x.first) - 1)
	reaches := make([]bool, len(x.rest))
	for s, c := range x.rest {
		reaches[s] = c&good != 0 || uint32(s) >= n
	}
	for changed := true; changed; {
		changed = false
		for s := n; s > 0; s-- {
			if !reaches[s-1] && x.leads(s-1, reaches, repairs) {
				reaches[s-1], changed = true, true
			}
		}
	}
	for s := range n {
		if !reaches[s] && x.rest[s]&only == only {
			return s, true
		}
	}
	return 0, false
}

// leads tells whether a way on from s leads to a state in reaches.
func (x *explorer) leads(s uint32, reaches []bool, repairs bool) bool {
	for _, to := range x.onward[x.first[s]:x.first[s+1]] {
		if (repairs || to&repaired == 0) && reaches[to&^repaired] {
			return true
		}
	}
	return false
}
