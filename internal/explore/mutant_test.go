package explore

import (
	"strings"
	"testing"
)

// TestPlanted: mistakes that are planted into the runners are found, each with
// the promise that it breaks. So what TestExplore finds nothing in, within the
// same bounds, is right for a reason.
func TestPlanted(t *testing.T) {
	for _, c := range []struct {
		name   string
		plant  bug
		faults int
		ops    int
		epochs int
		broken string // part of what is said
	}{
		{"a claim within the lease", claimInLease, 1, 0, 1, "outputs of A leave after the guest went on on B"},
		{"the loser's copy is ended when the winner claimed", destroyOnClaim, 2, 0, 1, "A ends its copy, and B never said that it runs"},
		{"the guest goes on before RUNNING is recorded", resumeUnconfirmed, 1, 0, 1, "B is not RUNNING in it at the arbiter"},
		{"the gate opens when a session is lost", openOnLoss, 1, 0, 1, "the world heard"},
		{"A takes an unknown outcome for a won claim", unknownWinsA, 2, 0, 1, "the world heard"},
		{"B takes an unknown outcome for a won claim", unknownWinsB, 2, 0, 1, "that users can live with"},
		{"outputs are released before they are acknowledged", releaseEarly, 1, 0, 2, "the world heard"},
		{"a marker is not written", forgetArmed, 2, 0, 1, "two copies are heard"},
		{"timers of B never fire", deafTimersB, 1, 0, 1, "that users can live with"},
		{"B drops what it holds when it loses A", dropOnLoss, 1, 0, 1, "that users can live with"},
		{"a gate is not sealed before the backup is told", unsealed, 1, 0, 1, "outputs of A leave after the guest went on on B"},
		{"the last epoch of a guest that was shut down is taken for any other", finalForgotten, 1, 1, 1, "a guest that was shut down runs again"},
		{"B forgets that the guest ran there", forgetRan, 1, 1, 1, "A's copy is heard after the guest went on on B"},
		{"B forgets that the guest ran there, and ended", forgetRan, 2, 0, 1, "A's copy is heard after the guest went on on B"},
		{"both sides win", bothWin, 1, 0, 1, "the world heard"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if raceEnabled && c.faults+c.ops > 1 {
				t.Skip("takes a long search, of one goroutine")
			}
			if c.ops > 0 && releasesAfterClose(t) {
				t.Skip("what TestReleaseAfterClose shows is in the way")
			}
			r := Run(Config{Faults: c.faults, Operations: c.ops, Sessions: 2, Epochs: c.epochs, plant: c.plant})
			t.Logf("%v: %s", r, r.Broken)
			if !strings.Contains(r.Broken, c.broken) {
				t.Fatalf("found %q, and not that %q\n%s", r.Broken, c.broken, strings.Join(r.Trace, "\n"))
			}
		})
	}
}
