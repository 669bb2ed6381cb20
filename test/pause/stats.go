package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

// kind is what is done to the guest.
type kind int

// The kinds, in the order in which a round goes through them.
const (
	nothing kind = iota
	stopCont
	saveDrained
	checkpoint
	kindCount
)

func kinds() []kind { return []kind{nothing, stopCont, saveDrained, checkpoint} }

func (k kind) String() string {
	return [kindCount]string{"nothing", "stop+cont", "save, drained", "checkpoint"}[k]
}

// look is one look at the guest's counter.
type look struct {
	ns    int64 // CLOCK_MONOTONIC just before
	spins uint64
}

// stall is a time in which the counter stood still, or the time between two
// looks that both saw it move. It is exact to one nap on either side.
type stall struct{ fromNs, toNs int64 }

func (s stall) ns() int64 { return s.toNs - s.fromNs }

// sample is one operation.
type sample struct {
	answer
	stall stall // the longest that touches the operation
	gapNs int64 // the sampler's own: longest time between two looks then
}

var errNoLooks = errors.New("the counter was not looked at during the operation")

// newSample finds the longest stall that touches the operation.
func newSample(a answer, looks []look) (sample, error) {
	s := sample{answer: a}
	if len(looks) == 0 || looks[0].ns > a.BeginNs || looks[len(looks)-1].ns < a.EndNs {
		return s, errNoLooks
	}
	moved := looks[0].ns
	for i := 1; i < len(looks); i++ {
		now, last := looks[i], looks[i-1]
		if now.ns >= a.BeginNs && last.ns <= a.EndNs {
			s.gapNs = max(s.gapNs, now.ns-last.ns)
		}
		if now.spins == last.spins {
			continue
		}
		if x := (stall{moved, now.ns}); x.toNs >= a.BeginNs && x.fromNs <= a.EndNs && x.ns() > s.stall.ns() {
			s.stall = x
		}
		moved = now.ns
	}
	return s, nil
}

// summary is a distribution in milliseconds.
type summary struct {
	P50Ms float64 `json:"p50_ms"`
	P99Ms float64 `json:"p99_ms"`
	MaxMs float64 `json:"max_ms"`
}

// summarize sorts v, which holds nanoseconds.
func summarize(v []int64) summary {
	slices.Sort(v)
	return summary{tool.Ms(tool.Percentile(v, .5)), tool.Ms(tool.Percentile(v, .99)), tool.Ms(tool.Percentile(v, 1))}
}

// ratios of a checkpoint to the two floors.
type ratios struct {
	StopContP50    float64 `json:"pause_ratio_stop_cont"`
	StopContP99    float64 `json:"pause_ratio_stop_cont_p99"`
	SaveDrainedP50 float64 `json:"pause_ratio_save_drained"`
	SaveDrainedP99 float64 `json:"pause_ratio_save_drained_p99"`
}

// phases are medians over checkpoints, in milliseconds. The first seven are the
// session's own (capture.Phases); the others set them against the counter.
// Brake, AtPause, Scan, Copy, Hold and Resume make up what the guest sees.
type phases struct {
	StopMs    float64 `json:"stop_ms"` // command to first byte
	AtPauseMs float64 `json:"at_pause_ms"`
	ScanMs    float64 `json:"scan_ms"`
	CopyMs    float64 `json:"copy_ms"`
	HoldMs    float64 `json:"hold_ms"`
	DeviceMs  float64 `json:"device_ms"` // letting go to reply
	PausedMs  float64 `json:"paused_ms"` // first byte to reply

	AskMs    float64 `json:"ask_ms"`    // command to the guest's last step
	BrakeMs  float64 `json:"brake_ms"`  // last step to first byte
	ResumeMs float64 `json:"resume_ms"` // letting go to the guest's next step
	ReplyMs  float64 `json:"reply_ms"`  // next step to the reply
}

// level is what was measured at one rate of dirtying.
type level struct {
	RAMMiB      int            `json:"ram_mib"`
	RSSMiB      int            `json:"rss_mib"`     // of its QEMU when the guest had written to all of it
	DirtyPages  int            `json:"dirty_pages"` // asked of the guest, per epoch
	PausePages  int            `json:"pause_pages"` // copied under pause, median
	LivePages   int            `json:"live_pages"`  // copied just before, median
	DeviceBytes int            `json:"device_bytes"`
	Nothing     summary        `json:"nothing"`
	StopCont    summary        `json:"stop_cont"`
	SaveDrained summary        `json:"save_drained"`
	Checkpoint  summary        `json:"checkpoint"`
	SamplerGap  summary        `json:"sampler_gap"`
	Blind       [kindCount]int `json:"blind"` // samples not counted, by kind
	Phases      phases         `json:"phases"`
	ratios

	samples [kindCount][]sample
}

// take keeps a sample, up to rounds of a kind, unless the sampler was kept from
// running for longer than blind: then nobody can tell the guest's stall from
// the machine's. Such samples are counted.
func (l *level) take(k kind, s sample, blind time.Duration, rounds int) {
	switch {
	case len(l.samples[k]) >= rounds:
	case s.gapNs > blind.Nanoseconds():
		l.Blind[k]++
	default:
		l.samples[k] = append(l.samples[k], s)
	}
}

// complete reports whether there are rounds samples of every kind.
func (l *level) complete(rounds int) bool {
	for _, k := range kinds() {
		if len(l.samples[k]) < rounds {
			return false
		}
	}
	return true
}

// of collects one figure of all samples of a kind, sorted.
func (l *level) of(k kind, f func(*sample) int64) []int64 {
	v := make([]int64, 0, len(l.samples[k]))
	for i := range l.samples[k] {
		v = append(v, f(&l.samples[k][i]))
	}
	slices.Sort(v)
	return v
}

