package kvmclock

import (
	"context"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

// standby is a world whose guest has come out of a checkpoint, with savedNs on its
// clock, and waits.
func standby(t *testing.T) (*world, *Prepared) {
	t.Helper()
	w := newWorld()
	w.stop()
	w.pass(300 * ms) // until the failover is decided
	p, err := Prepare(t.Context(), 0, w.options())
	if err != nil {
		t.Fatal(err)
	}
	return w, p
}

// resume is QEMU's, after what libvirt takes.
func (w *world) resume(calls *int, err error) func(context.Context) error {
	return func(context.Context) error {
		*calls++
		w.pass(4 * ms)
		if err == nil {
			w.cont()
		}
		return err
	}
}

func TestSetAtResume(t *testing.T) {
	failed := errors.New("libvirt says no")
	for name, c := range map[string]struct {
		what   outcome
		reads  time.Duration // how much later than the checkpoint the reading is
		silly  Reading       // taken instead
		fails  error
		strict bool
		set    bool
		why    string
		behind time.Duration // what the guest's clock lacks in the end
	}{
		"set":                   {set: true},
		"from a later reading":  {reads: 20 * ms, set: true},
		"an old kernel":         {strict: true, set: true, behind: 4 * ms},
		"the trap misses":       {what: slipped, why: "not caught", behind: 304 * ms},
		"the tracer is away":    {what: refused, why: "away", behind: 304 * ms},
		"the resume fails":      {fails: failed, why: "not caught"},
		"and the tracer, too":   {what: refused, fails: failed, why: "away"},
		"no reading":            {silly: Reading{0, 0}, why: "not known", behind: 304 * ms},
		"a reading of nonsense": {silly: Reading{1, 1 << 63}, why: "date wrong", behind: 304 * ms},
		"a clock before QEMU's": {silly: Reading{1, 1.7e15}, why: "later", behind: 304 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			w, p := standby(t)
			w.strict, p.realtime, w.next = c.strict, !c.strict, c.what
			r := Reading{ClockNs: w.savedNs + uint64(c.reads), RealtimeNs: uint64(w.realNs) - uint64(300*ms) + uint64(c.reads)}
			if strings.HasPrefix(name, "no reading") || c.silly != (Reading{}) {
				r = c.silly
			}
			should, calls := float64(w.savedNs)+float64(304*ms), 0
			a, err := p.SetAtResume(t.Context(), r, w.resume(&calls, c.fails))
			if calls != 1 || err != c.fails || a.Set != c.set || !strings.Contains(a.Why, c.why) || (a.Why == "") != c.set {
				t.Errorf("%+v, %v after %d calls", a, err, calls)
			}
			if a.Set && a.StepNs != int64(300*ms) {
				t.Errorf("a step of %v", time.Duration(a.StepNs))
			}
			if c.fails == nil && math.Abs(w.clockNs-should+float64(c.behind)) > 10 {
				t.Errorf("the clock is %.0f, it should be %.0f less %v", w.clockNs, should, c.behind)
			}
			if w.armed != nil || w.died != "" {
				t.Errorf("armed: %+v; %s", w.armed, w.died)
			}
			if err := errors.Join(p.Close(), p.Close()); err != nil || !w.closed {
				t.Error(err)
			}
		})
	}
}

// TestSetAtResumeAgain: a resume that failed is tried again.
func TestSetAtResumeAgain(t *testing.T) {
	w, p := standby(t)
	calls := 0
	r := Reading{ClockNs: w.savedNs, RealtimeNs: uint64(w.realNs) - uint64(300*ms)}
	for _, fails := range []error{errors.New("not yet"), nil} {
		if a, err := p.SetAtResume(t.Context(), r, w.resume(&calls, fails)); err != fails || a.Set != (fails == nil) {
			t.Errorf("%+v, %v", a, err)
		}
	}
	if calls != 2 || math.Abs(w.clockNs-float64(r.ClockNs)-float64(308*ms)) > 10 {
		t.Errorf("%d calls, the clock is %.0f", calls, w.clockNs)
	}
}

// TestSetAtResumeUnprepared: a standby without KVM, or that is gone, is resumed.
func TestSetAtResumeUnprepared(t *testing.T) {
	for _, pid := range []int{os.Getpid(), 1 << 30} {
		calls := 0
		a, err := SetAtResume(t.Context(), pid, Reading{1, 1}, func(context.Context) error { calls++; return nil }, Options{})
		if calls != 1 || err != nil || a.Set || a.Why == "" {
			t.Errorf("%+v, %v after %d calls", a, err, calls)
		}
	}
	w := newWorld()
	w.stop()
	calls := 0
	a, err := SetAtResume(t.Context(), 0, Reading{ClockNs: w.savedNs, RealtimeNs: uint64(w.realNs)}, w.resume(&calls, nil), w.options())
	if calls != 1 || err != nil || !a.Set || !w.closed {
		t.Errorf("%+v, %v after %d calls", a, err, calls)
	}
}
