package netgate

import (
	"slices"
	"testing"
	"time"
)

// times are of one thing done again and again; their median is what it takes on
// a machine that others use too.
type times []time.Duration

func (ts *times) add(f func()) {
	start := time.Now()
	f()
	*ts = append(*ts, time.Since(start))
}

func (ts times) median() time.Duration {
	sorted := slices.Sorted(slices.Values(ts))
	return sorted[len(sorted)/2]
}

// BenchmarkPass compares what a guest's TCP connection carries with a gate that
// passes, and with one that holds and is committed as fast as it can, to the
// same connection without a gate, in the same run. The pump behind the tap is a
// goroutine, so the figures are ratios of this machine, not of QEMU.
func BenchmarkPass(b *testing.B) {
	inNamespace(b)
	m := plug(b, "g0", 1)
	s := boot(b, m)
	guest, host := s.connect(hostIP4)
	const size = 32 << 20
	run := func() { must(b, transfer(guest, host, size)) }
	run() // warm
	var bare, passing, holding times
	for b.Loop() {
		bare.add(run)
		g := open(b, Options{}, m)
		passing.add(run)
		must(b, g.Close(false))
		c := commit(b, m)
		holding.add(run)
		c.end()
	}
	b.ReportMetric(size*8/bare.median().Seconds()/1e9, "bare-Gb/s")
	b.ReportMetric(bare.median().Seconds()/passing.median().Seconds(), "passing/bare")
	b.ReportMetric(bare.median().Seconds()/holding.median().Seconds(), "holding/bare")
}

// BenchmarkFrame is what one small frame costs the guest's thread to send, and
// ours to cut and to release.
func BenchmarkFrame(b *testing.B) {
	inNamespace(b)
	guest := plug(b, "g0", 1)
	plug(b, "w0", 1)
	const each = 1000
	f := frame(1)
	burst := func() {
		for range each {
			guest.write(f)
		}
	}
	var bare, passing, held, cut, released times
	for b.Loop() {
		burst() // warm
		bare.add(burst)
		g := open(b, Options{}, guest)
		g.Lease(boottime(b, time.Hour))
		burst()
		passing.add(burst)
		must(b, g.Hold())
		held.add(burst)
		var fs []Frame
		cut.add(func() { fs = g.Cut() })
		released.add(func() { must(b, g.Release(fs)) })
		if len(fs) != each {
			b.Fatalf("%d frames", len(fs))
		}
		must(b, g.Close(false))
	}
	per := func(ts times) float64 { return float64(ts.median().Nanoseconds()) / each }
	b.ReportMetric(per(bare), "bare-ns")
	b.ReportMetric(per(passing), "passing-ns")
	b.ReportMetric(per(held), "held-ns")
	b.ReportMetric(per(cut), "cut-ns")
	b.ReportMetric(per(released), "released-ns")
	b.ReportMetric(per(bare)/per(passing), "passing/bare")
}

// BenchmarkOpen is how long a guest's gate takes to come and go, and to open
// again after a hold.
func BenchmarkOpen(b *testing.B) {
	inNamespace(b)
	guest := plug(b, "g0", 1)
	var opening, passing, closing time.Duration
	for b.Loop() {
		start := time.Now()
		g := open(b, Options{}, guest)
		opening += time.Since(start)
		must(b, g.Hold())
		start = time.Now()
		must(b, g.Pass(b.Context(), nil))
		passing += time.Since(start)
		start = time.Now()
		must(b, g.Close(false))
		closing += time.Since(start)
	}
	per := func(d time.Duration) float64 { return d.Seconds() * 1e3 / float64(b.N) }
	b.ReportMetric(per(opening), "open-ms")
	b.ReportMetric(per(passing), "pass-ms")
	b.ReportMetric(per(closing), "close-ms")
}
