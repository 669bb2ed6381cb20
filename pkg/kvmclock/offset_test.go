package kvmclock

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// twoHosts are two clocks and a network between them, in ns.
type twoHosts struct {
	trueNs      float64
	here, there hostClock
	o           Offset
	newestNs    int64 // how wide the bounds of the newest exchange alone are
}

type hostClock struct{ ns, ppm float64 }

func (h *twoHosts) pass(ns float64) {
	h.trueNs += ns
	h.here.ns += ns * (1 + h.here.ppm/1e6)
	h.there.ns += ns * (1 + h.there.ppm/1e6)
}

func (h *twoHosts) exchange(out, work, back float64) {
	t1 := int64(h.here.ns)
	h.pass(out)
	t2 := int64(h.there.ns)
	h.pass(work)
	t3 := int64(h.there.ns)
	h.pass(back)
	t4 := int64(h.here.ns)
	h.o.Observe(t1, t2, t3, t4)
	h.newestNs = (t2 - t1) - (t3 - t4)
}

// check compares with the truth, which may be off by slack.
func (h *twoHosts) check(t *rapid.T, slack float64) {
	now := int64(h.here.ns)
	offset := h.there.ns - h.here.ns
	lo, hi, ok := h.o.Bounds(now)
	if !ok {
		return
	}
	if lo > hi || offset < float64(lo)-2-slack || offset > float64(hi)+2+slack {
		t.Fatalf("the offset is %.0f, the bounds %d to %d, allowed %.0f more", offset, lo, hi, slack)
	}
	best, errNs, ok := h.o.Best(now)
	if !ok || math.Abs(offset-float64(best)) > float64(errNs)+3+slack || best != 0 && lo <= 0 && hi >= 0 {
		t.Fatalf("the offset is %.0f, said to be %d +- %d, %v", offset, best, errNs, ok)
	}
}

// TestOffset: the truth is within the bounds, however delays are shared and as
// long as nobody sets a clock; and again after the first exchange that follows a
// step of more than an exchange takes.
func TestOffset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const ppmMax = offsetDriftPPM / 2.01 // a ppm of a ppm of the other clock is between them, too
		ppm := rapid.Float64Range(-ppmMax, ppmMax)
		h := twoHosts{here: hostClock{1.7e18 / 1e3, ppm.Draw(t, "here")}, there: hostClock{1.7e18 / 1e3, ppm.Draw(t, "there")}}
		h.there.ns += rapid.Float64Range(-1e12, 1e12).Draw(t, "offset")
		delay := rapid.Float64Range(0, 5e6)
		stepped := false
		exchange := func(t *rapid.T) {
			h.exchange(delay.Draw(t, "out"), delay.Draw(t, "work"), delay.Draw(t, "back"))
			stepped = false
		}
		step := func(t *rapid.T) {
			if stepped {
				return // two may come to nothing, or nearly so
			}
			by := rapid.Float64Range(1e11, 1e12).Draw(t, "by") * float64(rapid.SampledFrom([]int{1, -1}).Draw(t, "sign"))
			if rapid.Bool().Draw(t, "whose") {
				h.here.ns += by
			} else {
				h.there.ns += by
			}
			stepped = true
		}
		t.Repeat(map[string]func(*rapid.T){
			"exchange": exchange,
			"again":    exchange,
			"wait":     func(t *rapid.T) { h.pass(rapid.Float64Range(0, 1e11).Draw(t, "wait")) },
			"step":     step,
			"":         func(t *rapid.T) { h.check(t, map[bool]float64{true: math.Inf(1)}[stepped]) },
		})
	})
}

// TestOffsetSmallStep: a step that nothing contradicts is not seen, but the bounds
// are then wrong by less than the newest exchange took.
func TestOffsetSmallStep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := twoHosts{here: hostClock{ns: 1e15}, there: hostClock{ns: 1e15 + 5e9}}
		delay := rapid.Float64Range(0, 5e6)
		for range rapid.IntRange(1, 20).Draw(t, "exchanges") {
			h.exchange(delay.Draw(t, "out"), 0, delay.Draw(t, "back"))
			h.check(t, float64(h.newestNs))
			h.pass(1e8)
			h.there.ns += rapid.Float64Range(-3e6, 3e6).Draw(t, "step")
			if _, _, ok := h.o.Bounds(int64(h.here.ns)); !ok {
				t.Fatal("nothing is known after an exchange")
			}
		}
	})
}

func TestOffsetTable(t *testing.T) {
	type exchange [4]int64
	const s = 1e9
	for name, c := range map[string]struct {
		exchanges []exchange
		now       int64
		best, err int64
		known     bool
	}{
		"nothing":            {now: s},
		"the same time":      {[]exchange{{s, s + 100, s + 100, s + 200}}, s + 200, 0, 101, true},
		"contains zero":      {[]exchange{{s, s + 5000, s + 5000, s + 6000}}, s + 6000, 0, 5001, true},
		"ahead by a second":  {[]exchange{{s, 2*s + 100, 2*s + 100, s + 200}}, s + 200, s, 102, true},
		"behind by a second": {[]exchange{{2 * s, s + 100, s + 100, 2*s + 200}}, 2*s + 200, -s, 101, true},
		"the tightest counts": {
			[]exchange{{s, 2*s + 100, 2*s + 100, s + 200}, {s + 1000, 2*s + 2000, 2*s + 900_000, s + 1_000_000}}, s + 1_000_000, s, 202, true,
		},
		"grows old":             {[]exchange{{s, 2*s + 100, 2*s + 100, s + 200}}, 11*s + 200, s, 1_000_102, true},
		"a contradiction":       {[]exchange{{s, 2*s + 100, 2*s + 100, s + 200}, {s + 1000, 3*s + 1100, 3*s + 1100, s + 1200}}, s + 1200, 2 * s, 102, true},
		"a local step back":     {[]exchange{{9 * s, 2 * s, 2 * s, 9*s + 9}, {s, 2*s + 100, 2*s + 100, s + 200}}, s + 200, s, 102, true},
		"time goes back here":   {[]exchange{{s, s + 100, s + 100, s + 200}, {s, s + 100, s + 100, s - 1}}, s, 0, 0, false},
		"time goes back there":  {[]exchange{{s, s + 100, s + 99, s + 200}}, s, 0, 0, false},
		"answered before asked": {[]exchange{{s, s + 100, s + 500, s + 200}}, s, 0, 0, false},
		"no times":              {[]exchange{{-1, 0, 0, 0}, {0, 0, 0, math.MaxInt64}, {math.MinInt64, 0, 0, 0}}, s, 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			var o Offset
			for _, e := range c.exchanges {
				o.Observe(e[0], e[1], e[2], e[3])
			}
			best, errNs, ok := o.Best(c.now)
			if ok != c.known || ok && (max(best-c.best, c.best-best) > 200 || max(errNs-c.err, c.err-errNs) > 4) {
				t.Errorf("%d +- %d, %v", best, errNs, ok)
			}
		})
	}
}
