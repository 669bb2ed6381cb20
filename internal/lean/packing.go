package lean

import (
	"errors"
	"fmt"
	"time"
)

// Mode says who decides whether pages are packed.
type Mode uint8

// The modes.
const (
	Auto Mode = iota // what was measured decides
	On
	Off
)

// ErrUnknownMode is matched by the error of ParseMode.
var ErrUnknownMode = errors.New("unknown mode of packing")

// ParseMode reads "auto", "on" or "off".
func ParseMode(s string) (Mode, error) {
	for m := Auto; m <= Off; m++ {
		if s == m.String() {
			return m, nil
		}
	}
	return Auto, fmt.Errorf("%w %.40q; it is auto, on or off", ErrUnknownMode, s)
}

func (m Mode) String() string {
	switch m {
	case Auto:
		return "auto"
	case On:
		return "on"
	case Off:
		return "off"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// Sample is what sending something took: a message, or a whole epoch.
type Sample struct {
	RawBytes  int           // of the pages' contents
	SentBytes int           // of what travelled for them; RawBytes if it was not packed, or packing it did not help
	SendTime  time.Duration // sends took: until the last byte was handed to the kernel or, better, was seen to have left
	PackTime  time.Duration // packing took, by the clock, also if it did not help
	Packed    bool          // packing was tried
}

const (
	// windowBytes is how much sending a cost is averaged over, roughly;
	// windowSamples if samples are small.
	windowBytes   = 8 << 20
	windowSamples = 16
	// knownBytes, or that many samples, make a cost known.
	knownBytes = 4 << 20
	// trialBytes are a whole trial. Only its second half is judged: the first
	// finds the kernel's buffers as the other way left them.
	trialBytes = 16 << 20
	// abortBytes, or abortSamples, are enough to give up a trial that is much
	// worse: abortFactor times what the current way takes.
	abortBytes   = 128 << 10
	abortSamples = 8
	abortFactor  = 2
	// packBegin is what part of the time packing must take at most to be begun,
	// and packEnd to go on: it takes CPU in any case.
	packBegin = 0.85
	packEnd   = 0.95
	// trialShare bounds the time that trials may lose, as a part of all;
	// hastyTrialShare when the current way suddenly costs another price.
	trialShare      = 0.02
	hastyTrialShare = 0.1
	// gapMin and gapMax bound the time spent sending between trials. It doubles
	// as long as they change nothing.
	gapMin = time.Second
	gapMax = 5 * time.Minute
	// costShift is another price, as a factor.
	costShift = 1.5
)

// way is one of the two ways to send: as it is, or packed.
type way struct {
	nsPerByte float64 // of raw bytes, packing and sending together
	bytes     int     // seen since it was last unknown, at most windowBytes
	samples   int     // at most windowSamples
}

func (w *way) known() bool { return w.bytes >= knownBytes || w.samples >= windowSamples }

func (w *way) add(raw int, ns float64) {
	w.bytes, w.samples = min(w.bytes+raw, windowBytes), min(w.samples+1, windowSamples)
	part := max(float64(raw)/float64(w.bytes), 1/float64(w.samples))
	w.nsPerByte += (ns/float64(raw) - w.nsPerByte) * min(part, 1)
}

// Packing decides whether pages are packed before they are sent. It tries: what
// counts is the time that packing and sending take together, for each byte of
// pages, and only a trial knows how the two overlap. So it needs no model of link,
// CPU or data.
//
//	   ┌──────────── worse: the next trial later ───────────┐
//	   ▼                                                    │
//	current way ── time for a trial, or its price jumped ─▶ trial of the other way
//	   ▲                                                    │
//	   └──────────── better: it is the current way now ─────┘
//
// A link that got fast while pages are packed is noticed by a trial without
// packing, one that got slow by the price. Trials are short, are given up when
// they are much worse, and lose at most a fiftieth of the time in the long run.
// Time is that spent sending, so nothing is tried while nothing is sent.
//
// Not safe for concurrent use.
type Packing struct {
	mode    Mode
	packed  bool   // the current way
	ways    [2]way // as it is, packed
	anchor  float64
	worked  float64 // ns in the current way since the last trial
	gap     float64 // ns of work from one trial to the next
	lost    float64 // ns that the last trial took longer
	trying  bool
	trial   trial
	ratio   float64 // packed size over size
	ratioAt int     // samples that it is made of, at most windowSamples
}

// trial is the other way, tried.
type trial struct {
	bytes, samples int
	ns             float64
	judgedBytes    int // of the second half
	judgedNs       float64
}

// NewPacking returns a Packing that begins without packing, unless mode is On.
func NewPacking(mode Mode) *Packing {
	return &Packing{mode: mode, gap: float64(gapMin)}
}

// SetMode changes the mode; what was measured is kept.
func (p *Packing) SetMode(mode Mode) { p.mode = mode }

// Pack tells whether to pack what is sent next. Ask before each message, and
// Observe it: a trial is then some MiB at most. If it is asked once for each epoch,
// the trial is that epoch.
func (p *Packing) Pack() bool {
	switch p.mode {
	case On:
		return true
	case Off:
		return false
	}
	return p.packed != p.trying
}

// Ratio is the size of packed pages over their size, recently; 0 if none were.
func (p *Packing) Ratio() float64 { return p.ratio }

// Observe learns from what was sent. It ignores samples without pages.
func (p *Packing) Observe(s Sample) {
	if s.RawBytes <= 0 || s.SentBytes < 0 || s.SendTime < 0 || s.PackTime < 0 {
		return
	}
	ns := float64(s.SendTime)
	if s.Packed {
		ns += float64(s.PackTime)
		p.ratioAt = min(p.ratioAt+1, windowSamples)
		p.ratio += (float64(s.SentBytes)/float64(s.RawBytes) - p.ratio) / float64(p.ratioAt)
	}
	switch {
	case p.mode != Auto:
		p.ways[wayOf(s.Packed)].add(s.RawBytes, ns)
	case s.Packed == p.packed:
		p.current(s.RawBytes, ns)
	case p.trying:
		p.tried(s.RawBytes, ns)
	}
}

func wayOf(packed bool) int {
	if packed {
		return 1
	}
	return 0
}

// current takes a sample of the current way.
func (p *Packing) current(raw int, ns float64) {
	w := &p.ways[wayOf(p.packed)]
	w.add(raw, ns)
	p.worked += ns
	if p.trying || !w.known() {
		return
	}
	first := p.anchor == 0
	if first {
		p.anchor = w.nsPerByte
	}
	jumped := w.nsPerByte > p.anchor*costShift || p.packed && w.nsPerByte < p.anchor/costShift
	if jumped && p.worked >= p.lost/hastyTrialShare {
		p.gap = float64(gapMin)
	} else if jumped || !first && p.worked < max(p.gap, min(p.lost/trialShare, float64(gapMax))) {
		return
	}
	p.trying, p.trial = true, trial{}
}

// tried takes a sample of the other way, and decides when it has seen enough.
func (p *Packing) tried(raw int, ns float64) {
	t := &p.trial
	if t.bytes >= trialBytes/2 {
		t.judgedBytes += raw
		t.judgedNs += ns
	}
	t.bytes += raw
	t.samples++
	t.ns += ns
	now := p.ways[wayOf(p.packed)].nsPerByte
	if (t.bytes >= abortBytes || t.samples >= abortSamples) && t.ns > abortFactor*now*float64(t.bytes) {
		p.settle(false)
		return
	}
	if t.judgedBytes == 0 || t.bytes < trialBytes {
		return
	}
	other := t.judgedNs / float64(t.judgedBytes)
	if p.packed {
		p.settle(other*packEnd < now)
	} else {
		p.settle(other < now*packBegin)
	}
}

// settle ends a trial: the other way is the current one now, or it is not.
func (p *Packing) settle(better bool) {
	t := &p.trial
	p.lost = max(0, t.ns-p.ways[wayOf(p.packed)].nsPerByte*float64(t.bytes))
	p.trying, p.worked = false, 0
	if !better {
		p.anchor = p.ways[wayOf(p.packed)].nsPerByte
		p.gap = min(2*p.gap, float64(gapMax))
		return
	}
	p.packed = !p.packed
	p.ways[wayOf(p.packed)] = way{}
	p.ways[wayOf(p.packed)].add(t.judgedBytes, t.judgedNs)
	p.anchor = p.ways[wayOf(p.packed)].nsPerByte
	p.gap = float64(gapMin)
}
