package main

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/virt-ft/virt-ft/internal/capture"
)

func TestPercentile(t *testing.T) {
	hundred := make([]int64, 100)
	for i := range hundred {
		hundred[i] = int64(i + 1)
	}
	for _, c := range []struct {
		sorted []int64
		q      float64
		want   int64
	}{
		{nil, .5, 0}, {[]int64{7}, .5, 7}, {[]int64{7}, .99, 7}, {[]int64{7}, 0, 7},
		{[]int64{1, 2}, .5, 1}, {[]int64{1, 2, 3}, .5, 2}, {[]int64{1, 2, 3}, .99, 3},
		{hundred, .5, 50}, {hundred, .99, 99}, {hundred, 1, 100},
	} {
		if got := percentile(c.sorted, c.q); got != c.want {
			t.Errorf("percentile(%v, %v) = %d, want %d", c.sorted, c.q, got, c.want)
		}
	}
}

// Nearest rank, by its definition.
func TestPercentileIsNearestRank(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SliceOfN(rapid.Int64Range(0, 50), 1, 300).Draw(t, "values")
		q := float64(rapid.IntRange(1, 100).Draw(t, "percent")) / 100
		slices.Sort(v)
		got := percentile(v, q)
		upTo, below := 0, 0
		for _, x := range v {
			if x <= got {
				upTo++
			}
			if x < got {
				below++
			}
		}
		if need := q * float64(len(v)); float64(upTo) < need || float64(below) >= need {
			t.Fatalf("%d: %d values up to it, %d below, of %d at %v", got, upTo, below, len(v), q)
		}
	})
}

func TestRatio(t *testing.T) {
	for _, c := range []struct{ a, floor, want float64 }{
		{6, 3, 2}, {1, 3, .333}, {0, 3, 0}, {3, 0, 0}, {3, -1, 0},
	} {
		if got := ratio(c.a, c.floor); got != c.want {
			t.Errorf("ratio(%v, %v) = %v, want %v", c.a, c.floor, got, c.want)
		}
	}
}

// looksEvery looks every 10 ns from 0 to 1000 at a counter that moves but in
// the given stalls.
func looksEvery(stalls ...stall) []look {
	var looks []look
	spins := uint64(0)
	for ns := int64(0); ns <= 1000; ns += 10 {
		spins++
		for _, s := range stalls {
			if ns > s.fromNs && ns < s.toNs {
				spins--
			}
		}
		looks = append(looks, look{ns, spins})
	}
	return looks
}

func TestNewSample(t *testing.T) {
	op := answer{BeginNs: 300, EndNs: 500}
	for _, c := range []struct {
		name   string
		stalls []stall
		want   stall
	}{
		{"inside", []stall{{350, 450}}, stall{350, 450}},
		{"the longest counts", []stall{{310, 330}, {350, 450}, {460, 490}}, stall{350, 450}},
		{"outside does not count", []stall{{100, 280}, {350, 380}, {600, 900}}, stall{350, 380}},
		{"begins before the operation", []stall{{200, 400}}, stall{200, 400}},
		{"ends after the reply", []stall{{450, 700}}, stall{450, 700}},
		{"none: the sampler's own step", nil, stall{290, 300}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := newSample(op, looksEvery(c.stalls...))
			if err != nil || got.stall != c.want || got.gapNs != 10 {
				t.Errorf("stall %v, gap %d, error %v; want %v", got.stall, got.gapNs, err, c.want)
			}
		})
	}
}

func TestNewSampleNeedsLooks(t *testing.T) {
	for _, op := range []answer{{BeginNs: -5, EndNs: 500}, {BeginNs: 300, EndNs: 1001}} {
		if _, err := newSample(op, looksEvery()); !errors.Is(err, errNoLooks) {
			t.Errorf("%d to %d: %v", op.BeginNs, op.EndNs, err)
		}
	}
	if _, err := newSample(answer{}, nil); !errors.Is(err, errNoLooks) {
		t.Error(err)
	}
}

