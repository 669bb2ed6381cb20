package capture

import (
	"testing"
	"time"
)

// TestArenasThatNobodyNeedsAreGivenBack takes some at once, and then only one at a
// time.
func TestArenasThatNobodyNeedsAreGivenBack(t *testing.T) {
	a := newArenas(1 << 20)
	defer a.close()
	take := func(n int) {
		var out []*arena
		for range n {
			x, err := a.checkpoint.get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			x.mem[0] = 1 // it is mapped
			out = append(out, x)
		}
		for _, x := range out {
			a.checkpoint.put(x)
		}
	}
	now := time.Now()
	has := func(want int) {
		t.Helper()
		if err := a.tidy(now); err != nil {
			t.Fatal(err)
		}
		if n := len(a.checkpoint.free); n != want {
			t.Fatalf("%d arenas are kept, not %d", n, want)
		}
		now = now.Add(arenaIdleMax)
	}
	take(4)
	has(4) // they were needed until now
	take(2)
	has(2)
	take(1)
	now = now.Add(-1)
	has(2) // it is not time yet
	has(1)
	has(0)
	take(checkpointArenas) // all may go out again
	has(checkpointArenas)
}
