package pace

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const gbit = 1e9 / 8

func testLimits() Limits {
	return Limits{Min: 2 * time.Millisecond, Idle: 100 * time.Millisecond, PauseShareMax: 0.2, AckMax: 250 * time.Millisecond, ThrottleMax: 0.9}
}

// perSec is how many pages a second fill a part of a link.
func perSec(part, bps float64) float64 { return part * bps / pageBytes }

func quiet() guest { return guest{pagesPerSec: 500, hotPages: 50} }

// In the long run pauses take their share and no more; after a quiet time some
// come at once.
func TestBudget(t *testing.T) {
	const share, pause = 0.2, 5 * time.Millisecond
	var b budget
	now := time.Now()
	began, paused, atOnce := now, time.Duration(0), 0
	for now.Sub(began) < 10*time.Second {
		now = now.Add(pause)
		paused += pause
		b.spend(now, pause, share)
		run := b.wait(now, share)
		if run == 0 && paused == time.Duration(atOnce+1)*pause {
			atOnce++
		}
		now = now.Add(run)
	}
	if atOnce < 5 || atOnce > 20 {
		t.Errorf("%d pauses of %v came at once", atOnce, pause)
	}
	if got := paused.Seconds() / now.Sub(began).Seconds(); got > share+0.01 || got < share-0.01 {
		t.Errorf("pauses took %.3f of the time, their share is %.3f", got, share)
	}
	now = now.Add(time.Hour)
	if b.spend(now, pause, share); b.wait(now, share) != 0 {
		t.Errorf("after an hour without a pause the next has to wait for %v", b.wait(now, share))
	}
	now = now.Add(time.Hour)
	if b.spend(now, time.Second, share); b.wait(now, share) < 4*time.Second || b.wait(now, share) > 5*time.Second {
		t.Errorf("a second's pause is followed by %v of running", b.wait(now, share))
	}
}

// TestKeepsUp: a guest that the link can carry is not held, whatever it does.
func TestKeepsUp(t *testing.T) {
	for _, c := range []struct {
		name string
		g    guest
		w    wire
	}{
		{"idle", quiet(), wire{bps: gbit, latency: 5e-4}},
		{"a working set", guest{pagesPerSec: 20_000, hotPages: 2000}, wire{bps: gbit, latency: 5e-4}},
		{"half of the link, always new", guest{pagesPerSec: perSec(0.5, gbit)}, wire{bps: gbit, latency: 5e-4}},
		{"nine tenths", guest{pagesPerSec: perSec(0.9, gbit)}, wire{bps: gbit, latency: 5e-4}},
		{"always sending", guest{pagesPerSec: 5000, hotPages: 500, outputs: 2000}, wire{bps: gbit, latency: 5e-4}},
		{"always sending, far away", guest{pagesPerSec: 5000, hotPages: 500, outputs: 2000}, wire{bps: gbit, latency: 20e-3, inFlight: 4, hidden: 4 * mib}},
		{"a backup that takes long for each epoch", guest{pagesPerSec: 5000, hotPages: 500}, wire{bps: gbit, latency: 5e-4, backup: 0.3, hidden: 4 * mib}},
		{"the same pages again and again on a slow link", guest{pagesPerSec: 100_000, hotPages: 256}, wire{bps: gbit / 10, latency: 5e-4, inFlight: 4, hidden: 4 * mib}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newWorld(testLimits(), c.g, c.w)
			steps := x.run(20)
			if hold := most(steps, holdOf); hold > 0 {
				t.Errorf("it was held for %.1f ms", 1e3*hold)
			}
			if r := x.c.Report(); r.Throttle != 0 || r.Reason == ReasonThrottled {
				t.Errorf("report %+v", r)
			}
		})
	}
}

