package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var (
	seedFlag = flag.Uint64("sim.seed", 0, "replay this seed only")
	runsFlag = flag.Int("sim.runs", 4000, "random runs")
	pairFlag = flag.Bool("sim.pairs", false, "every pair of faults at every pair of steps (minutes)")
)

// random returns the run that seed names.
func random(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 1))
	c := Config{Seed: seed, Manual: rng.IntN(4) == 0}
	// Trouble comes together: what it begins with, then more of it soon.
	at := time.Duration(1+rng.IntN(1000)) * time.Millisecond
	if rng.IntN(2) == 0 {
		c.Faults = []Fault{{Kind: starts[rng.IntN(len(starts))], At: at, For: time.Duration(100+rng.IntN(3000)) * time.Millisecond}}
	}
	for range 1 + rng.IntN(4) {
		f := Fault{Kind: Kind(rng.IntN(int(kinds))), For: time.Duration(10+rng.IntN(2500)) * time.Millisecond}
		switch rng.IntN(3) {
		case 0:
			f.Step = 1 + rng.IntN(150)
		case 1:
			f.At = at + time.Duration(rng.IntN(1500))*time.Millisecond
		default:
			f.At = time.Duration(1+rng.IntN(2500)) * time.Millisecond
		}
		c.Faults = append(c.Faults, f)
	}
	return c
}

func TestRandom(t *testing.T) {
	first, last := uint64(1), uint64(*runsFlag)
	if testing.Short() {
		last /= 10
	}
	if *seedFlag != 0 {
		first, last = *seedFlag, *seedFlag
	}
	bad := 0
	for seed := first; seed <= last; seed++ {
		if _, err := Run(random(seed)); err != nil {
			if bad++; bad <= 3 {
				t.Errorf("replay with -sim.seed %d\n%v", seed, err)
			}
		}
	}
	t.Logf("%d runs, %d bad", last-first+1, bad)
}

// TestCalm: without a fault the guest gets protected and stays so.
func TestCalm(t *testing.T) {
	for _, manual := range []bool{false, true} {
		steps, err := Run(Config{Seed: 1, Manual: manual})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d steps", steps)
	}
}

// TestSame: a run is a function of its configuration.
func TestSame(t *testing.T) {
	for seed := uint64(1); seed < 50; seed++ {
		n, _ := Run(random(seed))
		m, _ := Run(random(seed))
		if n != m {
			t.Fatalf("seed %d: %d steps, then %d", seed, n, m)
		}
	}
}

// canonical is how many steps a fault is placed at: connecting, the initial
// sync, the rehearsal and some epochs.
const canonical = 70

// TestEverySingle places each fault at every step of a run, healing soon and late.
func TestEverySingle(t *testing.T) {
	bad := 0
	for _, manual := range []bool{false, true} {
		for k := range kinds {
			for step := 1; step <= canonical; step++ {
				for _, d := range []time.Duration{30 * time.Millisecond, 400 * time.Millisecond, 2 * time.Second} {
					bad += try(t, bad, Config{Seed: 1, Manual: manual, Faults: []Fault{{Kind: k, Step: step, For: d}}})
				}
			}
		}
	}
	t.Logf("%d bad", bad)
}

// TestDaemonGone ends A's daemon for longer than the grace, at every step:
// whatever B has acknowledged goes on there, unless a person has to say so.
func TestDaemonGone(t *testing.T) {
	bad := 0
	for step := 1; step <= canonical; step++ {
		for seed := uint64(1); seed <= 3; seed++ {
			for _, manual := range []bool{false, true} {
				bad += try(t, bad, Config{Seed: seed, Manual: manual, Faults: []Fault{{Kind: KillDaemonA, Step: step, For: 8 * time.Second}}})
			}
		}
	}
	t.Logf("%d bad", bad)
}

