package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"
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
	return summary{ms(percentile(v, .5)), ms(percentile(v, .99)), ms(percentile(v, 1))}
}

// percentile returns the smallest of the sorted values that q of them do not
// exceed (nearest rank); 0 if there are none.
func percentile(sorted []int64, q float64) int64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// ms turns nanoseconds into milliseconds with three digits.
func ms(ns int64) float64 { return round3(float64(ns) / 1e6) }

func round3(v float64) float64 { return math.Round(v*1000) / 1000 }

// ratio is 0 when there is nothing to compare with.
func ratio(a, floor float64) float64 {
	if floor <= 0 {
		return 0
	}
	return round3(a / floor)
}

// ratios of a checkpoint to the two floors.
type ratios struct {
	StopContP50    float64 `json:"pause_ratio_stop_cont"`
	StopContP99    float64 `json:"pause_ratio_stop_cont_p99"`
	SaveDrainedP50 float64 `json:"pause_ratio_save_drained"`
	SaveDrainedP99 float64 `json:"pause_ratio_save_drained_p99"`
}

// phases are medians over checkpoints, in milliseconds. The first five are the
// session's own (capture.Phases); the others set them against the counter.
type phases struct {
	StopMs   float64 `json:"stop_ms"` // command to first byte
	ScanMs   float64 `json:"scan_ms"`
	CopyMs   float64 `json:"copy_ms"`
	DeviceMs float64 `json:"device_ms"` // letting go to reply
	PausedMs float64 `json:"paused_ms"` // first byte to reply

	AskMs    float64 `json:"ask_ms"`    // command to the guest's last step
	BrakeMs  float64 `json:"brake_ms"`  // last step to first byte
	ResumeMs float64 `json:"resume_ms"` // letting go to the guest's next step
	ReplyMs  float64 `json:"reply_ms"`  // next step to the reply
}

// level is what was measured at one rate of dirtying.
type level struct {
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
		ratio(c.P50Ms, l.StopCont.P50Ms), ratio(c.P99Ms, l.StopCont.P99Ms),
		ratio(c.P50Ms, l.SaveDrained.P50Ms), ratio(c.P99Ms, l.SaveDrained.P99Ms),
	}
	median := func(f func(*sample) int64) int64 { return percentile(l.of(checkpoint, f), .5) }
	l.PausePages = int(median(func(s *sample) int64 { return int64(s.Phases.Pages) }))
	l.LivePages = int(median(func(s *sample) int64 { return int64(s.LivePages) }))
	l.DeviceBytes = int(median(func(s *sample) int64 { return int64(s.Phases.DeviceBytes) }))
	l.Phases = phases{
		StopMs:   ms(median(func(s *sample) int64 { return s.Phases.StopNs })),
		ScanMs:   ms(median(func(s *sample) int64 { return s.Phases.ScanNs })),
		CopyMs:   ms(median(func(s *sample) int64 { return s.Phases.CopyNs })),
		DeviceMs: ms(median(func(s *sample) int64 { return s.Phases.DeviceNs })),
		PausedMs: ms(median(func(s *sample) int64 { return s.Phases.PausedNs })),
		AskMs:    ms(median(func(s *sample) int64 { return s.stall.fromNs - s.BeginNs })),
		BrakeMs:  ms(median(func(s *sample) int64 { return s.BeginNs + s.Phases.StopNs - s.stall.fromNs })),
		ResumeMs: ms(median(func(s *sample) int64 { return s.stall.toNs - s.releasedNs() })),
		ReplyMs:  ms(median(func(s *sample) int64 { return s.EndNs - s.stall.toNs })),
	}
}

// releasedNs is when the session let the guest go.
func (s *sample) releasedNs() int64 {
	return s.BeginNs + s.Phases.StopNs + s.Phases.ScanNs + s.Phases.CopyNs
}

func (l *level) summary(k kind) *summary {
	return [kindCount]*summary{&l.Nothing, &l.StopCont, &l.SaveDrained, &l.Checkpoint}[k]
}

// print writes the level as a table. Errors of w show in what is missing.
func (l *level) print(w io.Writer) {
	fmt.Fprintf(w, "\n%d pages dirtied per epoch: %d copied under pause, %d in a live pass before; %d bytes of device state\n",
		l.DirtyPages, l.PausePages, l.LivePages, l.DeviceBytes)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "longest stall, ms\tp50\tp99\tmax\tx stop+cont\tp99\tx save\tp99\t")
	for _, k := range kinds() {
		s := l.summary(k)
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", k, s.P50Ms, s.P99Ms, s.MaxMs,
			ratio(s.P50Ms, l.StopCont.P50Ms), ratio(s.P99Ms, l.StopCont.P99Ms),
			ratio(s.P50Ms, l.SaveDrained.P50Ms), ratio(s.P99Ms, l.SaveDrained.P99Ms))
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
				DirtyPages int    `json:"dirty_pages"`
				answer
				FromNs int64 `json:"stall_from_ns"`
				ToNs   int64 `json:"stall_to_ns"`
				GapNs  int64 `json:"sampler_gap_ns"`
			}{k.String(), l.DirtyPages, s.answer, s.stall.fromNs, s.stall.toNs, s.gapNs})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// result is the closing line. The figures at its top are those of the worst
// level: the one with the longest checkpoint at the median.
type result struct {
	Pause         string  `json:"pause"`
	Rounds        int     `json:"rounds"`
	EpochMs       float64 `json:"epoch_ms"`
	Nice          int     `json:"nice"`
	Sampler       string  `json:"sampler"`
	DirtyPages    int     `json:"dirty_pages"` // of the worst level
	PausePages    int     `json:"pause_pages"`
	NothingP50Ms  float64 `json:"nothing_p50_ms"`
	NothingP99Ms  float64 `json:"nothing_p99_ms"`
	StopContP50Ms float64 `json:"stop_cont_p50_ms"`
	StopContP99Ms float64 `json:"stop_cont_p99_ms"`
	SaveP50Ms     float64 `json:"save_drained_p50_ms"`
	SaveP99Ms     float64 `json:"save_drained_p99_ms"`
	CheckpointP50 float64 `json:"checkpoint_p50_ms"`
	CheckpointP99 float64 `json:"checkpoint_p99_ms"`
	SamplerGapP99 float64 `json:"sampler_gap_p99_ms"`
	ratios
	Levels []*level `json:"levels"`
	Error  string   `json:"error,omitempty"`
}

// add takes a level into the result.
func (r *result) add(l *level) {
	r.Levels = append(r.Levels, l)
	if len(r.Levels) > 1 && l.Checkpoint.P50Ms <= r.CheckpointP50 {
		return
	}
	r.DirtyPages, r.PausePages, r.ratios = l.DirtyPages, l.PausePages, l.ratios
	r.NothingP50Ms, r.NothingP99Ms = l.Nothing.P50Ms, l.Nothing.P99Ms
	r.StopContP50Ms, r.StopContP99Ms = l.StopCont.P50Ms, l.StopCont.P99Ms
	r.SaveP50Ms, r.SaveP99Ms = l.SaveDrained.P50Ms, l.SaveDrained.P99Ms
	r.CheckpointP50, r.CheckpointP99 = l.Checkpoint.P50Ms, l.Checkpoint.P99Ms
	r.SamplerGapP99 = l.SamplerGap.P99Ms
}
