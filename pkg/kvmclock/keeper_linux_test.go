package kvmclock

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const ms = time.Millisecond

func openWorld(t testing.TB, w *world) *Keeper {
	t.Helper()
	k, err := Open(t.Context(), 0, w.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// step is something that happens to a world. The guest runs 20 ms after each.
type step func(*world, *Keeper)

func checkpoint(what outcome) step {
	return func(w *world, k *Keeper) { w.pause(k, what, ms, 5*ms) }
}

func checkpoints(n int, what outcome) step {
	return func(w *world, k *Keeper) {
		for range n {
			checkpoint(what)(w, k)
			w.pass(20 * ms)
		}
	}
}

func administrator(d time.Duration) step {
	return func(w *world, _ *Keeper) { w.stop(); w.pass(d); w.cont() }
}

// suspend is of the host: KVM counts it, RAW does not.
func suspend(d time.Duration) step {
	return func(w *world, _ *Keeper) { w.clockNs += float64(d); w.realNs += float64(d) }
}

func run(d time.Duration) step { return func(w *world, _ *Keeper) { w.pass(d) } }

func ntpStep(d time.Duration) step {
	return func(w *world, _ *Keeper) { w.realNs += float64(d) }
}

// pauseNs is what a checkpoint of the stories takes from a guest.
const pauseNs = int64(6*ms + 100*time.Microsecond)

// TestStories: what happens to a guest, and what is reported of it in the end.
//
// long: a table.
func TestStories(t *testing.T) {
	must := checkpoint(caught)
	for name, c := range map[string]struct {
		steps []step
		want  Report // counters and sums; LastAttached is not compared
	}{
		"all is kept":           {[]step{checkpoints(50, caught)}, Report{Kept: 50}},
		"a miss is a debt":      {[]step{must, checkpoint(slipped), must}, Report{Kept: 2, Missed: 1, DebtNs: pauseNs, DriftNs: -pauseNs, LastErrNs: -pauseNs, MaxErrNs: pauseNs, LastMiss: "not caught"}},
		"and is put back":       {[]step{must, checkpoint(slipped), must, must}, Report{Kept: 2, Missed: 1, Restored: 1, MaxErrNs: pauseNs, LastMiss: "not caught"}},
		"and stays put back":    {[]step{must, checkpoint(slipped), must, must, checkpoints(9, caught)}, Report{Kept: 11, Missed: 1, Restored: 1, MaxErrNs: pauseNs, LastMiss: "not caught"}},
		"a tracer that is away": {[]step{must, checkpoint(refused), must, must}, Report{Kept: 2, Missed: 1, Restored: 1, MaxErrNs: pauseNs, LastMiss: errAway.Error()}},
		"a pause nobody told":   {[]step{must, checkpoint(unseen), must, must}, Report{Kept: 2, Restored: 1, MaxErrNs: pauseNs}},
		"no struct to read":     {[]step{must, checkpoint(cutOff), must, must}, Report{Kept: 3, Missed: 1, LastMiss: "kvm_clock_data of 0 bytes, want 48"}},
		"a short one by hand":   {[]step{must, administrator(900 * ms), must, must}, Report{Kept: 2, Restored: 1, MaxErrNs: int64(900 * ms)}},
		"an administrator's":    {[]step{must, administrator(time.Minute), must, must}, Report{Kept: 3, Accepted: 1, AcceptedNs: -int64(time.Minute)}},
		"a suspended host":      {[]step{must, suspend(time.Hour), must, must}, Report{Kept: 3, Accepted: 1, AcceptedNs: int64(time.Hour)}},
		"the date is set":       {[]step{must, ntpStep(time.Hour), must, ntpStep(-2 * time.Hour), must}, Report{Kept: 3}},
		"an administrator between a debt and its putting back": {
			[]step{must, checkpoint(slipped), must, administrator(time.Minute), must, must, must},
			Report{Kept: 4, Missed: 1, Restored: 1, Accepted: 1, AcceptedNs: -int64(time.Minute), MaxErrNs: pauseNs, LastMiss: "not caught"},
		},
		"put back, nobody knows": {
			[]step{must, checkpoint(slipped), must, checkpoint(unknown), must, must, must},
			Report{Kept: 5, Missed: 2, MaxErrNs: pauseNs, LastMiss: "not caught"},
		},
		"put back, nobody knows, and another miss": {
			[]step{must, checkpoint(slipped), must, checkpoint(unknown), administrator(2 * ms), must, must, must},
			Report{Kept: 4, Missed: 2, Restored: 1, MaxErrNs: pauseNs, LastMiss: "not caught"},
		},
		"long epochs": {
			[]step{must, run(5 * time.Second), checkpoint(slipped), must, run(5 * time.Second), must, run(5 * time.Second), must},
			Report{Kept: 3, Missed: 1, Restored: 1, MaxErrNs: pauseNs, LastMiss: "not caught"},
		},
		"before the first": {
			[]step{administrator(time.Minute), checkpoint(slipped), suspend(time.Hour), must, must},
			Report{Kept: 2, Missed: 1, LastMiss: "not caught"},
		},
		"a debt missed again is measured again": {
			[]step{must, checkpoint(slipped), must, checkpoint(slipped), must, must},
			Report{Kept: 3, Missed: 2, Restored: 1, MaxErrNs: pauseNs, LastMiss: "not caught"},
		},
		"an administrator beside a debt": {
			[]step{must, checkpoint(slipped), must, checkpoint(slipped), administrator(time.Minute), must, must, must},
			Report{Kept: 4, Missed: 2, Restored: 1, Accepted: 1, AcceptedNs: -int64(time.Minute) - pauseNs, MaxErrNs: pauseNs, LastMiss: "not caught"},
		},
		"a debt while the host is suspended": { // what we would set is below QEMU's own
			[]step{must, checkpoint(slipped), must, suspend(time.Hour), must, must, must},
			Report{Kept: 3, Missed: 2, Restored: 1, Accepted: 1, AcceptedNs: int64(time.Hour) - pauseNs, MaxErrNs: pauseNs, LastMiss: "QEMU's own clock was later than ours"},
		},
		"many misses are ours, however long": {
			[]step{must, checkpoints(300, refused), run(time.Second), must, must},
			Report{Kept: 2, Missed: 300, Restored: 1, MaxErrNs: 300 * pauseNs, LastMiss: errAway.Error()},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			k := openWorld(t, w)
			for _, s := range c.steps {
				s(w, k)
				w.pass(20 * ms)
			}
			got := k.Report()
			got.LastAttached = 0
			// A world's clocks are read as whole ns.
			for _, p := range []*int64{&got.LastErrNs, &got.DriftNs, &got.MaxErrNs, &got.DebtNs, &got.AcceptedNs} {
				*p = int64(math.Round(float64(*p)/1000)) * 1000
			}
			if got != c.want || w.died != "" {
				t.Errorf("reports\n%+v, want\n%+v; %s", got, c.want, w.died)
			}
		})
	}
}

// TestSuspendedGuest: a guest without resumes costs its QEMU about one arming
// each second, and one line of the log.
func TestSuspendedGuest(t *testing.T) {
	w := newWorld()
	k := openWorld(t, w)
	checkpoint(caught)(w, k)
	w.arms = 0
	began := w.rawNs
	for range 1000 {
		w.next = slipped
		k.Paused()
		w.pass(5 * ms)
		k.Resuming()
		k.Resumed()
		w.pass(15 * ms)
	}
	seconds := int((w.rawNs - began) / 1e9)
	if w.arms < seconds-1 || w.arms > seconds+10 || w.logs != 1 {
		t.Errorf("%d armings in %d s, %d lines", w.arms, seconds, w.logs)
	}
	if r := k.Report(); r.Missed != 1000 || r.LastMiss != "not caught" {
		t.Errorf("%+v", r)
	}
	w.pass(time.Second)
	w.arms = 0
	checkpoints(10, caught)(w, k)
	if w.arms != 10 {
		t.Errorf("%d armings of 10 after a catch", w.arms)
	}
	w.arms = 0
	for range 10 {
		checkpoints(2, slipped)(w, k)
		checkpoints(1, caught)(w, k)
	}
	if w.arms != 30 {
		t.Errorf("%d armings of 30, never three misses in a row", w.arms)
	}
}

// TestRates: a clock that runs as KVM counts, and not quite as RAW, is in order
// however long nobody looks.
func TestRates(t *testing.T) {
	w := newWorld()
	w.clockPPM = -0.4
	k := openWorld(t, w)
	for range 5 {
		checkpoint(caught)(w, k)
		w.pass(10 * time.Minute)
	}
	if r := k.Report(); r.DebtNs != 0 || r.Accepted != 0 || r.DriftNs > -int64(900*time.Microsecond) {
		t.Errorf("%+v", r)
	}
}

// TestLog: of a series one line.
func TestLog(t *testing.T) {
	w := newWorld()
	k := openWorld(t, w)
	checkpoint(caught)(w, k)
	for range 5 {
		administrator(time.Minute)(w, k)
		checkpoint(caught)(w, k)
	}
	if w.logs != 1 || k.Report().Accepted != 5 {
		t.Errorf("%d lines, %+v", w.logs, k.Report())
	}
	checkpoint(caught)(w, k)
	administrator(time.Minute)(w, k)
	checkpoint(caught)(w, k)
	if w.logs != 2 {
		t.Errorf("%d lines after a second series", w.logs)
	}
}

// TestCoarse: a KVM that does not say when. Nothing is taken for a debt that may
// be the length of a resume.
func TestCoarse(t *testing.T) {
	w := newWorld()
	w.flags = 0
	k := openWorld(t, w)
	checkpoints(50, caught)(w, k)
	if r := k.Report(); !r.Coarse || r.Kept != 50 || r.DebtNs != 0 || r.Accepted != 0 {
		t.Errorf("%+v", r)
	}
	for range 5 {
		w.pause(k, unseen, ms, 50*ms)
	}
	checkpoints(4, caught)(w, k)
	if r := k.Report(); r.Restored == 0 || r.DebtNs != 0 || max(r.DriftNs, -r.DriftNs) > int64(10*ms) {
		t.Errorf("%+v", r)
	}
}

// TestOldKernel: one that knows no flags in a SET is never given one, and what
// was lost stays lost; or QEMU would abort.
func TestOldKernel(t *testing.T) {
	w := newWorld()
	w.strict, w.flags = true, 0
	k := openWorld(t, w)
	checkpoint(caught)(w, k)
	w.pause(k, unseen, ms, 500*ms)
	checkpoints(3, caught)(w, k)
	if r := k.Report(); w.died != "" || r.Restored != 0 || r.Accepted != 1 || r.DebtNs != 0 {
		t.Errorf("%+v; %s", r, w.died)
	}
}

// TestDateIsSetInPause: CLOCK_REALTIME is set between the stop and the resume.
func TestDateIsSetInPause(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour, 3 * ms, -3 * ms} {
		w := newWorld()
		k := openWorld(t, w)
		checkpoints(3, caught)(w, k)
		w.stop()
		k.Paused()
		w.pass(2 * ms)
		w.realNs += float64(by)
		w.pass(3 * ms)
		k.Resuming()
		w.cont()
		k.Resumed()
		if r := k.Report(); !r.Coarse {
			t.Errorf("%v: %+v", by, r)
		}
		checkpoints(3, caught)(w, k)
		if r := k.Report(); r.Kept != 7 || r.Accepted != 0 || r.DebtNs != 0 || r.Coarse || max(r.DriftNs, -r.DriftNs) > 1000 {
			t.Errorf("%v: %+v", by, r)
		}
	}
}

