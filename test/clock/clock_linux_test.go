package main

import (
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/cpulayout"
	"github.com/virt-ft/virt-ft/internal/ptracer"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
	"github.com/virt-ft/virt-ft/test/clock/guest"
	"github.com/virt-ft/virt-ft/test/tool"
)

func TestMain(m *testing.M) {
	ptracer.MaybeInject()
	maybeVictim()
	os.Exit(m.Run())
}

// start is newSubject for a test.
func start(t *testing.T, cpus int) *subject {
	t.Helper()
	if err := guest.Lacks(); err != nil {
		t.Skip(err)
	}
	runtime.LockOSThread() // QEMU ends with the thread that has started it
	s, err := newSubject(t.Context(), cpus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// slackNs is what a clock may be off by that nobody stopped: rates that differ, and
// the error of a reading.
const slackNs = 20_000

// What QEMU does to a guest's clock by itself, a keeper undoes; whatever the
// machine is busy with: pauses that were missed were put back.
func TestKeeperKeepsTheClock(t *testing.T) {
	for _, cpus := range []int{1, 4} {
		s := start(t, cpus)
		without, err := s.stretch(t.Context(), uncorrected, 50, 300*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		with, err := s.stretch(t.Context(), corrected, 50, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		without.print(t.Output())
		with.print(t.Output())
		if lost := -without.gainedNs(); lost < 10*slackNs {
			t.Errorf("%d vCPU: without a keeper the clock lost %d ns: this test proves nothing", cpus, lost)
		}
		r := with.report
		if r.Kept == 0 || r.Kept+r.Restored+r.Missed != uint64(len(with.epochs)) {
			t.Errorf("%d vCPU: of %d pauses %+v", cpus, len(with.epochs), r)
		}
		// A debt that the last pauses left is the keeper's to tell.
		if err := with.gainedNs() + r.DebtNs; max(err, -err) > slackNs && r.Missed == 0 {
			t.Errorf("%d vCPU: the clock is off by %d ns: %+v", cpus, err, r)
		}
		for _, st := range []*stretch{without, with} {
			if st.steps.backwards()+st.steps.TSC > 0 || st.steps.Reads == 0 {
				t.Errorf("%d vCPU, %v: the guest saw its clock go back: %+v", cpus, st.mode, st.steps)
			}
		}
	}
}

// A pause of which the keeper was not told is put back at the next one.
func TestKeeperPutsBack(t *testing.T) {
	s := start(t, 1)
	rs, err := repairs(t.Context(), s, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		t.Logf("%+v", r)
		if r.MissedUs < 100 {
			t.Errorf("a pause cost %.1f µs: this test proves nothing", r.MissedUs)
		}
	}
	last := rs[len(rs)-1]
	if last.Restored == 0 {
		t.Error("nothing was put back")
	}
	if steps := stepsOf(s.Machine); steps.backwards() > 0 {
		t.Errorf("the guest saw its clock go back: %+v", steps)
	}
}

func TestFailover(t *testing.T) {
	if err := guest.Lacks(); err != nil {
		t.Skip(err)
	}
	runtime.LockOSThread()
	layout, err := cpulayout.Learn(t.Context(), "qemu-system-x86_64", "pc")
	if err != nil {
		t.Fatal(err)
	}
	f, err := failOver(t.Context(), 2, layout)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", f)
	if f.Steps.backwards() > 0 {
		t.Errorf("the guest saw its clock go back: %+v", f.Steps)
	}
	// Without the trap the clock is behind by the resume at least. Only a host
	// that was too busy for it has an excuse, and says so.
	if f.Applied.Set && max(f.StepUs, -f.StepUs) > 1000 {
		t.Errorf("the clock was set, and is off by %.1f µs", f.StepUs)
	}
	if !f.Applied.Set && f.Applied.Why == "" {
		t.Error("the clock was not set, and nothing says why")
	}
}

func TestKills(t *testing.T) {
	if err := guest.Lacks(); err != nil {
		t.Skip(err)
	}
	runtime.LockOSThread()
	seed := uint64(time.Now().UnixNano())
	k, err := campaign(t.Context(), 1, 4, rand.New(rand.NewPCG(seed, 0)))
	k.summarize()
	k.print(t.Output())
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	if k.Deaths > 0 || k.Traced || k.Steps.backwards() > 0 {
		t.Errorf("seed %d: %+v", seed, k)
	}
}

// The arithmetic, on a clock that runs 50 parts in 10^9 too fast and was set once.
func TestDescribe(t *testing.T) {
	st := &stretch{mode: corrected, hz: 10, first: reading{rawNs: 1e9, clockNs: 5e9}}
	for i := range int64(100) {
		elapsed := (i + 1) * 1e8
		e := epochOf{reading: reading{rawNs: 1e9 + elapsed, clockNs: 5e9 + elapsed + elapsed*50/1e9}}
		e.phases.PausedNs = 3e6
		st.epochs = append(st.epochs, e)
	}
	st.report = kvmclock.Report{Kept: 100}
	r := describe(st)
	if r.Epochs != 100 || r.Seconds != 10 || r.GainedUs != .5 || r.PPM != .05 || r.RatePPB < 49.9 || r.RatePPB > 50.1 || r.ResidualMaxUs > .002 {
		t.Errorf("%+v", r)
	}
	if r.ErrMaxUs != .5 || r.ErrP99Us != .495 || r.PausedP50Ms != 3 || r.Kept != 100 {
		t.Errorf("%+v", r)
	}
	st.epochs[49].clockNs -= 7e6
	d := &details{}
	d.add(1, st)
	f := d.figures()
	if got := f["corrected_err_max_us"]; got < 6999 || got > 7000 {
		t.Errorf("a missed pause shows as %v µs", got)
	}
	if f["backwards"] != 0 || len(f) != 3 {
		t.Errorf("figures %v", f)
	}
	if line := d.line(tool.Result{Tool: "clock"}); line["failover_step_us"] != any(nil) || line["corrected_err_max_us"] == any(nil) {
		t.Errorf("closing line %v", line)
	}
}
