package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
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

// result is what was measured so far.
type result struct {
	Rounds  int       `json:"rounds"`
	Seconds int       `json:"seconds"`
	DiskMiB int       `json:"disk_mib"`
	Modes   []summary `json:"modes"`
	Sync    *copies   `json:"sync,omitempty"`

	rounds []round
}

// report puts the figures into the closing line: those without a mode in their
// name are of a guest that is protected as by default, with durability "memory".
func (r *result) report(to *tool.Result) {
	to.Details = r
	for _, s := range r.Modes {
		prefix := map[string]string{memory.String(): "disk_", fsync.String(): "disk_fsync_", nullMirror.String(): "disk_mirror_"}[s.Mode]
		if prefix == "" {
			continue
		}
		to.Metric(prefix+"latency_ratio", s.LatencyRatioP50)
		to.Metric(prefix+"latency_ratio_p99", s.LatencyRatioP99)
		to.Metric(prefix+"throughput_ratio", s.ThroughputRatio)
	}
}

// over collects one figure of a mode, and its ratio to the floor.
func (r *result) over(m mode, f func(*sample) float64) (mid, ratio float64) {
	var all, ratios []float64
	for i := range r.rounds {
		floor, v := f(&r.rounds[i][unprotected]), f(&r.rounds[i][m])
		if all = append(all, v); floor > 0 {
			ratios = append(ratios, v/floor)
		}
	}
	return tool.Round3(tool.Median(all)), tool.Round3(tool.Median(ratios))
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