// A sampler that did not run must not pass for a guest that did not.
func TestBlindSamplesDoNotCount(t *testing.T) {
	looks := slices.DeleteFunc(looksEvery(), func(l look) bool { return l.ns > 350 && l.ns < 450 })
	s, err := newSample(answer{BeginNs: 300, EndNs: 500}, looks)
	if err != nil || s.gapNs != 100 {
		t.Fatalf("gap %d, %v", s.gapNs, err)
	}
	l := &level{}
	l.take(checkpoint, s, 99, 2)
	l.take(checkpoint, s, 100, 2)
	l.take(checkpoint, s, 100, 2)
	l.take(checkpoint, s, 100, 2)
	if len(l.samples[checkpoint]) != 2 || l.Blind[checkpoint] != 1 {
		t.Errorf("%d samples, %v blind", len(l.samples[checkpoint]), l.Blind)
	}
	if l.complete(2) {
		t.Error("complete with one kind only")
	}
}

// constant is a level whose samples of a kind are all the same.
func constant(nothingNs, stopNs, saveNs, checkpointNs int64) *level {
	l := &level{DirtyPages: 400}
	for k, ns := range [kindCount]int64{nothingNs, stopNs, saveNs, checkpointNs} {
		s := sample{answer: answer{BeginNs: 1e9, EndNs: 1e9 + ns + 2e6}, stall: stall{1e9 + 1e6, 1e9 + 1e6 + ns}, gapNs: 6e4}
		s.Phases = capture.Phases{StopNs: 3e6, ScanNs: 1e6, CopyNs: 5e5, DeviceNs: 2e6, PausedNs: 35e5, Pages: 230}
		for range 3 {
			l.take(kind(k), s, time.Millisecond, 3)
		}
	}
	l.summarize()
	return l
}

func TestSummarize(t *testing.T) {
	l := constant(1e5, 4e6, 5e6, 10e6)
	if want := (ratios{2.5, 2.5, 2, 2}); l.ratios != want {
		t.Errorf("ratios %v, want %v", l.ratios, want)
	}
	if want := (summary{10, 10, 10}); l.Checkpoint != want {
		t.Errorf("checkpoint %v", l.Checkpoint)
	}
	want := phases{StopMs: 3, ScanMs: 1, CopyMs: .5, DeviceMs: 2, PausedMs: 3.5, AskMs: 1, BrakeMs: 2, ResumeMs: 6.5, ReplyMs: 1}
	if l.Phases != want || l.PausePages != 230 {
		t.Errorf("phases %+v, %d pages", l.Phases, l.PausePages)
	}
	// What the guest sees is the sum of its parts.
	if sum := want.BrakeMs + want.ScanMs + want.CopyMs + want.ResumeMs; sum != l.Checkpoint.P50Ms {
		t.Errorf("parts add up to %v of %v", sum, l.Checkpoint.P50Ms)
	}
	var b strings.Builder
	l.print(&b)
	for _, k := range kinds() {
		if !strings.Contains(b.String(), k.String()) {
			t.Errorf("no %s in\n%s", k, b.String())
		}
	}
}

func TestResultTellsTheWorstLevel(t *testing.T) {
	r := result{Pause: "ok"}
	for _, ns := range []int64{8e6, 12e6, 9e6} {
		r.add(constant(1e5, 4e6, 6e6, ns))
	}
	line, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"pause": "ok", "nothing_p50_ms": .1, "stop_cont_p50_ms": 4., "stop_cont_p99_ms": 4.,
		"save_drained_p50_ms": 6., "save_drained_p99_ms": 6., "checkpoint_p50_ms": 12., "checkpoint_p99_ms": 12.,
		"pause_ratio_stop_cont": 3., "pause_ratio_stop_cont_p99": 3., "pause_ratio_save_drained": 2., "pause_ratio_save_drained_p99": 2.} {
		if !reflect.DeepEqual(got[key], want) {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	if levels, _ := got["levels"].([]any); len(levels) != 3 {
		t.Errorf("levels: %v", got["levels"])
	}
}
