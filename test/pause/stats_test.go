package main

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/test/tool"
)

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
		s.Phases = capture.Phases{StopNs: 3e6, AtPauseNs: 25e4, ScanNs: 1e6, CopyNs: 5e5, HoldNs: 75e4, DeviceNs: 2e6, PausedNs: 45e5, Pages: 230}
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
	want := phases{StopMs: 3, AtPauseMs: .25, ScanMs: 1, CopyMs: .5, HoldMs: .75, DeviceMs: 2, PausedMs: 4.5, AskMs: 1, BrakeMs: 2, ResumeMs: 5.5, ReplyMs: 1}
	if l.Phases != want || l.PausePages != 230 {
		t.Errorf("phases %+v, %d pages", l.Phases, l.PausePages)
	}
	// What the guest sees is the sum of its parts.
	if sum := want.BrakeMs + want.AtPauseMs + want.ScanMs + want.CopyMs + want.HoldMs + want.ResumeMs; sum != l.Checkpoint.P50Ms {
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

func TestReport(t *testing.T) {
	size := func(mib int, l *level) *level { l.RAMMiB = mib; return l }
	r := result{
		Levels: []*level{constant(1e5, 4e6, 5e6, 6e6), constant(1e5, 4e6, 5e6, 8e6)},
		RAM:    []*level{size(8192, constant(1e5, 6e6, 6e6, 12e6)), size(256, constant(1e5, 4e6, 5e6, 8e6))},
	}
	r.Levels[0].DirtyPages = 10
	r.Levels[0].Nothing.P50Ms = 2
	r.skip(4096, "too small a machine")
	var got tool.Result
	r.report(&got)
	want := map[string]float64{
		"pause_ratio_10": 1.5, "pause_ratio_10_p99": 1.5, "pause_ratio_drained_10": 1.2, "pause_ratio_drained_10_p99": 1.2,
		"pause_ratio_400": 2, "pause_ratio_400_p99": 2, "pause_ratio_drained_400": 1.6, "pause_ratio_drained_400_p99": 1.6,
		"pause_ratio_ram_8g": 1.5, "pause_ratio_ram_8g_p99": 1.5, "pause_ratio_ram_8g_by_floor": 1,
		"pause_noise_ratio": .5, "pause_pages_10": 230, "pause_pages_400": 230,
	}
	if !maps.Equal(got.Metrics, want) {
		t.Errorf("metrics %v, want %v", got.Metrics, want)
	}
	if want := map[string]string{"pause_ratio_ram_4g": "too small a machine"}; !maps.Equal(got.Skipped, want) {
		t.Errorf("skipped %v, want %v", got.Skipped, want)
	}
}

func TestReportWithoutTheSmallest(t *testing.T) {
	l := constant(1e5, 4e6, 5e6, 8e6)
	l.RAMMiB = 8192
	var got tool.Result
	(&result{RAM: []*level{l}}).report(&got)
	if _, skipped := got.Skipped["pause_ratio_ram_8g"]; !skipped || len(got.Metrics) != 1 { // but for the noise
		t.Errorf("%+v", got)
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		text string
		want []int
		ok   bool
	}{{"", nil, true}, {"1, 20", []int{1, 20}, true}, {"1,,2", nil, false}, {"21", nil, false}, {"x", nil, false},
		{"1" + strings.Repeat(",1", levelsMax), nil, false}} {
		got, err := numbers("-x", c.text, 1, 20)
		if !slices.Equal(got, c.want) || (err == nil) != c.ok {
			t.Errorf("%q: %v, %v", c.text, got, err)
		}
	}
}