// TestOrder: calls that are left out, or come twice, are survived.
func TestOrder(t *testing.T) {
	w := newWorld()
	k := openWorld(t, w)
	k.Resumed()
	k.Resuming()
	if _, ok := k.Reading(); ok {
		t.Error("a reading of nothing")
	}
	k.Paused()
	k.Paused() // the first was never resumed
	w.cont()
	k.Resumed()
	k.Resumed()
	if r := k.Report(); r.Kept != 1 || r.Missed != 1 {
		t.Errorf("%+v", r)
	}
	if err := errors.Join(k.Close(), k.Close()); err != nil {
		t.Error(err)
	}
	checkpoint(caught)(w, k)
	if r := k.Report(); r.Missed != 2 {
		t.Errorf("after Close: %+v", r)
	}
}

// TestReading: a reading says what the guest's clock is, and will be once its debt
// is put back.
func TestReading(t *testing.T) {
	w := newWorld()
	k := openWorld(t, w)
	check := func(behindNs float64) {
		t.Helper()
		r, ok := k.Reading()
		if !ok || math.Abs(float64(r.ClockNs)-behindNs-w.clockNs) > 10 || int64(r.RealtimeNs) != int64(w.realNs) {
			t.Errorf("%+v, %v: the clock is %.0f at %.0f", r, ok, w.clockNs, w.realNs)
		}
	}
	checkpoint(caught)(w, k)
	w.pass(time.Second)
	check(0)
	checkpoint(slipped)(w, k)
	check(float64(pauseNs)) // not measured yet, but put back one day
	checkpoint(caught)(w, k)
	check(float64(pauseNs))
	checkpoint(caught)(w, k)
	w.pass(time.Second)
	check(0)
}

