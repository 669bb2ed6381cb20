package watch

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/virt-ft/virt-ft/internal/control"
)

// began is the beginning of a slot.
func began() time.Time { return time.Unix(1_800_000_000, 0) }

func epoch(n uint64, at time.Time, pausedMs float64) control.Epoch {
	return control.Epoch{Epoch: n, Generation: 1, At: at, IntervalMs: 20, PausedMs: pausedMs, AckMs: pausedMs + 2, ShipMs: pausedMs + 1,
		Phases: control.Phases{StopMs: 1, CopyMs: pausedMs / 2}, LivePages: 100, PausePages: 28, SentBytes: 1 << 20}
}

func TestHistoryOfAnHour(t *testing.T) {
	h := New()
	r := h.Recorder("u", "web1")
	const second = 100 // epochs
	for n := range uint64(10 * second) {
		r.Observe(epoch(n+1, began().Add(time.Duration(n)*10*time.Millisecond), float64(1+n%second)))
	}
	h.Sample(began().Add(9*time.Second), []control.Status{{UUID: "u", Domain: "web1", Role: control.RolePrimary, State: control.StateProtected, Generation: 1,
		Output: &control.OutputStatus{HeldFrames: 7, OldestMs: 3}}})
	slots := r.Slots(time.Time{}, began().Add(10*time.Second))
	if len(slots) != 2 {
		t.Fatalf("%d slots of two", len(slots))
	}
	for i, s := range slots {
		if s.Epochs != SlotSeconds*second || s.PausedMs.Min != 1 || s.PausedMs.Max != second || s.DirtyPagesSum != SlotSeconds*second*128 {
			t.Errorf("slot %d: %+v", i, s)
		}
		near(t, s.PausedMs.P50, second/2+1)
		near(t, s.PausedMs.P99, second)
		near(t, float32(s.Phases.StopMs), 1)
	}
	if slots[0].State != "" || slots[1].State != control.StateProtected || slots[1].HeldFrames != 7 || slots[1].OldestMs != 3 {
		t.Errorf("%+v", slots)
	}
	if got := r.Slots(began().Add(5*time.Second), began().Add(10*time.Second)); len(got) != 1 || !got[0].At.Equal(slots[1].At) {
		t.Errorf("since the second slot: %v", got)
	}
	// What is older than an hour is gone, also while its place is not taken again.
	r.Observe(epoch(5000, began().Add(time.Hour), 1))
	if got := r.Slots(time.Time{}, began().Add(time.Hour)); len(got) != 2 || got[0].At != slots[1].At {
		t.Errorf("an hour later: %d slots", len(got))
	}
	if v := r.View(); v.Counts.Paused.Count != 10*second+1 || !v.Live {
		t.Errorf("%d pauses counted", v.Counts.Paused.Count)
	}
}

func near(t *testing.T, got, want float32) {
	t.Helper()
	if got < want*.97 || got > want*1.03 {
		t.Errorf("%v is not within 3%% of %v", got, want)
	}
}

// A reader that was cut off begins again with epochs that it has seen.
func TestAnEpochCountsOnce(t *testing.T) {
	r := New().Recorder("u", "web1")
	var es []control.Epoch
	for n := range uint64(100) {
		es = append(es, epoch(n+1, began().Add(time.Duration(n)*time.Millisecond), 1))
	}
	es[50], es[51] = es[51], es[50] // one overtakes
	for range 3 {
		for _, e := range es {
			r.Observe(e)
		}
	}
	// A new session counts from 1 again.
	next := epoch(1, began().Add(time.Second), 1)
	r.Observe(next)
	if n := r.View().Counts.Paused.Count; n != 101 {
		t.Errorf("%d epochs counted of 101", n)
	}
	if got := r.Epochs(); len(got) != 101 || got[100] != next {
		t.Errorf("%d epochs kept", len(got))
	}
}

