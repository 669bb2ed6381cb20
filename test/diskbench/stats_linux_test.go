package main

import (
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

// rounds are three, the machine twice as slow in the second, and four times in
// the third: the ratios are the same in all of them.
func rounds() *result {
	r := &result{}
	for _, slow := range []float64{1, 2, 4} {
		var now round
		for m, ratio := range map[mode]float64{unprotected: 1, nullMirror: 1.125, memory: 1.25, fsync: 1.5} {
			now[m] = sample{P50Us: 200 * slow * ratio, P99Us: 800 * slow * ratio, MeanUs: 250 * slow * ratio,
				Writes: 1000, MBps: 400 / slow / ratio, Stretch: 1, PauseMs: 4}
		}
		r.rounds = append(r.rounds, now)
	}
	r.summarize()
	return r
}

func TestRatiosAreOfTheSameRound(t *testing.T) {
	r := rounds()
	var got tool.Result
	r.report(&got)
	if want := map[string]float64{
		"disk_latency_ratio": 1.25, "disk_latency_ratio_p99": 1.25, "disk_throughput_ratio": .8,
		"disk_fsync_latency_ratio": 1.5, "disk_fsync_latency_ratio_p99": 1.5, "disk_fsync_throughput_ratio": .667,
		"disk_mirror_latency_ratio": 1.125, "disk_mirror_latency_ratio_p99": 1.125, "disk_mirror_throughput_ratio": .889,
	}; !maps.Equal(got.Metrics, want) || r.Rounds != 3 {
		t.Errorf("metrics %v, want %v", got.Metrics, want)
	}
	var names []string
	for _, s := range r.Modes {
		names = append(names, s.Mode)
	}
	if want := []string{"unprotected", "null mirror", "memory", "fsync"}; !reflect.DeepEqual(names, want) {
		t.Errorf("modes %q, want %q: one that was not measured must not be told", names, want)
	}
	if s := r.Modes[2]; s.P50Us != 500 || s.MBps != 160 {
		t.Errorf("medians of %+v", s)
	}
	var b strings.Builder
	r.print(&b)
	for _, want := range append(names, "1.25", "0.80") {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
}

func TestNothingMeasured(t *testing.T) {
	var b strings.Builder
	r := &result{}
	r.summarize()
	if r.print(&b); b.Len() > 0 || len(r.Modes) > 0 {
		t.Errorf("%d modes, %q", len(r.Modes), b.String())
	}
}

func TestFindMirrored(t *testing.T) {
	for line, want := range map[string]time.Duration{
		`time=2000-01-01T00:00:00.000Z level=INFO msg="disks are mirrored" domain=large after=1.5s disks="[{Writes:5}]"`: 1500 * time.Millisecond,
		`level=INFO msg="disks are mirrored" after=soon`:                                                                 0,
		`level=INFO msg="disks are mirrored"`:                                                                            0,
		`level=INFO msg="guest is protected" after=2s`:                                                                   0,
		``: 0,
	} {
		got, ok := findMirrored(line)
		if ok != (want > 0) || ok && got != want {
			t.Errorf("%q: %v, %v", line, got, ok)
		}
	}
}
