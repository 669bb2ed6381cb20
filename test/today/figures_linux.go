package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

// results are what every tool did to the guest, each time.
type results struct {
	Rounds, MemMiB, DirtyPagesS int

	saves    [savePlaces][]saving
	shots    []shot
	moves    []move
	lost     int // guests that did not survive a migration
	checked  []checked
	failover time.Duration
	skip     map[string]string // by tool
}

// over is the median of a figure in milliseconds, or a count; false without any.
func over[T any](all []T, f func(T) float64) (float64, bool) {
	var v []float64
	for _, one := range all {
		v = append(v, f(one))
	}
	return tool.Round3(tool.Median(v)), len(v) > 0
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

// stallMs is the median of a checked time's stalls.
func (c checked) stallMs() float64 {
	v, _ := over(c.Stalls, ms)
	return v
}

// worstMs is the longest of them.
func (c checked) worstMs() float64 {
	if len(c.Stalls) == 0 {
		return 0
	}
	return ms(c.Stalls[0])
}

func (c checked) hz() float64 { return float64(c.Epochs) / c.Watched.Seconds() }

// figure is one number of the closing line.
type figure struct {
	name, tool string
	v          float64
	there      bool
}

// figures are all of them, medians over the rounds.
func (rs *results) figures() (all []figure) {
	add := func(name, tool string) func(float64, bool) {
		return func(v float64, there bool) { all = append(all, figure{name, tool, v, there}) }
	}
	for place, suffix := range [savePlaces]string{saveMemory: "", saveDisk: "_disk"} {
		of := rs.saves[place]
		add("save"+suffix+"_stall_ms", "save")(over(of, func(s saving) float64 { return ms(s.Stall) }))
		add("save"+suffix+"_ms", "save")(over(of, func(s saving) float64 { return ms(s.Save) }))
		add("restore"+suffix+"_ms", "save")(over(of, func(s saving) float64 { return ms(s.Restore) }))
	}
	add("snapshot_stall_ms", "snapshot")(over(rs.shots, func(s shot) float64 { return ms(s.Stall) }))
	add("snapshot_total_ms", "snapshot")(over(rs.shots, func(s shot) float64 { return ms(s.Took) }))
	add("migrate_stall_ms", "migrate")(over(rs.moves, func(m move) float64 { return ms(m.Stall) }))
	add("migrate_total_ms", "migrate")(over(rs.moves, func(m move) float64 { return ms(m.Took) }))
	add("checkpoint_stall_ms", "checkpoint")(over(rs.checked, checked.stallMs))
	add("checkpoint_stall_max_ms", "checkpoint")(over(rs.checked, checked.worstMs))
	add("checkpoint_hz", "checkpoint")(over(rs.checked, checked.hz))
	add("failover_stall_ms", "failover")(tool.Round3(ms(rs.failover)), rs.failover > 0)
	return all
}

// report fills the closing line.
func (rs *results) report(r *tool.Result) {
	for _, f := range rs.figures() {
		switch {
		case f.there:
			r.Metric(f.name, f.v)
		case f.tool == "migrate" && rs.lost > 0:
			r.Skip(f.name, fmt.Sprintf("the guest was dead after each of %d migrations", rs.lost))
		case rs.skip[f.tool] != "":
			r.Skip(f.name, rs.skip[f.tool])
		default:
			r.Skip(f.name, "the run ended before it was measured")
		}
	}
	r.Details = rs.details()
}

// details say what the figures were taken of.
type details struct {
	Rounds      int     `json:"rounds"`
	MemMiB      int     `json:"mem_mib"`
	DirtyPagesS int     `json:"dirty_pages_s"`
	SaveMiB     float64 `json:"save_mib"` // of the image
	SnapshotMiB float64 `json:"snapshot_mib"`
	Checkpoints uint64  `json:"checkpoints"`
	Migrations  int     `json:"migrations"`          // that the guest survived
	Lost        int     `json:"migrate_guests_lost"` // that it did not
}

func (rs *results) details() details {
	const mib = 1 << 20
	d := details{Rounds: rs.Rounds, MemMiB: rs.MemMiB, DirtyPagesS: rs.DirtyPagesS, Migrations: len(rs.moves), Lost: rs.lost}
	d.SaveMiB, _ = over(rs.saves[saveMemory], func(s saving) float64 { return float64(s.ImageBytes) / mib })
	d.SnapshotMiB, _ = over(rs.shots, func(s shot) float64 { return float64(s.ImageBytes) / mib })
	for _, c := range rs.checked {
		d.Checkpoints += c.Epochs
	}
	return d
}

// line says the latest round in short.
func (rs *results) line() string {
	text := ""
	last := func(name string, n int, v func(i int) time.Duration) {
		if n > 0 {
			text += fmt.Sprintf("%s %.1f ms, ", name, ms(v(n-1)))
		}
	}
	last("save+restore", len(rs.saves[saveMemory]), func(i int) time.Duration { return rs.saves[saveMemory][i].Stall })
	last("by disk", len(rs.saves[saveDisk]), func(i int) time.Duration { return rs.saves[saveDisk][i].Stall })
	last("snapshot", len(rs.shots), func(i int) time.Duration { return rs.shots[i].Stall })
	last("migrate", len(rs.moves), func(i int) time.Duration { return rs.moves[i].Stall })
	if n := len(rs.checked); n > 0 {
		c := rs.checked[n-1]
		text += fmt.Sprintf("checkpoint %.1f ms, %.0f a second", c.stallMs(), c.hz())
	}
	return text
}

// print writes the figures as a table. Errors of w show in what is missing.
func (rs *results) print(w io.Writer) {
	fmt.Fprintf(w, "\nmedians of %d rounds; a guest of %d MiB, all of them in use, that writes to %d pages a second\n", rs.Rounds, rs.MemMiB, rs.DirtyPagesS)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, f := range rs.figures() {
		if f.there {
			fmt.Fprintf(t, "%s\t%.1f\t\n", f.name, f.v)
		} else {
			fmt.Fprintf(t, "%s\t-\t\n", f.name)
		}
	}
	_ = t.Flush()
	if rs.lost > 0 {
		fmt.Fprintf(w, "after %d of %d migrations the guest was dead; their stall is not counted\n", rs.lost, rs.lost+len(rs.moves))
	}
}