// TestKeeperModel: whatever happens, a guest's clock never goes back, is never
// ahead of what it should be, and is right again after two pauses that are caught
// if nobody else is at it.
func TestKeeperModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		t.Repeat(map[string]func(*rapid.T){
			"checkpoint": func(t *rapid.T) {
				m.checkpoint(outcome(rapid.IntRange(0, int(outcomes)-1).Draw(t, "outcome")),
					time.Duration(rapid.IntRange(0, 5_000_000).Draw(t, "drain")), time.Duration(rapid.IntRange(100_000, 50_000_000).Draw(t, "work")))
			},
			"run":   func(t *rapid.T) { m.w.pass(time.Duration(rapid.Int64Range(0, 3e9).Draw(t, "run"))) },
			"date":  func(t *rapid.T) { m.w.realNs += float64(rapid.Int64Range(-4e12, 4e12).Draw(t, "step")) },
			"slew":  func(t *rapid.T) { m.w.slewPPM = float64(rapid.IntRange(-500, 500).Draw(t, "ppm")) },
			"brief": func(t *rapid.T) { m.paused(time.Duration(rapid.Int64Range(1e6, 1e8).Draw(t, "pause"))) },
			"foreign": func(t *rapid.T) {
				d := time.Duration(rapid.Int64Range(2e10, 1e12).Draw(t, "for"))
				switch {
				case m.foreign: // two in one epoch may cancel out
				case rapid.Bool().Draw(t, "suspend"):
					m.foreign = true
					m.suspended(d)
				default:
					m.foreign = true
					m.paused(d)
				}
			},
			"": func(*rapid.T) { m.check() },
		})
		for range 4 { // measure; put back; measure what was set; and once more if QEMU's clock was later
			m.checkpoint(caught, ms, 5*ms)
			m.w.pass(1100 * ms) // longer than any backoff
			m.check()
		}
		if r := m.k.Report(); r.DebtNs != 0 || m.lostNs != 0 {
			t.Fatalf("the debt is not put back: %+v, lost %.0f", r, m.lostNs)
		}
		if off := m.w.clockNs - m.shouldNs(); math.Abs(off) > m.toleranceNs() {
			t.Fatalf("the clock is off by %.0f ns: %+v", off, m.k.Report())
		}
	})
}