// TestOverload: a guest that dirties more than the link carries is held for about
// as long as is needed, what has not arrived is bounded, and when it stops writing
// nothing is left of it.
func TestOverload(t *testing.T) {
	for _, c := range []struct {
		name string
		g    guest
		w    wire
		lag  float64 // seconds, at most, once it has settled
	}{
		{"half again as much, 2 in flight", guest{pagesPerSec: perSec(1.5, gbit)}, wire{bps: gbit, latency: 5e-4}, 0.6},
		{"half again as much, 16 in flight", guest{pagesPerSec: perSec(1.5, gbit)}, wire{bps: gbit, latency: 5e-4, inFlight: 16}, 0.5},
		{"and the kernel hides some", guest{pagesPerSec: perSec(1.5, gbit)}, wire{bps: gbit, latency: 5e-4, inFlight: 16, hidden: 4 * mib}, 0.6},
		{"four times as much", guest{pagesPerSec: perSec(4, gbit)}, wire{bps: gbit, latency: 5e-4, inFlight: 16}, 1},
		{"four times as much, slow", guest{pagesPerSec: perSec(4, gbit/10)}, wire{bps: gbit / 10, latency: 5e-4, inFlight: 16}, 1},
		{"a large working set", guest{pagesPerSec: 100_000, hotPages: 25_000}, wire{bps: gbit, latency: 5e-4, inFlight: 16}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newWorld(testLimits(), quiet(), c.w)
			x.run(2)
			heavy := c.g
			heavy.allPages, x.g = x.g.allPages, heavy
			if x.g.allPages == 0 {
				x.g.allPages = 1 << 20
			}
			first := x.run(10)
			steps := x.run(20)
			r := x.c.Report()
			t.Logf("lag %.0f ms, at most %.0f (%.0f at first); staged at most %.0f MiB; held %.3f of the time, at most %.0f ms at once; aimed %.3f to %.3f",
				1e3*mean(steps, lagOf), 1e3*most(steps, lagOf), 1e3*most(first, lagOf), most(steps, stagedOf)/mib,
				share(steps, holdOf), 1e3*most(steps, holdOf), least(steps, throttleOf), most(steps, throttleOf))
			if lag := most(steps, lagOf); lag > c.lag {
				t.Errorf("an epoch arrived after %.0f ms", 1e3*lag)
			}
			if staged := most(steps, stagedOf); staged > 2*c.lag*c.w.bps {
				t.Errorf("%.0f MiB had not arrived", staged/mib)
			}
			if held := share(steps, holdOf); held < 0.1 || held > 0.9 {
				t.Errorf("it was held for %.3f of the time", held)
			}
			if d := most(steps, throttleOf) - least(steps, throttleOf); d > 0.5 {
				t.Errorf("the share that is aimed at swings by %.3f", d)
			}
			if r.Throttle == 0 || r.Reason != ReasonThrottled || r.LinkBps == 0 || r.DirtyBps == 0 {
				t.Errorf("report %+v", r)
			}
			x.g = quiet()
			x.g.allPages = 1 << 20
			x.run(10)
			if hold := most(x.run(5), holdOf); hold > 0 || x.c.Report().Throttle != 0 {
				t.Errorf("a guest that stopped writing is held for %.1f ms: %+v", 1e3*hold, x.c.Report())
			}
		})
	}
}

// TestOverloadAnyMoment: whenever a guest begins to dirty more than the link
// carries, what is late is bounded.
func TestOverloadAnyMoment(t *testing.T) {
	for _, c := range []struct {
		over     float64
		inFlight int
	}{{1.2, 2}, {2, 2}, {3, 4}, {4, 4}, {2, 16}, {4, 16}} {
		for _, bps := range []float64{gbit / 10, gbit} {
			worst := 0.0
			for seed := range uint64(20) {
				x := newWorld(testLimits(), quiet(), wire{bps: bps, latency: 5e-4, inFlight: c.inFlight})
				x.rnd = rand.New(rand.NewPCG(seed, 2))
				x.run(2 + float64(seed)/77)
				x.g = guest{pagesPerSec: perSec(c.over, bps), allPages: x.g.allPages}
				x.run(10)
				worst = max(worst, most(x.run(10), lagOf))
			}
			t.Logf("%.1f of a link of %.0f MB/s, %d in flight: at most %.0f ms", c.over, bps/1e6, c.inFlight, 1e3*worst)
			if worst > 1 {
				t.Errorf("%.1f of a link of %.0f MB/s, %d in flight: an epoch arrived after %.0f ms", c.over, bps/1e6, c.inFlight, 1e3*worst)
			}
		}
	}
}

