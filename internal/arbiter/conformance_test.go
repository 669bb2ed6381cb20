package arbiter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// site is what two hosts have between them: something to decide by.
type site struct {
	// open is what a host's daemon does when it starts.
	open func(t *testing.T, host string) Arbiter
	// start turns both hosts on again. nil: power decides nothing here.
	start func(t *testing.T)
	// on tells whether a host has power. nil: always.
	on func(host string) bool
	// open to the other side: what one host did is seen by the other.
	shared bool
}

func (s site) power(host string) bool { return s.on == nil || s.on(host) }

// conform is what every arbiter that decides by itself must do.
func conform(t *testing.T, newSite func(t *testing.T) site) {
	t.Run("one wins", func(t *testing.T) { conformRace(t, newSite(t)) })
	t.Run("crashes", func(t *testing.T) { conformCrash(t, newSite(t)) })
	t.Run("steps", func(t *testing.T) { conformSteps(t, newSite(t)) })
	if s := newSite(t); s.shared {
		t.Run("the other side", func(t *testing.T) { conformShared(t, s) })
		t.Run("revoke", func(t *testing.T) { conformRevoke(t, newSite(t)) })
	}
}

// Two hosts, many goroutines each: in every generation one host wins, and all
// that its goroutines are told is that it won.
func conformRace(t *testing.T, s site) {
	const generations, callers = 6, 4
	hosts := []string{"a", "b"}
	daemons := map[string]Arbiter{}
	for _, h := range hosts {
		daemons[h] = s.open(t, h)
	}
	for g := uint64(1); g <= generations; g++ {
		if s.start != nil {
			s.start(t)
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		won, lost := map[string]int{}, map[string]int{}
		for _, h := range hosts {
			for range callers {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					defer cancel()
					v, err := daemons[h].Claim(ctx, claimOf(h, g))
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err != nil && s.on == nil:
						t.Errorf("%s: %v", h, err)
					case err == nil && v.Won:
						won[h]++
					case err == nil:
						lost[h]++
					}
				})
			}
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("generation %d was won by %v", g, won)
		}
		for h, n := range won {
			if n != callers || lost[h] != 0 {
				t.Errorf("generation %d: %s was told %d times that it won, %d times that it lost", g, h, n, lost[h])
			}
			if !s.power(h) {
				t.Errorf("generation %d: %s won and is off", g, h)
			}
			if err := daemons[h].Confirm(t.Context(), claimOf(h, g)); err != nil {
				t.Error(err)
			}
		}
	}
}

// A daemon that starts anew repeats what it was about to do.
func conformCrash(t *testing.T, s site) {
	ctx, c := t.Context(), claimOf("a", 1)
	mustWin(t, s.open(t, "a"), c)
	next := s.open(t, "a")
	mustWin(t, next, c)
	if err := next.Confirm(ctx, c); err != nil {
		t.Fatal(err)
	}
	last := s.open(t, "a")
	v, err := last.Claim(ctx, c)
	if err != nil || !v.Won || v.Step != StepRunning {
		t.Fatalf("claim of what runs: %+v, %v", v, err)
	}
	if err := last.Confirm(ctx, c); err != nil {
		t.Fatal(err)
	}
	if err := last.Withdraw(ctx, c); !errors.Is(err, ErrRunning) {
		t.Fatalf("withdraw of what runs: %v", err)
	}
	if r, err := last.Inspect(ctx, domain); err != nil || r.Host != "a" || r.Generation != 1 || r.Step != StepRunning || r.At.IsZero() {
		t.Fatalf("%+v, %v", r, err)
	}
}

