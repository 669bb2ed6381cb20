package main

import (
	"maps"
	"slices"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

func us(ns int64) float64 { return tool.Round3(float64(ns) / 1e3) }

func ms(d time.Duration) float64 { return tool.Ms(d.Nanoseconds()) }

// percentileUs is of the absolute values, in µs.
func percentileUs(ns []int64, q float64) float64 {
	v := slices.Clone(ns)
	for i := range v {
		v[i] = max(v[i], -v[i])
	}
	slices.Sort(v)
	return us(tool.Percentile(v, q))
}

// differenceUs is how much longer what is in b takes than what is in a.
func differenceUs(b, a []int64, q float64) float64 {
	return tool.Round3(percentileUs(b, q) - percentileUs(a, q))
}

func newCost(cpus int, without, with pauses) cost {
	return cost{
		CPUs: cpus, Samples: min(len(without.paused), len(with.paused)),
		P50Us: differenceUs(with.paused, without.paused, .5), P99Us: differenceUs(with.paused, without.paused, .99),
		GuestP50Us: differenceUs(with.guest, without.guest, .5), GuestP99Us: differenceUs(with.guest, without.guest, .99),
		WaitP50Us: percentileUs(with.wait, .5), AttachedP50Us: percentileUs(with.attached, .5),
		BareP50Us: percentileUs(without.paused, .5),
	}
}

// stretchResult is one stretch as it is shown.
type stretchResult struct {
	Mode    string  `json:"mode"`
	CPUs    int     `json:"cpus"`
	Hz      int     `json:"hz,omitempty"`
	Epochs  int     `json:"epochs"`
	Seconds float64 `json:"seconds"`
	// What the guest's clock gained in all against CLOCK_MONOTONIC_RAW.
	GainedUs float64 `json:"gained_us"`
	PPM      float64 `json:"ppm"`
	// At each epoch, against the anchor at the beginning of the stretch.
	ErrP99Us float64 `json:"err_p99_us"`
	ErrMaxUs float64 `json:"err_max_us"`
	// The straight line through the errors: how differently the two clocks run,
	// and what is left without it.
	RatePPB       float64 `json:"rate_ppb"`
	ResidualMaxUs float64 `json:"residual_max_us"`
	PausedP50Ms   float64 `json:"paused_p50_ms,omitempty"`
	Backwards     uint64  `json:"backwards"`
	TSCSkew       uint64  `json:"tsc_skew"`
	Reads         uint64  `json:"reads"`
	Kept          uint64  `json:"kept,omitempty"`
	Restored      uint64  `json:"restored,omitempty"`
	Missed        uint64  `json:"missed,omitempty"`
	Accepted      uint64  `json:"accepted,omitempty"`
	LastMiss      string  `json:"last_miss,omitempty"`
}

func describe(st *stretch) stretchResult {
	errs := st.errsNs()
	rate, residual := line(st)
	var paused []int64
	for _, e := range st.epochs {
		paused = append(paused, e.phases.PausedNs)
	}
	r := stretchResult{
		Mode: st.mode.String(), Hz: st.hz, Epochs: len(st.epochs), Seconds: tool.Round3(float64(st.elapsedNs()) / 1e9),
		GainedUs: us(st.gainedNs()), ErrP99Us: percentileUs(errs, .99), ErrMaxUs: percentileUs(errs, 1),
		RatePPB: tool.Round3(rate * 1e9), ResidualMaxUs: percentileUs(residual, 1), PausedP50Ms: tool.Round3(percentileUs(paused, .5) / 1e3),
		Backwards: st.steps.backwards(), Reads: st.steps.Reads, TSCSkew: st.steps.Skew,
		Kept: st.report.Kept, Restored: st.report.Restored, Missed: st.report.Missed, Accepted: st.report.Accepted, LastMiss: st.report.LastMiss,
	}
	if st.elapsedNs() > 0 {
		r.PPM = tool.Round3(float64(st.gainedNs()) / float64(st.elapsedNs()) * 1e6)
	}
	return r
}

// line fits a straight line to the errors over time (least squares) and returns
// its slope and what is left of each error.
func line(st *stretch) (slope float64, residualNs []int64) {
	errs := st.errsNs()
	if len(errs) < 2 {
		return 0, errs
	}
	var meanT, meanE, tt, te float64
	n := float64(len(errs))
	for i, e := range st.epochs {
		meanT += float64(e.rawNs-st.first.rawNs) / n
		meanE += float64(errs[i]) / n
	}
	for i, e := range st.epochs {
		t := float64(e.rawNs-st.first.rawNs) - meanT
		tt, te = tt+t*t, te+t*(float64(errs[i])-meanE)
	}
	if tt > 0 {
		slope = te / tt
	}
	for i, e := range st.epochs {
		t := float64(e.rawNs-st.first.rawNs) - meanT
		residualNs = append(residualNs, int64(float64(errs[i])-meanE-slope*t))
	}
	return slope, residualNs
}

// details is all that was measured.
type details struct {
	Stretches []stretchResult `json:"stretches"`
	Costs     []cost          `json:"costs"`
	Repairs   []repair        `json:"repairs"`
	Failovers []failover      `json:"failovers"`
	Kills     []kills         `json:"kills"`
	// The pure difference of rates, with the guest left alone and under
	// checkpoints with a keeper; of the longest stretch of each.
	AloneRatePPB     float64 `json:"alone_rate_ppb"`
	CorrectedRatePPB float64 `json:"corrected_rate_ppb"`
	// Steps of the clock back that the guest saw with QEMU's own corrections.
	UncorrectedBackwards uint64  `json:"uncorrected_backwards"`
	FailoverMaxUs        float64 `json:"failover_step_max_us"`
	FailoverTSCMaxUs     float64 `json:"failover_tsc_step_max_us"`

	stretches []*stretch
}

func (d *details) add(cpus int, st *stretch) {
	r := describe(st)
	r.CPUs = cpus
	d.Stretches, d.stretches = append(d.Stretches, r), append(d.stretches, st)
}

// figures are what the whole is about. One that was not measured is not there.
func (d *details) figures() map[string]float64 {
	f := map[string]float64{}
	var corrErrs []int64
	var lost, ran float64
	var backwards uint64
	for _, st := range d.stretches {
		switch st.mode {
		case uncorrected:
			lost, ran = lost-float64(st.gainedNs()), ran+float64(st.elapsedNs())
			d.UncorrectedBackwards += st.steps.backwards()
		case corrected:
			corrErrs = append(corrErrs, st.errsNs()...)
			backwards += st.steps.backwards()
		}
	}
	if ran > 0 {
		f["uncorrected_ppm"] = tool.Round3(lost / ran * 1e6)
	}
	if len(corrErrs) > 0 {
		f["corrected_err_p99_us"], f["corrected_err_max_us"] = percentileUs(corrErrs, .99), percentileUs(corrErrs, 1)
	}
	for _, k := range d.Kills {
		backwards += k.Steps.backwards()
	}
	var step []float64
	for _, o := range d.Failovers {
		backwards += o.Steps.backwards()
		step = append(step, max(o.StepUs, -o.StepUs))
		d.FailoverTSCMaxUs = max(d.FailoverTSCMaxUs, o.TSCUs, -o.TSCUs)
	}
	if len(step) > 0 {
		f["failover_step_us"], d.FailoverMaxUs = tool.Round3(tool.Median(step)), slices.Max(step)
	}
	if len(d.Costs) > 0 {
		f["cost_in_pause_p50_us"] = d.Costs[0].P50Us
	}
	if len(corrErrs)+len(d.Kills)+len(step) > 0 {
		f["backwards"] = float64(backwards)
	}
	d.rates()
	return f
}

// rates are of the longest stretches.
func (d *details) rates() {
	longest := map[string]float64{}
	for _, r := range d.Stretches {
		if r.Seconds <= longest[r.Mode] || r.Missed+r.Restored > 0 {
			continue // a pause that was missed is no rate
		}
		longest[r.Mode] = r.Seconds
		switch r.Mode {
		case alone.String():
			d.AloneRatePPB = r.RatePPB
		case corrected.String():
			d.CorrectedRatePPB = r.RatePPB
		}
	}
}

// line is what is printed.
func (d *details) line(r tool.Result) map[string]any {
	figures := d.figures()
	r.Details, r.Metrics = d, maps.Clone(figures)
	if r.Skipped == nil {
		r.Skipped = map[string]string{}
	}
	all := map[string]any{"tool": r.Tool, "ok": r.OK, "metrics": r.Metrics, "skipped": r.Skipped, "details": r.Details}
	if r.Error != "" {
		all["error"] = r.Error
	}
	for _, name := range names() {
		if v, measured := figures[name]; measured {
			all[name] = v
		} else {
			all[name] = nil
		}
	}
	return all
}

// names of the figures.
func names() []string {
	return []string{"uncorrected_ppm", "corrected_err_p99_us", "corrected_err_max_us", "backwards", "failover_step_us", "cost_in_pause_p50_us"}
}

func (k *kills) summarize() {
	lost := slices.Sorted(slices.Values(k.LostUs))
	k.LostUsP50, k.LostUsMax = tool.Percentile(lost, .5), tool.Percentile(lost, 1)
}