// TestThrottleForbidden: with ThrottleMax 0 nobody is ever held.
func TestThrottleForbidden(t *testing.T) {
	l := testLimits()
	l.ThrottleMax = 0
	x := newWorld(l, guest{pagesPerSec: perSec(1.5, gbit)}, wire{bps: gbit, latency: 5e-4})
	if hold := most(x.run(10), holdOf); hold != 0 {
		t.Errorf("held for %v s", hold)
	}
	x = newWorld(testLimits(), guest{pagesPerSec: perSec(1.5, gbit)}, wire{bps: gbit, latency: 5e-4})
	x.run(10)
	x.c.SetLimits(l)
	if hold := most(x.run(5), holdOf); hold != 0 {
		t.Errorf("held for %v s after it was forbidden", hold)
	}
}

// TestLinkDrops: a link that drops to a tenth and is back.
func TestLinkDrops(t *testing.T) {
	for _, part := range []float64{0.3, 0.6} {
		x := newWorld(testLimits(), guest{pagesPerSec: perSec(part, gbit)}, wire{bps: gbit, latency: 5e-4, inFlight: 16})
		x.run(5)
		x.w.bps = gbit / 10
		worst := most(x.run(5), lagOf)
		steps := x.run(10)
		x.w.bps = gbit
		x.run(5)
		after := x.run(10)
		t.Logf("%.1f of the link: lag at most %.0f ms when it drops, then %.0f; held %.3f; %.3f after it is back", part,
			1e3*worst, 1e3*most(steps, lagOf), share(steps, holdOf), share(after, holdOf))
		if lag := most(steps, lagOf); lag > 1 || worst > 4 {
			t.Errorf("%.1f of the link: an epoch arrived after %.0f ms, %.0f when the link dropped", part, 1e3*lag, 1e3*worst)
		}
		if hold := most(after, holdOf); hold > 0 {
			t.Errorf("%.1f of the link: held for %.1f ms though it is back", part, 1e3*hold)
		}
	}
}

// TestHostStalls: a primary's host that stands still now and then holds nobody.
func TestHostStalls(t *testing.T) {
	x := newWorld(testLimits(), guest{pagesPerSec: perSec(0.3, gbit)}, wire{bps: gbit, latency: 5e-4, inFlight: 4})
	n := 0
	x.stalls = func(float64) float64 {
		if n++; n%40 == 0 {
			return 0.5
		}
		return 0
	}
	steps := x.run(60)
	if held := share(steps, holdOf); held > 0.01 {
		t.Errorf("held for %.3f of the time", held)
	}
	if hold := most(x.run(0.1), holdOf); hold > 0 {
		t.Errorf("held at the end for %.1f ms", 1e3*hold)
	}
}

// TestSlowBackup: epochs do not pile up before a backup that takes its time for
// each of them, however many may be in flight.
func TestSlowBackup(t *testing.T) {
	x := newWorld(testLimits(), guest{pagesPerSec: 5000, hotPages: 500}, wire{bps: gbit, latency: 5e-4, backup: 0.3, inFlight: 16, hidden: 4 * mib})
	x.run(20)
	if lag := most(x.run(20), lagOf); lag > 1 {
		t.Errorf("an epoch was acknowledged after %.0f ms, of which the backup needs 300", 1e3*lag)
	}
}

// TestSuddenWork: small epochs tell little of how fast a link is; large ones that
// follow are not put off for what the small ones took.
func TestSuddenWork(t *testing.T) {
	x := newWorld(testLimits(), guest{pagesPerSec: 4000, hotPages: 400}, wire{bps: 4 * gbit, latency: 25e-3, inFlight: 16, hidden: 4 * mib})
	x.run(5)
	x.g = guest{pagesPerSec: 400_000, hotPages: 5000}
	if slow := most(x.run(5), intervalOf); slow > 0.2 {
		t.Errorf("%.0f ms between checkpoints", 1e3*slow)
	}
}

