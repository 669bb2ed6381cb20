package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// sample is one benchmark in one mode. Times are the guest's own.
type sample struct {
	P50Us   float64 `json:"p50_us"` // of writes of 4 KiB
	P99Us   float64 `json:"p99_us"`
	MeanUs  float64 `json:"mean_us"`
	Writes  int     `json:"writes"`
	MBps    float64 `json:"mb_per_s"` // of writes of 1 MiB
	Stretch float64 `json:"stretch"`  // real time by the guest's
	PauseMs float64 `json:"pause_ms"` // median of the latest pauses; 0 if not protected
}

// round has a sample of each mode that was measured.
type round [modeCount]sample

// summary is a mode over all rounds: medians, and medians of the ratios to the
// floor of the same round.
type summary struct {
	Mode string `json:"mode"`
	sample
	LatencyRatioP50  float64 `json:"latency_ratio_p50"`
	LatencyRatioP99  float64 `json:"latency_ratio_p99"`
	LatencyRatioMean float64 `json:"latency_ratio_mean"`
	ThroughputRatio  float64 `json:"throughput_ratio"`
}

// result is the closing line. The figures at its top are those of a guest that
// is protected as by default: durability "memory".
type result struct {
	Disk    string `json:"disk"`
	Rounds  int    `json:"rounds"`
	Seconds int    `json:"seconds"`
	DiskMiB int    `json:"disk_mib"`

	LatencyRatioP50 float64 `json:"latency_ratio_p50"`
	LatencyRatioP99 float64 `json:"latency_ratio_p99"`
	ThroughputRatio float64 `json:"throughput_ratio"`

	FsyncLatencyRatioP50  float64 `json:"fsync_latency_ratio_p50"`
	FsyncThroughputRatio  float64 `json:"fsync_throughput_ratio"`
	MirrorLatencyRatioP50 float64 `json:"mirror_latency_ratio_p50"` // of the null mirror
	MirrorThroughputRatio float64 `json:"mirror_throughput_ratio"`

	Modes []summary `json:"modes"`
	Sync  *copies   `json:"sync,omitempty"`
	Error string    `json:"error,omitempty"`

	rounds []round
}

// median of the values; 0 if there are none.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	switch n := len(v); {
	case n == 0:
		return 0
	case n%2 == 1:
		return v[n/2]
	default:
		return (v[n/2-1] + v[n/2]) / 2
	}
}

func round3(v float64) float64 { return math.Round(v*1000) / 1000 }

// over collects one figure of a mode, and its ratio to the floor.
func (r *result) over(m mode, f func(*sample) float64) (mid, ratio float64) {
	var all, ratios []float64
	for i := range r.rounds {
		floor, v := f(&r.rounds[i][unprotected]), f(&r.rounds[i][m])
		if all = append(all, v); floor > 0 {
			ratios = append(ratios, v/floor)
		}
	}
	return round3(median(all)), round3(median(ratios))
}

func (r *result) summarize() {
	r.Rounds = len(r.rounds)
	for m := range modeCount {
		if len(r.rounds) == 0 || r.rounds[0][m].Writes == 0 {
			continue // not measured
		}
		s := summary{Mode: m.String()}
		s.P50Us, s.LatencyRatioP50 = r.over(m, func(s *sample) float64 { return s.P50Us })
		s.P99Us, s.LatencyRatioP99 = r.over(m, func(s *sample) float64 { return s.P99Us })
		s.MeanUs, s.LatencyRatioMean = r.over(m, func(s *sample) float64 { return s.MeanUs })
		s.MBps, s.ThroughputRatio = r.over(m, func(s *sample) float64 { return s.MBps })
		s.Stretch, _ = r.over(m, func(s *sample) float64 { return s.Stretch })
		s.PauseMs, _ = r.over(m, func(s *sample) float64 { return s.PauseMs })
		writes, _ := r.over(m, func(s *sample) float64 { return float64(s.Writes) })
		s.Writes = int(writes)
		r.Modes = append(r.Modes, s)
		switch m {
		case memory:
			r.LatencyRatioP50, r.LatencyRatioP99, r.ThroughputRatio = s.LatencyRatioP50, s.LatencyRatioP99, s.ThroughputRatio
		case fsync:
			r.FsyncLatencyRatioP50, r.FsyncThroughputRatio = s.LatencyRatioP50, s.ThroughputRatio
		case nullMirror:
			r.MirrorLatencyRatioP50, r.MirrorThroughputRatio = s.LatencyRatioP50, s.ThroughputRatio
		}
	}
}

// print writes the modes as a table. Errors of w show in what is missing.
func (r *result) print(w io.Writer) {
	if len(r.Modes) == 0 {
		return
	}
	fmt.Fprintf(w, "\nmedians of %d rounds, as the guest sees it; x: ratios to unprotected in the same round\n", r.Rounds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\t4 KiB p50, us\tx\tp99, us\tx\tmean, us\tx\t1 MiB, MB/s\tx\tstretch\tpause, ms\t")
	for _, s := range r.Modes {
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%.0f\t%.2f\t%.0f\t%.2f\t%.0f\t%.2f\t%.2f\t%.1f\t\n", s.Mode, s.P50Us, s.LatencyRatioP50,
			s.P99Us, s.LatencyRatioP99, s.MeanUs, s.LatencyRatioMean, s.MBps, s.ThroughputRatio, s.Stretch, s.PauseMs)
	}
	_ = t.Flush()
}

// findMirrored reads from a line of the daemon's log how long a copy took.
func findMirrored(line string) (time.Duration, bool) {
	if !strings.Contains(line, `msg="disks are mirrored"`) {
		return 0, false
	}
	for word := range strings.FieldsSeq(line) {
		if text, ok := strings.CutPrefix(word, "after="); ok {
			took, err := time.ParseDuration(text)
			return took, err == nil && took > 0
		}
	}
	return 0, false
}
