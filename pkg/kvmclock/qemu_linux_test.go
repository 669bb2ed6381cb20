package kvmclock

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
)

// startGuest starts a QEMU with KVM, or skips.
func startGuest(t testing.TB) *qmptest.Guest {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("/dev/kvm cannot be opened: %v", err)
	}
	f.Close()
	return qmptest.Start(t, qmptest.Options{
		Machine: "q35", Args: []string{"-m", "64", "-accel", "kvm", "-cpu", "host,-arch-capabilities"},
		Payload: qmptest.Payload{Delay: 1000, Pages: 16},
	})
}

func command(t testing.TB, g *qmptest.Guest, name string) {
	t.Helper()
	if _, err := g.QMP(t.Context(), name, nil); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// kept is one pause with a Keeper around it.
func kept(t testing.TB, g *qmptest.Guest, k *Keeper) {
	t.Helper()
	command(t, g, "stop")
	k.Paused()
	k.Resuming()
	command(t, g, "cont")
	k.Resumed()
}

// lossMinNs is what the pauses of TestQEMU would cost at least, were they lost:
// much more than any error of a clock that is kept.
const lossMinNs = int64(5 * time.Millisecond)

// TestQEMU: a real guest's clock is kept, KVM being asked; loses time when it is
// not kept; and gets that back.
func TestQEMU(t *testing.T) {
	g := startGuest(t)
	k, err := Open(t.Context(), g.PID, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	const pauses = 40
	for range pauses {
		kept(t, g, k)
	}
	settle(t, g, k)
	r := k.Report()
	t.Logf("kept: %+v", r)
	if r.Kept < pauses/2 || r.Kept+r.Restored+r.Missed < pauses || r.Accepted != 0 {
		t.Errorf("of %d pauses: %+v", pauses, r)
	}

	command(t, g, "stop")
	lost := time.NewTimer(time.Duration(lossMinNs)) // a pause of a known length, nothing is waited for
	<-lost.C
	command(t, g, "cont")
	kept(t, g, k)
	if got := k.Report(); got.MaxErrNs < lossMinNs {
		t.Errorf("a pause of %d ns that was not kept costs %d", lossMinNs, got.MaxErrNs)
	}
	settle(t, g, k)
	got := k.Report()
	t.Logf("put back: %+v", got)
	if got.Restored <= r.Restored || got.Accepted != 0 {
		t.Errorf("%+v", got)
	}
}

// settle makes pauses until the clock is as it should be. Each of them may be
// missed on a busy host; all of them will not be.
func settle(t *testing.T, g *qmptest.Guest, k *Keeper) {
	t.Helper()
	for range 100 {
		missed := k.Report().Missed
		kept(t, g, k) // measure
		kept(t, g, k) // put back
		kept(t, g, k) // measure that
		if r := k.Report(); r.Missed == missed && r.DebtNs == 0 {
			if max(r.DriftNs, -r.DriftNs) > lossMinNs/10 && !r.Coarse {
				t.Errorf("the clock is off: %+v", r)
			}
			return
		}
	}
	t.Fatalf("not settled: %+v", k.Report())
}

// TestQEMUSetAtResume: a real QEMU starts its guest with the clock that we give it.
func TestQEMUSetAtResume(t *testing.T) {
	if !kernelTakesRealtime(os.Getpid()) {
		t.Skip("KVM_SET_CLOCK with flags: /dev/kvm cannot be opened, or it is older than Linux 5.16")
	}
	g := startGuest(t)
	p, err := Prepare(t.Context(), g.PID, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	command(t, g, "stop")
	const ahead = uint64(100 * time.Second)
	r := Reading{ClockNs: ahead, RealtimeNs: uint64(hostInstant().realNs)}
	began := time.Now()
	var inside time.Duration
	a, err := p.SetAtResume(t.Context(), r, func(context.Context) error {
		from := time.Now()
		command(t, g, "cont")
		inside = time.Since(from)
		return nil
	})
	t.Logf("%+v; %v beyond the resume's %v", a, time.Since(began)-inside, inside)
	if err != nil || !a.Set || a.StepNs < int64(ahead)/2 {
		t.Fatalf("%+v, %v", a, err)
	}

	k, err := Open(t.Context(), g.PID, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	settle(t, g, k)
	got, _ := k.Reading()
	want, ok := r.at(got.RealtimeNs)
	off := int64(got.ClockNs - want)
	t.Logf("off by %v", time.Duration(off))
	if !ok || max(off, -off) > int64(time.Millisecond) {
		t.Errorf("the clock is %d, it should be %d", got.ClockNs, want)
	}

	// QEMU's own is later than this, and stays.
	command(t, g, "stop")
	a, err = p.SetAtResume(t.Context(), Reading{1, r.RealtimeNs}, func(context.Context) error { command(t, g, "cont"); return nil })
	if err != nil || a.Set || a.Why == "" {
		t.Errorf("%+v, %v", a, err)
	}
}

// BenchmarkKeeper is what a Keeper itself costs each pause, its tracer aside, and
// the ratio to what it cannot do without: reading the host's clocks twice.
func BenchmarkKeeper(b *testing.B) {
	w := newWorld()
	o := w.options()
	o.now = hostInstant
	k, err := Open(b.Context(), 0, o)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var floor time.Duration
	for b.Loop() {
		from := time.Now()
		hostInstant()
		hostInstant()
		floor += time.Since(from)
		k.Paused()
		k.Resuming()
		w.cont()
		k.Resumed()
	}
	b.ReportMetric(float64(b.Elapsed()-floor)/float64(floor), "x-two-instants")
}

// BenchmarkQEMU is a stop and a cont of a real guest with a Keeper around, and, by
// turns, of another one without; and how long a guest stands still for the tracer.
func BenchmarkQEMU(b *testing.B) {
	g, other := startGuest(b), startGuest(b)
	k, err := Open(b.Context(), g.PID, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	var plain, with, waited time.Duration
	n := 0
	for b.Loop() {
		from := time.Now()
		command(b, other, "stop")
		command(b, other, "cont")
		plain += time.Since(from)
		from = time.Now()
		command(b, g, "stop")
		k.Paused()
		wait := time.Now()
		k.Resuming()
		waited += time.Since(wait)
		command(b, g, "cont")
		with += time.Since(from)
		k.Resumed()
		n++
	}
	r := k.Report()
	b.ReportMetric(float64(with)/float64(plain), "x-plain")
	b.ReportMetric(float64(waited.Microseconds())/float64(n), "µs-armed")
	b.ReportMetric(float64(r.LastAttached.Microseconds()), "µs-attached")
	b.ReportMetric(float64(r.Missed)/float64(n), "missed/op")
}
