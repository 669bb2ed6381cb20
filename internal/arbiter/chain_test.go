package arbiter

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"
)

func openManual(t *testing.T) *Manual {
	t.Helper()
	m, err := OpenManual(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func openChain(t *testing.T, arbiters ...Arbiter) *Chain {
	t.Helper()
	a, err := OpenChain(arbiters...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.(*Chain).Close() })
	return a.(*Chain)
}

// Every combination: those of the table are opened, all others are refused.
func TestChainCombinations(t *testing.T) {
	b := newBoard(t)
	kinds := map[string]Arbiter{
		"file": open(t, t.TempDir()), "etcd": &Etcd{}, "fence": openFence(t, b.options("a", "")), "manual": openManual(t),
	}
	safe := map[string]bool{}
	for _, name := range []string{"file", "etcd", "fence", "manual", "etcd+manual", "file+manual", "etcd+fence", "file+fence",
		"fence+manual", "etcd+fence+manual", "file+fence+manual"} {
		safe[name] = true
	}
	var try func(chosen []Arbiter)
	try = func(chosen []Arbiter) {
		if len(chosen) > 0 {
			name := names(chosen)
			a, err := OpenChain(chosen...)
			switch {
			case safe[name] != (err == nil):
				t.Errorf("%s: %v", name, err)
			case err == nil && a.Name() != name:
				t.Errorf("%s calls itself %s", name, a.Name())
			}
			delete(safe, name)
		}
		if len(chosen) < 4 {
			for _, kind := range []string{"file", "etcd", "fence", "manual"} {
				try(append(chosen[:len(chosen):len(chosen)], kinds[kind]))
			}
		}
	}
	known := len(safe)
	safe2 := safe
	try(nil)
	if len(safe2) != 0 {
		t.Errorf("of %d safe ones these were never tried: %v", known, safe2)
	}
	if _, err := OpenChain(); err == nil {
		t.Error("a chain of none")
	}
	if _, err := OpenChain(kinds["file"], openChain(t, open(t, t.TempDir()), openManual(t))); err == nil {
		t.Error("a chain in a chain")
	}
}

func TestChainConforms(t *testing.T) {
	t.Run("file, fence", func(t *testing.T) {
		conform(t, func(t *testing.T) site {
			b, dir := newBoard(t), t.TempDir()
			return site{start: b.start, on: b.on, open: func(t *testing.T, host string) Arbiter {
				return openChain(t, open(t, dir), openFence(t, b.options(host, "")))
			}}
		})
	})
}

// A host that does not see the voter cannot win without turning the other off,
// and neither can the one that sees it: whichever way, one runs.
func TestChainVoterAway(t *testing.T) {
	for _, first := range []string{"a", "b"} {
		b, dir := newBoard(t), t.TempDir()
		cut := open(t, dir) // a's way to the voter
		cut.fault = func(string) error { return syscall.ESTALE }
		hosts := map[string]*Chain{
			"a": openChain(t, cut, openFence(t, b.options("a", ""))),
			"b": openChain(t, open(t, dir), openFence(t, b.options("b", ""))),
		}
		second := map[string]string{"a": "b", "b": "a"}[first]
		mustWin(t, hosts[first], claimOf(first, 1))
		if !b.on(first) || b.on(second) {
			t.Fatalf("%s won: a on %v, b on %v", first, b.on("a"), b.on("b"))
		}
		if v, err := hosts[second].Claim(t.Context(), claimOf(second, 1)); err == nil && v.Won {
			t.Fatalf("%s won too, without power", second)
		}
		if err := hosts[first].Confirm(t.Context(), claimOf(first, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// The winner of the vote that cannot fence does not run, and does not keep the
// loser from being told that it lost.
func TestChainFenceFails(t *testing.T) {
	b, dir := newBoard(t), t.TempDir()
	m := openManual(t)
	a := openChain(t, open(t, dir), openFence(t, b.options("a", "fail")), m)
	other := openChain(t, open(t, dir), openFence(t, b.options("b", "")))
	if v, err := a.Claim(t.Context(), claimOf("a", 1)); err == nil || v.Won || errors.Is(err, ErrOperator) {
		t.Fatalf("%+v, %v", v, err)
	}
	mustLose(t, other, claimOf("b", 1), "a")
	if !b.on("a") {
		t.Fatal("the loser of the vote turned the winner off")
	}
	// A person saw that b is off.
	if err := a.Grant(t.Context(), domain, 1, "a"); err != nil {
		t.Fatal(err)
	}
	mustWin(t, a, claimOf("a", 1))
	if err := a.Confirm(t.Context(), claimOf("a", 1)); err != nil {
		t.Fatal(err)
	}
	if r, err := other.Inspect(t.Context(), domain); err != nil || r.Host != "a" || r.Step != StepRunning {
		t.Fatalf("what b finds when it is back: %+v, %v", r, err)
	}
}

func TestChainManual(t *testing.T) {
	ctx, dir, m := t.Context(), t.TempDir(), openManual(t)
	f := open(t, dir)
	a := openChain(t, f, m)
	if !strings.HasPrefix(a.Identity(), "file+manual=") || !strings.Contains(a.Identity(), f.Identity()) {
		t.Errorf("identity %q", a.Identity())
	}
	// While the voter decides, nobody asks the person.
	mustWin(t, a, claimOf("a", 1))
	if err := a.Confirm(ctx, claimOf("a", 1)); err != nil {
		t.Fatal(err)
	}
	mustWin(t, open(t, dir), claimOf("b", 2))
	if err := a.Grant(ctx, domain, 2, "a"); err != nil {
		t.Fatal(err)
	}
	mustLose(t, a, claimOf("a", 2), "b") // a person's word is not above the voter's
	// While it does not, nobody runs without a person's word.
	f.fault = func(string) error { return syscall.ESTALE }
	c := claimOf("a", 3)
	if v, err := a.Claim(ctx, c); !errors.Is(err, ErrUndecided) || errors.Is(err, ErrOperator) || v.Won {
		t.Fatalf("%+v, %v", v, err)
	}
	if err := a.Grant(ctx, domain, 3, "a"); err != nil {
		t.Fatal(err)
	}
	mustWin(t, a, c)
	if err := a.Withdraw(ctx, c); err != nil {
		t.Fatal(err)
	}
	if err := a.Confirm(ctx, c); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("confirm after withdraw: %v", err)
	}
	if v, err := a.Claim(ctx, c); err == nil || v.Won {
		t.Fatalf("a grant was used twice: %+v, %v", v, err)
	}
	if err := a.Grant(ctx, domain, 3, "a"); err != nil {
		t.Fatal(err)
	}
	mustWin(t, a, c)
	if err := a.Confirm(ctx, c); err != nil {
		t.Fatal(err)
	}
	f.slot <- struct{}{} // between two operations, the voter comes back
	f.fault = nil
	<-f.slot
	for at := time.Now(); ; {
		r, err := open(t, dir).Inspect(ctx, domain)
		if err == nil && r.Generation == 3 && r.Host == "a" && r.Step == StepRunning {
			break
		}
		if time.Since(at) > time.Minute {
			t.Fatalf("the voter was never told: %+v, %v", r, err)
		}
	}
	mustLose(t, open(t, dir), claimOf("b", 3), "a")
}
