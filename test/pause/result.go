package main

import (
	"fmt"

	"github.com/virt-ft/virt-ft/test/tool"
)

// ramFloorMiB is the size of memory that the others are compared with.
const ramFloorMiB = 256

// result is what was measured so far.
type result struct {
	EpochMs float64  `json:"epoch_ms"`
	Nice    int      `json:"nice"`
	Sampler string   `json:"sampler"`
	Levels  []*level `json:"levels"` // by pages dirtied
	RAM     []*level `json:"ram"`    // by memory, at one rate of dirtying

	lacking map[int]string // sizes of memory that were left out, and why
}

func (r *result) skip(mib int, why string) {
	if r.lacking == nil {
		r.lacking = map[int]string{}
	}
	r.lacking[mib] = why
}

// report puts the figures into the closing line: of each level the ratios to
// both floors, and of each size of memory that to the smallest. As those were
// measured one after the other, and the machine may have been another meanwhile,
// "by_floor" compares what each is over its own floor.
func (r *result) report(to *tool.Result) {
	to.Details = r
	for _, l := range r.Levels {
		for name, v := range map[string]float64{
			"pause_ratio_%d":             l.StopContP50,
			"pause_ratio_%d_p99":         l.StopContP99,
			"pause_ratio_drained_%d":     l.SaveDrainedP50,
			"pause_ratio_drained_%d_p99": l.SaveDrainedP99,
		} {
			to.Metric(fmt.Sprintf(name, l.DirtyPages), v)
		}
		// At most so many there were: a page met by two passes counts twice.
		to.Metric(fmt.Sprintf("pause_pages_%d", l.DirtyPages), float64(l.LivePages+l.PausePages))
	}
	if noise := r.noise(); noise > 0 {
		to.Metric("pause_noise_ratio", noise)
	}
	for mib, why := range r.lacking {
		to.Skip(ramMetric(mib), why)
	}
	floor := r.size(ramFloorMiB)
	for _, l := range r.RAM {
		name := ramMetric(l.RAMMiB)
		switch {
		case l.RAMMiB == ramFloorMiB:
		case floor == nil:
			to.Skip(name, fmt.Sprintf("no guest of %d MiB was measured to compare with", ramFloorMiB))
		default:
			to.Metric(name, l.Checkpoint.P50Ms/floor.Checkpoint.P50Ms)
			to.Metric(name+"_p99", l.Checkpoint.P99Ms/floor.Checkpoint.P99Ms)
			to.Metric(name+"_by_floor", l.StopContP50/floor.StopContP50)
		}
	}
}

// noise is the p50 of no operation at all over that of stop and cont, of the
// worst level. The nearer it comes to 1, the more of all figures is the machine's
// other work, which pulls the ratios of pauses towards 1 too.
func (r *result) noise() (worst float64) {
	for _, all := range [][]*level{r.Levels, r.RAM} {
		for _, l := range all {
			worst = max(worst, tool.Ratio(l.Nothing.P50Ms, l.StopCont.P50Ms))
		}
	}
	return worst
}

func (r *result) size(mib int) *level {
	for _, l := range r.RAM {
		if l.RAMMiB == mib {
			return l
		}
	}
	return nil
}

// ramMetric is the name of a size's figure: pause_ratio_ram_8g.
func ramMetric(mib int) string {
	if mib >= 1024 && mib%1024 == 0 {
		return fmt.Sprintf("pause_ratio_ram_%dg", mib/1024)
	}
	return fmt.Sprintf("pause_ratio_ram_%dm", mib)
}