// TestInterval: where between Min and Idle checkpoints come.
func TestInterval(t *testing.T) {
	l := testLimits()
	w := wire{bps: 10 * gbit, latency: 2e-4, inFlight: 4}
	few := newWorld(l, quiet(), w)
	few.run(10)
	if got := few.c.Report(); got.Interval != l.Idle || got.Reason != ReasonIdle {
		t.Errorf("a guest that dirties little: %+v", got)
	}
	// 50 pages for each ms, all copied in the pause: at 40 ms they cost as much as
	// the rest of it. With 70 that would be sooner, but then pauses that nobody
	// waits for would take more than half of their share.
	for _, c := range []struct{ pages, from, to float64 }{{50_000, 0.03, 0.06}, {70_000, 0.05, 0.1}} {
		many := newWorld(l, guest{pagesPerSec: c.pages}, w)
		many.few = math.Inf(1)
		many.run(10)
		steps := many.run(10)
		if got := mean(steps, intervalOf); got < c.from || got > c.to {
			t.Errorf("a guest whose pauses grow by %v pages a second: every %.1f ms, %+v", c.pages, 1e3*got, many.c.Report())
		}
		if got := share(steps, pauseOf); got > l.PauseShareMax*(quietShare+0.05) {
			t.Errorf("pauses without output take %.3f of the time", got)
		}
	}
	l.Idle = 10 * time.Millisecond
	few.fixed = 1e-3
	few.c.SetLimits(l)
	few.run(1)
	if got := mean(few.run(5), intervalOf); got > 0.0105 {
		t.Errorf("with 10 ms allowed, checkpoints of an idle guest come every %.2f ms", 1e3*got)
	}
}

// TestNewSession: the epochs of a session that ended are not waited for.
func TestNewSession(t *testing.T) {
	c := New(testLimits())
	now := time.Now()
	for i := range 5 {
		now = now.Add(100 * time.Millisecond)
		c.Begin(now)
		now = now.Add(3 * time.Millisecond)
		c.Captured(now, Epoch{Pause: 3 * time.Millisecond, Pages: 5000, InPausePages: 100})
		if i < 3 { // the last two are on their way
			c.Shipped(now, 20<<20, 160*time.Millisecond)
			c.Acked(now, 90*time.Millisecond)
		}
	}
	if earliest, _ := c.Next(now); earliest == 0 {
		t.Error("with all of them in flight the next may begin at once")
	}
	c.NewSession()
	if r := c.Report(); r.LinkBps != 0 || r.DirtyBps != 0 {
		t.Errorf("of a new session this is known: %+v", r)
	}
	if earliest, _ := c.Next(now.Add(50 * time.Millisecond)); earliest != 0 {
		t.Errorf("a new session's checkpoint has to wait for %v", earliest)
	}
}

// TestFirstEpoch: the first epoch of a session, which is the whole guest and takes
// as long as that, holds nobody and says nothing of the pace.
func TestFirstEpoch(t *testing.T) {
	x := newWorld(testLimits(), guest{pagesPerSec: perSec(0.3, gbit)}, wire{bps: gbit, latency: 5e-4, inFlight: 16})
	x.run(5)
	for range 3 {
		x.c.NewSession()
		x.events, x.flights = nil, nil
		x.now += 60 // what was written meanwhile is most of the guest
		x.passes = 12
		x.checkpoint()
		x.passes = 1
		from := len(x.steps)
		for end := x.now + 20; x.now < end; {
			x.checkpoint()
			if r := x.c.Report(); r.LinkBps > 1.2*gbit || r.DirtyBps > 0.5*gbit {
				t.Fatalf("%.1f s after the first epoch: %+v", x.now-x.steps[from-1].at, r)
			}
		}
		steps := x.steps[from:]
		if hold := most(steps, holdOf); hold > 0 {
			t.Errorf("held for %.1f ms", 1e3*hold)
		}
		if r := x.c.Report(); r.Interval != 100*time.Millisecond {
			t.Errorf("%+v", r)
		}
	}
}