func (l *level) summarize() {
	var gaps []int64
	for _, k := range kinds() {
		*l.summary(k) = summarize(l.of(k, func(s *sample) int64 { return s.stall.ns() }))
		gaps = append(gaps, l.of(k, func(s *sample) int64 { return s.gapNs })...)
	}
	l.SamplerGap = summarize(gaps)
	c := l.Checkpoint
	l.ratios = ratios{
		tool.Ratio(c.P50Ms, l.StopCont.P50Ms), tool.Ratio(c.P99Ms, l.StopCont.P99Ms),
		tool.Ratio(c.P50Ms, l.SaveDrained.P50Ms), tool.Ratio(c.P99Ms, l.SaveDrained.P99Ms),
	}
	median := func(f func(*sample) int64) int64 { return tool.Percentile(l.of(checkpoint, f), .5) }
	l.PausePages = int(median(func(s *sample) int64 { return int64(s.Phases.Pages) }))
	l.LivePages = int(median(func(s *sample) int64 { return int64(s.LivePages) }))
	l.DeviceBytes = int(median(func(s *sample) int64 { return int64(s.Phases.DeviceBytes) }))
	mid := func(f func(*sample) int64) float64 { return tool.Ms(median(f)) }
	l.Phases = phases{
		StopMs:    mid(func(s *sample) int64 { return s.Phases.StopNs }),
		AtPauseMs: mid(func(s *sample) int64 { return s.Phases.AtPauseNs }),
		ScanMs:    mid(func(s *sample) int64 { return s.Phases.ScanNs }),
		CopyMs:    mid(func(s *sample) int64 { return s.Phases.CopyNs }),
		HoldMs:    mid(func(s *sample) int64 { return s.Phases.HoldNs }),
		DeviceMs:  mid(func(s *sample) int64 { return s.Phases.DeviceNs }),
		PausedMs:  mid(func(s *sample) int64 { return s.Phases.PausedNs }),
		AskMs:     mid(func(s *sample) int64 { return s.stall.fromNs - s.BeginNs }),
		BrakeMs:   mid(func(s *sample) int64 { return s.BeginNs + s.Phases.StopNs - s.stall.fromNs }),
		ResumeMs:  mid(func(s *sample) int64 { return s.stall.toNs - s.releasedNs() }),
		ReplyMs:   mid(func(s *sample) int64 { return s.EndNs - s.stall.toNs }),
	}
}

// releasedNs is when the session let the guest go.
func (s *sample) releasedNs() int64 {
	p := &s.Phases
	return s.BeginNs + p.StopNs + p.AtPauseNs + p.ScanNs + p.CopyNs + p.HoldNs
}

func (l *level) summary(k kind) *summary {
	return [kindCount]*summary{&l.Nothing, &l.StopCont, &l.SaveDrained, &l.Checkpoint}[k]
}

// print writes the level as a table. Errors of w show in what is missing.
func (l *level) print(w io.Writer) {
	fmt.Fprintf(w, "\n%d MiB of memory, %d pages dirtied per epoch: %d copied under pause, %d in live passes before; %d bytes of device state\n",
		l.RAMMiB, l.DirtyPages, l.PausePages, l.LivePages, l.DeviceBytes)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "longest stall, ms\tp50\tp99\tmax\tx stop+cont\tp99\tx save\tp99\t")
	for _, k := range kinds() {
		s := l.summary(k)
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", k, s.P50Ms, s.P99Ms, s.MaxMs,
			tool.Ratio(s.P50Ms, l.StopCont.P50Ms), tool.Ratio(s.P99Ms, l.StopCont.P99Ms),
			tool.Ratio(s.P50Ms, l.SaveDrained.P50Ms), tool.Ratio(s.P99Ms, l.SaveDrained.P99Ms))
	}
	_ = t.Flush()
	p := l.Phases
	fmt.Fprintf(w, "checkpoint, medians in ms, by the session:  stop %.2f  scan %.2f  copy %.2f  device %.2f  (first byte to reply %.2f)\n",
		p.StopMs, p.ScanMs, p.CopyMs, p.DeviceMs, p.PausedMs)
	fmt.Fprintf(w, "  as the guest sees it:  [ask %.2f]  stopped to first byte %.2f  scan %.2f  copy %.2f  let go to running %.2f  [reply %.2f]\n",
		p.AskMs, p.BrakeMs, p.ScanMs, p.CopyMs, p.ResumeMs, p.ReplyMs)
	fmt.Fprintf(w, "  longest time between two looks of the sampler in an operation: p50 %.2f  p99 %.2f  max %.2f; not counted for a longer one: %v\n",
		l.SamplerGap.P50Ms, l.SamplerGap.P99Ms, l.SamplerGap.MaxMs, l.Blind)
}

// dump writes every sample as a line of JSON.
func (l *level) dump(w io.Writer) error {
	out := json.NewEncoder(w)
	for _, k := range kinds() {
		for i := range l.samples[k] {
			s := &l.samples[k][i]
			err := out.Encode(struct {
				Kind       string `json:"kind"`
				RAMMiB     int    `json:"ram_mib"`
				DirtyPages int    `json:"dirty_pages"`
				answer
				FromNs int64 `json:"stall_from_ns"`
				ToNs   int64 `json:"stall_to_ns"`
				GapNs  int64 `json:"sampler_gap_ns"`
			}{k.String(), l.RAMMiB, l.DirtyPages, s.answer, s.stall.fromNs, s.stall.toNs, s.gapNs})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
