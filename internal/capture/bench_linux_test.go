package capture

import (
	"slices"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
)

// A checkpoint beside its floor, bare stop and cont on the same guest in turn.
func BenchmarkCheckpoint(b *testing.B) {
	quiet := qmptest.Payload{Delay: 1e6, BaseMiB: 16, Pages: 8192}
	b.Run("quiet", func(b *testing.B) { benchCheckpoint(b, quiet) })
	b.Run("busy", func(b *testing.B) { benchCheckpoint(b, busy()) })
}

func benchCheckpoint(b *testing.B, p qmptest.Payload) {
	g := qmptest.Start(b, qmptest.Options{Machine: "q35", Args: []string{"-accel", "tcg", "-m", "256"}, Payload: p})
	s := open(b, g, Options{})
	if _, err := s.Live(b.Context(), func(x *Batch) error { x.Free(); return nil }); err != nil {
		b.Fatal(err)
	}
	var floor, total, paused, scan, cp []int64
	pages, device := 0, 0
	for b.Loop() {
		time.Sleep(10 * time.Millisecond) // let the guest work; it is no part of the figures below
		start := time.Now()
		qmp(b, g, "stop")
		qmp(b, g, "cont")
		floor = append(floor, time.Since(start).Nanoseconds())
		time.Sleep(10 * time.Millisecond)
		c, err := s.Checkpoint(b.Context(), CheckpointOptions{})
		if err != nil {
			b.Fatal(err)
		}
		c.Batch.Free()
		total, paused = append(total, c.Phases.TotalNs), append(paused, c.Phases.PausedNs)
		scan, cp = append(scan, c.Phases.ScanNs), append(cp, c.Phases.CopyNs)
		pages, device = pages+c.Phases.Pages, c.Phases.DeviceBytes
	}
	p50 := func(v []int64) float64 { slices.Sort(v); return float64(v[len(v)/2]) }
	b.ReportMetric(p50(floor)/1e3, "stop+cont-µs")
	b.ReportMetric(p50(total)/1e3, "checkpoint-µs")
	b.ReportMetric(p50(paused)/1e3, "paused-µs")
	b.ReportMetric(p50(scan)/1e3, "scan-µs")
	b.ReportMetric(p50(cp)/1e3, "copy-µs")
	b.ReportMetric(p50(total)/p50(floor), "x-stop+cont")
	b.ReportMetric(float64(pages)/float64(len(total)), "pages")
	b.ReportMetric(float64(device), "device-bytes")
}