// TestAnyLimits: whatever is asked for, answers are within the limits.
func TestAnyLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := func(name string, lo, hi float64) time.Duration {
			return dur(1e-3 * lo * math.Pow(hi/lo, rapid.Float64Range(0, 1).Draw(t, name)))
		}
		l := Limits{Min: ms("min", 1, 20), Idle: ms("idle", 20, 2000), PauseShareMax: rapid.Float64Range(0.02, 0.9).Draw(t, "pause share"),
			AckMax: ms("ack", 10, 1000), ThrottleMax: rapid.Float64Range(0, 0.95).Draw(t, "throttle")}
		g := guest{pagesPerSec: rapid.Float64Range(0, 300_000).Draw(t, "pages"), hotPages: rapid.SampledFrom([]float64{0, 100, 10_000}).Draw(t, "hot"),
			outputs: rapid.SampledFrom([]float64{0, 10, 5000}).Draw(t, "outputs"), allPages: 100_000}
		x := newWorld(l, g, wire{bps: gbit * rapid.Float64Range(0.1, 40).Draw(t, "link"), latency: 1e-3 * rapid.Float64Range(0.1, 50).Draw(t, "latency"),
			inFlight: rapid.IntRange(1, 16).Draw(t, "in flight"), hidden: rapid.Float64Range(0, 8*mib).Draw(t, "hidden")})
		held, ran := 0.0, 0.0
		for range 300 {
			earliest, idle := x.c.Next(x.time(x.now))
			if earliest < 0 || idle < earliest {
				t.Fatalf("not before %v, not after %v", earliest, idle)
			}
			x.checkpoint()
			if r := x.c.Report(); r.Interval < l.Min || r.Interval > l.Idle || r.Throttle > l.ThrottleMax+1e-9 || math.IsNaN(r.LinkBps+r.DirtyBps+r.Throttle) {
				t.Fatalf("%+v is outside of %+v", r, l)
			}
		}
		for _, s := range x.steps {
			held += s.hold
			ran += s.interval
			if s.hold > holdFactor*l.AckMax.Seconds()+1e-6 {
				t.Fatalf("held for %v s at once", s.hold)
			}
		}
		if held > l.ThrottleMax*ran+1e-6 {
			t.Fatalf("held for %.3f of the time, of %.3f", held/ran, l.ThrottleMax)
		}
		paused := 0.0
		for _, s := range x.steps {
			paused += s.pause - s.hold
		}
		last := x.steps[len(x.steps)-1].pause
		if paused > l.PauseShareMax*x.now+burst.Seconds()+last+1e-6 {
			t.Fatalf("pauses took %.3f of the time, of %.3f", paused/x.now, l.PauseShareMax)
		}
	})
}

// TestAnyOrder: events come from several goroutines, in any order, and some not at
// all. Nothing that is told makes an answer that is none.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := New(Limits{Min: time.Duration(rapid.Int64().Draw(t, "min")), Idle: time.Duration(rapid.Int64().Draw(t, "idle")),
			PauseShareMax: rapid.Float64().Draw(t, "share"), AckMax: time.Duration(rapid.Int64().Draw(t, "ack")), ThrottleMax: rapid.Float64().Draw(t, "throttle")})
		now := time.Now()
		for range 300 {
			now = now.Add(time.Duration(rapid.Int64Range(-1e6, 1e9).Draw(t, "passed")))
			span := time.Duration(rapid.Int64Range(-1e6, 1e11).Draw(t, "span"))
			n := rapid.IntRange(-10, 1<<40).Draw(t, "count")
			switch rapid.IntRange(0, 6).Draw(t, "event") {
			case 0:
				c.Begin(now)
			case 1:
				c.Captured(now, Epoch{Pause: span, Hold: span / 2, Pages: n, InPausePages: n / 2})
			case 2:
				c.Shipped(now, n, span)
			case 3:
				c.Acked(now, span)
			case 4:
				c.NewSession()
			case 5:
				if h := c.Hold(now); h < 0 {
					t.Fatalf("hold %v", h)
				}
			case 6:
				if earliest, idle := c.Next(now); earliest < 0 || idle < earliest {
					t.Fatalf("not before %v, not after %v", earliest, idle)
				}
			}
			if r := c.Report(); math.IsNaN(r.LinkBps) || math.IsNaN(r.DirtyBps) || math.IsNaN(r.Throttle) || r.Throttle < 0 || r.Throttle > 1 || r.Interval < 0 || r.LinkBps < 0 {
				t.Fatalf("%+v", r)
			}
		}
	})
}
