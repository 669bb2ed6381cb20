package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a benchmark.
const (
	benchMax        = time.Minute
	benchWritesMax  = 1 << 20
	benchBlockBytes = 1 << 20
)

// bench writes behind the slots, where nothing is kept: 4 KiB here and there,
// and then 1 MiB after the other, one write at a time and for d each. Time is
// the guest's own, which may stand still while the guest does.
func (d *recordDisk) bench(length time.Duration) (map[string]any, error) {
	if length <= 0 || length > benchMax {
		return nil, fmt.Errorf("bench: give seconds, at most %d", int(benchMax.Seconds()))
	}
	from := int64(d.layout.Slots()) * slotBytes
	room := (d.bytes - from) / benchBlockBytes * benchBlockBytes
	if room == 0 {
		return nil, fmt.Errorf("bench: the disk is too small")
	}
	buf, err := anonymous(benchBlockBytes)
	if err != nil {
		return nil, err
	}
	defer func() { _ = release(buf) }()
	rng := rand.New(rand.NewPCG(1, 2))
	words := func(b []byte) { // so that no two blocks are the same
		for i := 0; i < len(b); i += slotBytes {
			for n, v := range [...]uint64{rng.Uint64(), rng.Uint64()} {
				b[i+n], b[i+slotBytes-1-n] = byte(v), byte(v>>8)|1
			}
		}
	}
	latencies := make([]uint64, 0, 1<<14)
	total, end := uint64(0), clockNs(unix.CLOCK_MONOTONIC)+uint64(length)
	for now := clockNs(unix.CLOCK_MONOTONIC); now < end && len(latencies) < benchWritesMax; {
		words(buf[:slotBytes])
		at := from + rng.Int64N(room/slotBytes)*slotBytes
		start := clockNs(unix.CLOCK_MONOTONIC)
		if _, err := d.dev.WriteAt(buf[:slotBytes], at); err != nil {
			return nil, d.failed(err)
		}
		now = clockNs(unix.CLOCK_MONOTONIC)
		latencies = append(latencies, now-start)
		total += now - start
	}
	written, busy, at := uint64(0), uint64(0), int64(0)
	end = clockNs(unix.CLOCK_MONOTONIC) + uint64(length)
	for now := clockNs(unix.CLOCK_MONOTONIC); now < end; at = (at + benchBlockBytes) % room {
		words(buf)
		start := clockNs(unix.CLOCK_MONOTONIC)
		if _, err := d.dev.WriteAt(buf, from+at); err != nil {
			return nil, d.failed(err)
		}
		now = clockNs(unix.CLOCK_MONOTONIC)
		busy += now - start
		written += benchBlockBytes
	}
	slices.Sort(latencies)
	quantile := func(q float64) float64 { return float64(latencies[int(q*float64(len(latencies)-1)+.5)]) / 1e3 }
	return map[string]any{"disk": d.name, "writes": len(latencies), "p50_us": quantile(.5), "p99_us": quantile(.99), "max_us": quantile(1),
		"mean_us": float64(total) / float64(len(latencies)) / 1e3, "mb_per_s": float64(written) / 1e6 / (float64(busy) / 1e9)}, nil
}