// model knows what the guest's clock should be.
type model struct {
	t       *rapid.T
	w       *world
	k       *Keeper
	baseNs  float64 // of what the clock should be, without what has passed
	lostNs  float64 // not yet known to the Keeper: lost, or gained if negative
	debtNs  float64 // known to it, and to be put back
	foreign bool    // something that is to be accepted happened since the last reading
	seenNs  float64 // the guest's clock at its last stop
}

func newModel(t *rapid.T) *model {
	w := newWorld()
	w.clockPPM = rapid.Float64Range(-0.3, 0.3).Draw(t, "clockPPM")
	k, err := Open(context.Background(), 0, w.options())
	if err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, w: w, k: k}
	m.checkpoint(caught, ms, 5*ms)
	m.baseNs = w.clockNs - m.ranNs()
	m.lostNs, m.debtNs = 0, 0
	return m
}

func (m *model) ranNs() float64    { return (m.w.rawNs - 1e15) * (1 + m.w.clockPPM/1e6) }
func (m *model) shouldNs() float64 { return m.baseNs + m.ranNs() }

// toleranceNs: rates of 0.3 ppm, which a debt that is put back does not know, and
// a slew of 500 ppm while a SET is under way.
func (m *model) toleranceNs() float64 {
	return 2*toleranceNs + 0.3e-6*(m.w.rawNs-1e15) + 50_000*float64(m.k.Report().Restored)
}

func (m *model) checkpoint(what outcome, drain, work time.Duration) {
	before := m.k.Report()
	wasNs := m.w.clockNs - m.ranNs()
	m.w.pause(m.k, what, drain, work)
	r := m.k.Report()
	m.seenNs = float64(m.w.savedNs)
	m.lostNs += wasNs - (m.w.clockNs - m.ranNs())
	if what == unknown && math.Abs(m.lostNs) < 1e10 {
		m.foreign = false // a debt was put back, and that with it, which nobody knows
	}
	switch {
	case r.Restored > before.Restored: // all that was lost, also what nobody knew of
		m.lostNs, m.debtNs, m.foreign = 0, 0, false
	case r.Accepted > before.Accepted:
		if !m.foreign {
			m.t.Fatalf("accepted, but it is ours: %+v", r)
		}
		m.baseNs -= m.lostNs
		m.lostNs, m.foreign = 0, false
	case r.Kept > before.Kept:
		if m.foreign {
			m.t.Fatalf("not accepted: %+v", r)
		}
		m.debtNs += m.lostNs
		m.lostNs = 0
	}
}

func (m *model) paused(d time.Duration) {
	m.w.armed = nil
	m.w.stop()
	m.w.pass(d)
	m.w.cont()
	m.lostNs += float64(d) * (1 + m.w.clockPPM/1e6)
}

func (m *model) suspended(d time.Duration) {
	suspend(d)(m.w, nil)
	m.lostNs -= float64(d)
}

func (m *model) check() {
	if m.w.died != "" {
		m.t.Fatal(m.w.died)
	}
	if m.w.clockNs+1 < m.seenNs {
		m.t.Fatalf("the guest saw %.0f and then %.0f", m.seenNs, m.w.clockNs)
	}
	if ahead := m.w.clockNs - m.shouldNs() + min(m.lostNs, 0); ahead > m.toleranceNs() {
		m.t.Fatalf("ahead by %.0f ns", ahead)
	}
	if r := m.k.Report(); r.DebtNs < 0 {
		m.t.Fatalf("%+v", r)
	}
}