func conformSteps(t *testing.T, s site) {
	ctx, a, c := t.Context(), s.open(t, "a"), claimOf("a", 1)
	if r, err := a.Inspect(ctx, domain); err != nil || r.Generation != 0 {
		t.Fatalf("fresh: %+v, %v", r, err)
	}
	if err := a.Withdraw(ctx, c); err != nil {
		t.Fatalf("withdraw of what nobody claimed: %v", err)
	}
	if err := a.Confirm(ctx, c); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("confirm of what nobody claimed: %v", err)
	}
	mustWin(t, a, c)
	mustWin(t, a, c)
	for range 2 {
		if err := a.Withdraw(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Confirm(ctx, c); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("confirm after withdraw: %v", err)
	}
	if r, err := a.Inspect(ctx, domain); err != nil || r.Step != StepWithdrawn {
		t.Fatalf("after withdraw: %+v, %v", r, err)
	}
	mustWin(t, a, c)
	for range 2 {
		if err := a.Confirm(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	var op *OpError
	if err := a.Withdraw(ctx, c); !errors.Is(err, ErrRunning) || !errors.As(err, &op) || op.Op != "withdraw" {
		t.Fatalf("withdraw after RUNNING: %v", err)
	}
	mustWin(t, a, claimOf("a", 2))
	if v, err := a.Claim(ctx, c); err != nil || v.Won {
		t.Fatalf("an older generation was won again: %+v, %v", v, err)
	}
	for _, bad := range []Claim{{Domain: domain, Host: "a"}, {Domain: "../x", Generation: 1, Host: "a"}, {Domain: domain, Generation: 1, Host: "a/b"}} {
		if v, err := a.Claim(ctx, bad); err == nil || v.Won {
			t.Errorf("%+v accepted: %+v", bad, v)
		}
	}
}

// What one host did, the other one sees.
func conformShared(t *testing.T, s site) {
	ctx, hostA, hostB := t.Context(), s.open(t, "a"), s.open(t, "b")
	a, b := claimOf("a", 1), claimOf("b", 1)
	mustWin(t, hostA, a)
	mustLose(t, hostB, b, "a")
	if err := hostB.Confirm(ctx, b); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("confirm by the loser: %v", err)
	}
	if err := hostB.Withdraw(ctx, b); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("withdraw by the loser: %v", err)
	}
	if err := hostA.Withdraw(ctx, a); err != nil {
		t.Fatal(err)
	}
	mustWin(t, hostB, b) // what was handed back is free
	mustLose(t, hostA, a, "b")
	if err := hostB.Confirm(ctx, b); err != nil {
		t.Fatal(err)
	}
	if r, err := hostA.Inspect(ctx, domain); err != nil || r.Host != "b" || r.Step != StepRunning {
		t.Fatalf("%+v, %v", r, err)
	}
	mustWin(t, hostA, claimOf("a", 2))
	mustLose(t, hostB, b, "a") // superseded
}

// A right that was not used can be taken from a host that was lost; of its Confirm
// and the Revoke only one succeeds.
func conformRevoke(t *testing.T, s site) {
	ctx, hostA, hostB := t.Context(), s.open(t, "a"), s.open(t, "b")
	revoker := hostB.(Revoker)
	if err := revoker.Revoke(ctx, claimOf("b", 1)); err != nil {
		t.Fatalf("of what nobody holds: %v", err)
	}
	for g := uint64(1); g <= 8; g++ {
		a, b := claimOf("a", g), claimOf("b", g)
		mustWin(t, hostA, a)
		mustLose(t, hostB, b, "a")
		var confirmed, revoked error
		var wg sync.WaitGroup
		wg.Go(func() { confirmed = hostA.Confirm(ctx, a) })
		if g > 4 {
			wg.Wait()
		}
		wg.Go(func() { revoked = revoker.Revoke(ctx, b) })
		wg.Wait()
		switch {
		case confirmed == nil && errors.Is(revoked, ErrRunning):
			mustLose(t, hostB, b, "a")
		case errors.Is(confirmed, ErrNotHolder) && revoked == nil:
			mustWin(t, hostB, b)
			mustLose(t, hostA, a, "b")
		default:
			t.Fatalf("generation %d: confirm: %v, revoke: %v", g, confirmed, revoked)
		}
	}
	a, b := claimOf("a", 9), claimOf("b", 9)
	mustWin(t, hostA, a)
	if err := revoker.Revoke(ctx, b); err != nil {
		t.Fatal(err)
	}
	if err := hostA.Confirm(ctx, a); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("confirm of what was revoked: %v", err)
	}
	if err := hostA.Withdraw(ctx, a); err != nil {
		t.Fatalf("withdraw of what was revoked: %v", err)
	}
	mustWin(t, hostB, b)
}

func TestFileConforms(t *testing.T) {
	conform(t, func(t *testing.T) site {
		dir := t.TempDir()
		return site{shared: true, open: func(t *testing.T, _ string) Arbiter { return open(t, dir) }}
	})
}

// An operation that gave up before it placed anything says so, and never will.
func TestFileUndecided(t *testing.T) {
	dir := t.TempDir()
	for _, label := range []string{"list", "read", "create temp", "sync temp"} {
		t.Run(label, func(t *testing.T) {
			domain := fmt.Sprintf("d-%d", len(label))
			c := Claim{Domain: domain, Generation: 1, Host: "a"}
			f := open(t, dir)
			mustWin(t, f, Claim{Domain: domain, Generation: 1, Host: "b"}) // so that there is something to read
			if err := f.Withdraw(t.Context(), Claim{Domain: domain, Generation: 1, Host: "b"}); err != nil {
				t.Fatal(err)
			}
			reached, release := make(chan struct{}), make(chan struct{})
			f.fault = func(l string) error {
				if l == label {
					f.fault = nil
					close(reached)
					<-release
				}
				return nil
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-reached; cancel() }()
			if v, err := f.Claim(ctx, c); !errors.Is(err, ErrUndecided) || v.Won {
				t.Fatalf("%+v, %v", v, err)
			}
			close(release)
			f.slot <- struct{}{} // its goroutine is back
			<-f.slot
			if r, err := f.Inspect(t.Context(), domain); err != nil || r.Step != StepWithdrawn {
				t.Fatalf("it took effect later: %+v, %v", r, err)
			}
		})
	}
}
