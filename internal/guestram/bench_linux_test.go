package guestram

import (
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// scanned is memory to scan: how it came to be, and what is written before each
// scan.
type scanned struct {
	name         string
	shared, huge bool
	fill         bool
	dirty        int // random pages
}

// A Collect over 1 GiB, by one thread and by all, beside a memcpy of a
// thousandth of it in the same run. What is written meanwhile is not timed.
func BenchmarkScan(b *testing.B) {
	for _, k := range []scanned{
		{"huge", false, true, true, 0}, {"small", false, false, true, 0}, {"empty", false, true, false, 0}, {"memfd", true, false, true, 0},
		{"huge, 500 written", false, true, true, 500}, {"small, 8000 written", false, false, true, 8000},
	} {
		b.Run(k.name, func(b *testing.B) { benchScan(b, k) })
	}
}

func benchScan(b *testing.B, k scanned) {
	const size = 1 << 30
	r := newRegion(b, size, k.shared, k.huge)
	for i := 0; k.fill && i < size; i += PageSize {
		r.mem[i] = 1
	}
	tr := r.track(b)
	rs := collect(b, tr)
	rng := rand.New(rand.NewPCG(1, 2))
	var spent [2]time.Duration
	least := [2]time.Duration{math.MaxInt64, math.MaxInt64}
	var floor time.Duration
	src, dst := make([]byte, size>>10), make([]byte, size>>10)
	for b.Loop() {
		for together := range 2 {
			for range k.dirty {
				r.mem[rng.IntN(size)]++
			}
			for i := range tr.blocks {
				tr.blocks[i].touched.settled = true // as a second after the file came to be
			}
			tr.parallelNs = [2]int64{math.MaxInt64, 0}[together]
			start := time.Now()
			var err error
			if rs, err = tr.Collect(rs[:0]); err != nil {
				b.Fatal(err)
			}
			took := time.Since(start)
			spent[together] += took
			least[together] = min(least[together], took)
			start = time.Now()
			copy(dst, src)
			floor += time.Since(start)
		}
	}
	n := float64(b.N)
	b.ReportMetric(float64(spent[0].Nanoseconds())/n/1e3, "one-µs/GiB")
	b.ReportMetric(float64(spent[1].Nanoseconds())/n/1e3, "all-µs/GiB")
	b.ReportMetric(float64(least[0].Nanoseconds())/1e3, "one-min-µs/GiB")
	b.ReportMetric(float64(least[1].Nanoseconds())/1e3, "all-min-µs/GiB")
	b.ReportMetric(float64(spent[1])/float64(spent[0]), "x-one")
	b.ReportMetric(float64(spent[0])/(float64(floor)/2), "x-memcpy-1MiB")
}

// Pages far from each other, by one thread and by all, beside a memcpy of them.
func BenchmarkRead(b *testing.B) {
	for _, k := range []struct {
		name   string
		shared bool
		pages  int
	}{{"500", false, 500}, {"2000", false, 2000}, {"8000", false, 8000}, {"memfd 500", true, 500}, {"memfd 8000", true, 8000}} {
		b.Run(k.name, func(b *testing.B) { benchRead(b, k.shared, k.pages) })
	}
}

func benchRead(b *testing.B, shared bool, pages int) {
	const size = 256 << 20
	r := newRegion(b, size, shared, false)
	for i := 0; i < size; i += PageSize {
		r.mem[i] = 1
	}
	rd, err := NewReader(os.Getpid(), []Block{r.b})
	if err != nil {
		b.Fatal(err)
	}
	defer rd.Close()
	var rs []Range
	for p := range pages {
		rs = append(rs, Range{0, 1, uint64(p*8) * PageSize})
	}
	dst := make([]byte, len(rs)*PageSize)
	clear(dst)
	var spent [3]time.Duration
	for b.Loop() {
		for how := range 3 {
			start := time.Now()
			if how == 2 {
				for i, g := range rs {
					copy(dst[i*PageSize:], r.mem[g.Off:g.End()])
				}
			} else {
				rd.parallel = [2]int{math.MaxInt, 0}[how]
				if _, err := rd.Read(rs, dst); err != nil {
					b.Fatal(err)
				}
			}
			spent[how] += time.Since(start)
		}
	}
	b.ReportMetric(float64(spent[0].Nanoseconds())/float64(b.N)/1e3, "one-µs")
	b.ReportMetric(float64(spent[1].Nanoseconds())/float64(b.N)/1e3, "all-µs")
	b.ReportMetric(float64(spent[1])/float64(spent[0]), "x-one")
	b.ReportMetric(float64(spent[0])/float64(spent[2]), "x-memcpy")
	b.ReportMetric(float64(spent[1])/float64(spent[2]), "all-x-memcpy")
}