// TestWishes has nothing go wrong but that a person wants the guest handed over,
// or shuts it down, at every step: once it is protected that comes about, and
// costs nothing.
func TestWishes(t *testing.T) {
	for want, k := range map[must]Kind{mustSwitch: HandOver, mustEnd: GuestShutdown} {
		n := 0
		for step := 1; step <= canonical+40; step++ {
			for seed := uint64(1); seed <= 5; seed++ {
				w, err := run(Config{Seed: seed, Manual: step%2 == 0, Faults: []Fault{{Kind: k, Step: step}}})
				if err != nil {
					t.Fatal(err)
				}
				if w.must == want {
					n++
				}
			}
		}
		t.Logf("%v: %d runs, the guest was protected in %d", k, 5*(canonical+40), n)
		if n < 200 {
			t.Errorf("%v: the guest was protected in %d runs only", k, n)
		}
	}
}

// starts are the faults that set a take-over or a restart going.
var starts = []Kind{CutLink, CutLink, GuestCrash, LoseHostA, KillDaemonA, KillDaemonB, ActivateForce, Unprotect, FreezeDaemonA, FreezeHostA, HandOver, GuestShutdown}

// TestEveryTakeover begins with one fault in a protected run and places each
// other one at every step after it.
func TestEveryTakeover(t *testing.T) {
	bad, n := 0, 0
	for i, k := range starts {
		for l := range kinds {
			for step := 40; step <= 95; step++ {
				for _, manual := range []bool{false, true} {
					n++
					if manual && step%4 != 0 && !*pairFlag {
						continue
					}
					d := []time.Duration{60 * time.Millisecond, 1700 * time.Millisecond}
					bad += try(t, bad, Config{Seed: uint64(1 + step%2), Manual: manual, SlowA: i > 0,
						Faults: []Fault{{Kind: k, Step: 40, For: d[1]}, {Kind: l, Step: step, For: d[n/3%2]}}})
				}
			}
		}
	}
	t.Logf("%d runs, %d bad", n, bad)
}

// TestWishesInTrouble has every two faults strike around a wish: the guest
// handed over, or shut down.
func TestWishesInTrouble(t *testing.T) {
	bad, n, each := 0, 0, 6
	if *pairFlag {
		each = 60
	}
	healing := []time.Duration{60 * time.Millisecond, 1700 * time.Millisecond, 7 * time.Second}
	for l := range kinds {
		for m := range kinds {
			for range each {
				n++
				wish, at := HandOver, 30+n*7%41
				if n%4 == 0 {
					wish = GuestShutdown
				}
				bad += try(t, bad, Config{Seed: uint64(n), Manual: n%3 == 0, SlowA: n%2 == 0, Faults: []Fault{{Kind: wish, Step: at},
					{Kind: l, Step: at + n*13%25, For: healing[n%3]}, {Kind: m, Step: at + n*29%45, For: healing[n/3%3]}}})
			}
		}
	}
	t.Logf("%d runs, %d bad", n, bad)
}

// TestEveryPair places two faults at every pair of steps; by default only a
// fixed part of all pairs.
func TestEveryPair(t *testing.T) {
	bad, n, all := 0, 0, 0
	for k := range kinds {
		for l := range kinds {
			for i := 1; i <= canonical; i++ {
				for j := i; j <= canonical+40; j++ {
					all++
					if !*pairFlag && (all*2654435761>>7)%257 != 0 {
						continue
					}
					n++
					d := []time.Duration{60 * time.Millisecond, 900 * time.Millisecond}
					bad += try(t, bad, Config{Seed: 2, Manual: n%5 == 0, Faults: []Fault{{Kind: k, Step: i, For: d[n%2]}, {Kind: l, Step: j, For: d[n/2%2]}}})
				}
			}
		}
	}
	t.Logf("%d of %d pairs, %d bad", n, all, bad)
}

func try(t *testing.T, bad int, c Config) int {
	t.Helper()
	_, err := Run(c)
	if err == nil {
		return 0
	}
	if bad < 2 {
		t.Error(err)
	} else if bad < 30 {
		t.Error(fmt.Sprint(c.Manual, c.Faults))
	}
	return 1
}
