package explore

import (
	"flag"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

var (
	faults    = flag.Int("explore.faults", -1, "explore this many faults, and nothing else; 3 take two minutes and two gigabytes")
	ops       = flag.Int("explore.operations", -1, "with -explore.faults: only this many operations, and the bounds that follow")
	sessions  = flag.Int("explore.sessions", 2, "with -explore.operations: sessions in a run, at most 3")
	epochs    = flag.Int("explore.epochs", 1, "with -explore.operations: epochs of a session, at most 2")
	manual    = flag.Bool("explore.manual", false, "with -explore.operations: a person is the arbiter")
	late      = flag.Bool("explore.late", false, "with -explore.operations: claims that are not answered may be taken later")
	statesMax = flag.Int("explore.states", 0, "with -explore.operations: end after this many states; 0: never")
)

func explore(t *testing.T, c Config) Result {
	t.Helper()
	begin := time.Now()
	r := Run(c)
	t.Logf("%v: %v, %v", c, r, time.Since(begin).Round(time.Millisecond))
	if strings.HasSuffix(r.Broken, "is released without a session") && releasesAfterClose(t) {
		t.Skip("what TestReleaseAfterClose shows is in the way")
	}
	if r.Broken != "" {
		t.Fatalf("%s\n%s", r.Broken, strings.Join(r.Trace, "\n"))
	}
	return r
}

// configs are bounds that take seconds; TestReach has those of one fault with
// one operation.
func configs() []Config {
	switch {
	case *faults >= 0 && *ops >= 0:
		return []Config{{Faults: *faults, Operations: *ops, Sessions: *sessions, Epochs: *epochs, Manual: *manual, Late: *late, StatesMax: *statesMax}}
	case *faults >= 0:
		return []Config{
			{Faults: *faults, Operations: 0, Sessions: 3, Epochs: 1},
			{Faults: *faults, Operations: 1, Sessions: 1, Epochs: 1},
			{Faults: max(0, *faults-1), Operations: 0, Sessions: 3, Epochs: 2},
			{Faults: max(0, *faults-1), Operations: 1, Sessions: 2, Epochs: 1},
			{Faults: max(0, *faults-1), Operations: 1, Sessions: 2, Epochs: 1, Manual: true, Late: true},
		}
	case raceEnabled || testing.Short():
		return []Config{
			{Faults: 1, Operations: 0, Sessions: 2, Epochs: 1},
			{Faults: 0, Operations: 1, Sessions: 2, Epochs: 1},
		}
	}
	return []Config{
		{Faults: 1, Operations: 0, Sessions: 3, Epochs: 2},
		{Faults: 0, Operations: 1, Sessions: 3, Epochs: 2},
		{Faults: 0, Operations: 2, Sessions: 2, Epochs: 1},
		{Faults: 1, Operations: 1, Sessions: 2, Epochs: 1, Manual: true},
		{Faults: 2, Operations: 0, Sessions: 2, Epochs: 1, Late: true},
	}
}

// TestExplore looks at every world within bounds.
func TestExplore(t *testing.T) {
	for _, c := range configs() {
		t.Run(strings.ReplaceAll(c.String(), " ", "_"), func(t *testing.T) {
			if r := explore(t, c); !r.Complete && c.StatesMax == 0 {
				t.Fatal("it is not complete, and nothing is wrong")
			}
		})
	}
}

// TestReach: what finds nothing has looked: both machines were in each of their
// states, the guest went on on B, and it ended.
func TestReach(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("takes a whole search, of one goroutine")
	}
	r := explore(t, Config{Faults: 1, Operations: 1, Sessions: 2, Epochs: 1})
	for s := ftengine.PrimaryConnecting; s <= ftengine.PrimaryStopped; s++ {
		if !slices.Contains(r.Reached, "primary "+s.String()) {
			t.Errorf("no primary was %v", s)
		}
	}
	for s := ftengine.BackupWaiting; s <= ftengine.BackupStopped; s++ {
		if !slices.Contains(r.Reached, "backup "+s.String()) {
			t.Errorf("no backup was %v", s)
		}
	}
	for _, want := range []string{"the guest went on on B", "the guest was shut down", "the last epoch was acknowledged"} {
		if !slices.Contains(r.Reached, want) {
			t.Errorf("never: %s; reached: %v", want, r.Reached)
		}
	}
}

// TestSame: a search is the same each time, whatever its hashes are.
func TestSame(t *testing.T) {
	c := Config{Faults: 1, Operations: 0, Sessions: 2, Epochs: 1}
	a, b := Run(c), Run(c)
	if a.States != b.States || a.Transitions != b.Transitions || a.Depth != b.Depth {
		t.Fatalf("%v, then %v", a, b)
	}
}

// TestShared: a machine that got a field which its copies would share is
// noticed before anything is believed of it.
func TestShared(t *testing.T) {
	for _, m := range []any{struct{ p *int }{}, struct{ m map[int]int }{}, struct{ c chan int }{}, struct{ f func() }{}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%T is taken for a value", m)
				}
			}()
			appendState(nil, reflect.ValueOf(m))
		}()
	}
	type state struct {
		n     int
		token uint64
	}
	key := func(v any) string { return fmt.Sprintf("%x", appendState(nil, reflect.ValueOf(v))) }
	if key(state{1, 1}) != key(state{1, 2}) || key(state{1, 1}) == key(state{2, 1}) {
		t.Error("what is a part of a state, and what is not, is confused")
	}
}

// TestTrace: a counterexample is a story that can be followed, step by step.
func TestTrace(t *testing.T) {
	r := Run(Config{Faults: 1, Operations: 0, Sessions: 2, Epochs: 1, plant: resumeUnconfirmed})
	text := strings.Join(r.Trace, "\n")
	at := 0
	for _, want := range []string{"A dials; B lets it in", "A: SendSetup", "B: MakeStandby", "A: Capture{Epoch:1", "B: Ack{Epoch:1}", "Claim{Generation:2", "B: Resume", "BROKEN: the guest goes on on B"} {
		i := strings.Index(text[at:], want)
		if i < 0 {
			t.Fatalf("%q is missing, or not in its place:\n%s", want, text)
		}
		at += i
	}
}
