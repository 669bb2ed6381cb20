package watch

import (
	"math"

	"github.com/virt-ft/virt-ft/internal/control"
)

// phases is how many there are of control.Phases.
const phases = 7

// PhaseNames are the names of the phases of a pause, in their order.
func PhaseNames() [phases]string {
	return [phases]string{"stop", "gate", "scan", "copy", "hold", "clock", "device"}
}

func phasesOf(p *control.Phases) [phases]float64 {
	return [phases]float64{p.StopMs, p.GateMs, p.ScanMs, p.CopyMs, p.HoldMs, p.ClockMs, p.DeviceMs}
}

// Histogram counts values by upper bounds. Buckets are not cumulative here; the
// one behind the last bound is for all larger values.
type Histogram struct {
	Buckets [bounds + 1]uint64
	Count   uint64
	Sum     float64
}

// bounds is how many upper bounds each kind of histogram has.
const bounds = 15

// Bounds are upper bounds of buckets.
type Bounds [bounds]float64

// DurationBoundsS are those of pauses, phases, intervals and latencies, in seconds.
func DurationBoundsS() Bounds {
	return Bounds{.00025, .0005, .001, .002, .003, .005, .0075, .01, .015, .025, .05, .1, .25, .5, 1}
}

// PageBounds are those of dirty pages: powers of two.
func PageBounds() Bounds { return powers(16) }

// ByteBounds are those of the bytes of an epoch: powers of two from 4 KiB.
func ByteBounds() Bounds { return powers(4096) }

func powers(least float64) (b Bounds) {
	for i := range b {
		b[i] = least * float64(uint64(1)<<i)
	}
	return b
}

func (h *Histogram) add(b *Bounds, v float64) {
	i := 0
	for i < bounds && v > b[i] {
		i++
	}
	h.Buckets[i]++
	h.Count++
	h.Sum += v
}

// Counts are the histograms of a domain since its Recorder began: they never
// become less while it is remembered.
type Counts struct {
	Paused, Interval, Ack, Ship Histogram         // seconds
	Phases                      [phases]Histogram // seconds
	DirtyPages, SentBytes       Histogram
}

func (c *Counts) observe(e *control.Epoch) {
	s, pages, bytes := DurationBoundsS(), PageBounds(), ByteBounds()
	c.Paused.add(&s, e.PausedMs/1000)
	if e.IntervalMs > 0 { // the first of a session has none
		c.Interval.add(&s, e.IntervalMs/1000)
	}
	c.Ack.add(&s, e.AckMs/1000)
	c.Ship.add(&s, e.ShipMs/1000)
	for i, ms := range phasesOf(&e.Phases) {
		c.Phases[i].add(&s, ms/1000)
	}
	c.DirtyPages.add(&pages, float64(e.LivePages+e.PausePages))
	c.SentBytes.add(&bytes, float64(e.SentBytes))
}

// Values of a spread lie in buckets whose bounds grow by perOctave steps for each
// doubling, so that a bucket's middle is within three percent of all of it.
const (
	perOctave  = 12
	octaves    = 44    // from a microsecond, or a thousandth of a page, to 16 TB
	leastValue = 0.001 // what is below counts as 0
	steps      = perOctave * octaves
)

// spread is the distribution of the values of one slot. The zero value is empty.
type spread struct {
	count    uint32
	min, max float64
	steps    [steps]uint16 // they stop at their most: 13,000 epochs a second
	zeros    uint32
}

func (s *spread) add(v float64) {
	if math.IsNaN(v) || v < 0 {
		v = 0
	}
	if s.count == 0 || v < s.min {
		s.min = v
	}
	s.max = max(s.max, v)
	s.count++
	if v < leastValue {
		s.zeros++
		return
	}
	i := min(int(math.Log2(v/leastValue)*perOctave), steps-1)
	if s.steps[i] < math.MaxUint16 {
		s.steps[i]++
	}
}

// summary is the zero Spread if there was no value.
func (s *spread) summary() control.Spread {
	if s.count == 0 {
		return control.Spread{}
	}
	return control.Spread{Min: float32(s.min), P50: s.quantile(50), P99: s.quantile(99), Max: float32(s.max)}
}

func (s *spread) quantile(percent uint32) float32 {
	total := s.zeros
	for _, n := range s.steps {
		total += uint32(n)
	}
	rank := uint32(uint64(total) * uint64(percent) / 100) // from 0
	if rank < s.zeros {
		return float32(s.min)
	}
	seen := s.zeros
	for i, n := range s.steps {
		if seen += uint32(n); n > 0 && rank < seen {
			middle := leastValue * math.Exp2((float64(i)+.5)/perOctave)
			return float32(min(max(middle, s.min), s.max))
		}
	}
	return float32(s.max)
}