// A protection that ended is remembered for an hour, through a change of roles too.
func TestEndedAndForgotten(t *testing.T) {
	h := New()
	at := began()
	st := control.Status{UUID: "u", Domain: "web1", Role: control.RoleBackup, State: control.StateStandby}
	h.Sample(at, []control.Status{st})
	h.Claimed("u", "peer silent")
	st.State = "active"
	h.Event(control.Event{Kind: control.EventState, UUID: "u", Role: control.RoleBackup, State: "active"})
	h.Sample(at.Add(5*time.Second), []control.Status{st})
	st.Role, st.State = control.RolePrimary, control.StateProtected
	h.Sample(at.Add(10*time.Second), []control.Status{st})
	h.Sample(at.Add(15*time.Second), nil)
	r := h.Find("web1")
	if r == nil || r.View().Live {
		t.Fatal("the domain is forgotten, or lives")
	}
	var roles []string
	for _, s := range r.Slots(time.Time{}, at.Add(time.Minute)) {
		roles = append(roles, s.Role+" "+s.State)
	}
	if want := []string{"backup standby", "backup active", "primary protected"}; !slices.Equal(roles, want) {
		t.Errorf("%q, want %q", roles, want)
	}
	if f := h.Totals().Failovers; len(f) != 1 || f["peer silent"] != 1 {
		t.Errorf("failovers %v", f)
	}
	h.Sample(at.Add(10*time.Second+kept), nil)
	if h.Find("u") == nil {
		t.Error("forgotten before an hour was over")
	}
	h.Sample(at.Add(11*time.Second+kept), nil)
	if h.Find("u") != nil {
		t.Error("remembered for more than an hour")
	}
}

func TestBounds(t *testing.T) {
	if BytesPerDomain > 300<<10 {
		t.Errorf("a domain takes %d KiB", BytesPerDomain>>10)
	}
	h := New()
	for i := range DomainsMax + 10 {
		h.Sample(began().Add(time.Duration(i)*time.Second), []control.Status{{UUID: fmt.Sprint(i), Domain: fmt.Sprint(i)}})
	}
	if n := len(h.Domains()); n != DomainsMax {
		t.Errorf("%d domains are remembered, at most %d", n, DomainsMax)
	}
	if h.Find("0") != nil || h.Find(fmt.Sprint(DomainsMax+9)) == nil {
		t.Error("not the oldest ones are forgotten")
	}
	for i := range 100 {
		h.Claimed("x", fmt.Sprint("cause ", i))
		h.Event(control.Event{Kind: control.EventState, UUID: "x", Role: control.RoleBackup, State: "active"})
	}
	if f := h.Totals().Failovers; len(f) != causesMax+1 || f["other"] != 100-causesMax {
		t.Errorf("causes are not bounded: %v", f)
	}
}

// A spread is what sorting says, within three percent.
func TestSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vs := rapid.SliceOfN(rapid.OneOf(rapid.Just(0.), rapid.Float64Range(leastValue, 1e9)), 1, 300).Draw(t, "values")
		var s spread
		for _, v := range vs {
			s.add(v)
		}
		slices.Sort(vs)
		got := s.summary()
		if got.Min != float32(vs[0]) || got.Max != float32(vs[len(vs)-1]) {
			t.Fatalf("from %v to %v, want from %v to %v", got.Min, got.Max, vs[0], vs[len(vs)-1])
		}
		for _, q := range []struct {
			percent int
			got     float32
		}{{50, got.P50}, {99, got.P99}} {
			want := vs[len(vs)*q.percent/100]
			if math.Abs(float64(q.got)-want) > want*.03+1e-6 {
				t.Fatalf("p%d is %v, want %v", q.percent, q.got, want)
			}
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	h := New()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := range uint64(200) {
				h.Recorder("u", "web1").Observe(epoch(n, began().Add(time.Duration(n)*time.Second), 1))
				h.Sample(began().Add(time.Duration(n)*time.Second), []control.Status{{UUID: "u", Domain: "web1"}})
				h.Find("web1").Slots(time.Time{}, began())
				h.Domains()[0].View()
			}
		})
	}
	wg.Wait()
	if n := h.Find("web1").View().Counts.Paused.Count; n < 200 {
		t.Errorf("%d epochs of at least 200", n)
	}
}

// BenchmarkObserve compares with putting an epoch into a channel and taking it out
// again, which is done for each reader anyway.
func BenchmarkObserve(b *testing.B) {
	r := New().Recorder("u", "web1")
	c := make(chan control.Epoch, 1)
	var observed, passed time.Duration
	const round = 1000
	n := uint64(0)
	for b.Loop() {
		t := time.Now()
		for range round {
			c <- epoch(n, began(), 5)
			<-c
		}
		passed += time.Since(t)
		t = time.Now()
		for range round {
			n++
			r.Observe(epoch(n, began().Add(time.Duration(n)*time.Millisecond), float64(n%100)))
		}
		observed += time.Since(t)
	}
	b.ReportMetric(float64(observed.Nanoseconds())/float64(n), "ns/epoch")
	b.ReportMetric(float64(observed)/float64(passed), "of_a_channel")
}
