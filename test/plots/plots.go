package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/virt-ft/virt-ft/internal/plot"
	"github.com/virt-ft/virt-ft/test/tool"
)

// figure is one file.
type figure struct {
	file string
	part string // of bench.json
	draw func(*tool.Report) (*chart, error)
}

func plots() []figure {
	return []figure{
		{"pause-dirty.svg", "pause", pauseByDirty},
		{"pause-ram.svg", "pause", pauseByRAM},
		{"pause-phases.svg", "pause", pausePhases},
		{"cpu.svg", "load", cpuByRate},
		{"stream.svg", "stream", streamSpeed},
		{"today.svg", "today", todaysTools},
	}
}

var errNotMeasured = errors.New("it was not measured")

// spread and level are what test/pause says of one rate or size.
type spread struct {
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
}

type level struct {
	RAMMiB      int    `json:"ram_mib"`
	DirtyPages  int    `json:"dirty_pages"`
	Nothing     spread `json:"nothing"`
	StopCont    spread `json:"stop_cont"`
	SaveDrained spread `json:"save_drained"`
	Checkpoint  spread `json:"checkpoint"`
	Phases      struct {
		Brake   float64 `json:"brake_ms"`
		AtPause float64 `json:"at_pause_ms"`
		Scan    float64 `json:"scan_ms"`
		Copy    float64 `json:"copy_ms"`
		Hold    float64 `json:"hold_ms"`
		Resume  float64 `json:"resume_ms"`
	} `json:"phases"`
}

type pauseDetails struct {
	Levels []level `json:"levels"`
	RAM    []level `json:"ram"`
}

func readPause(r *tool.Report) (d pauseDetails, err error) {
	p, there := r.Parts["pause"]
	if !there {
		return d, errNotMeasured
	}
	return d, p.ReadDetails(&d)
}

func pauseByDirty(r *tool.Report) (*chart, error) {
	d, err := readPause(r)
	if err != nil || len(d.Levels) == 0 {
		return nil, errors.Join(err, errNotMeasured)
	}
	c := pauseChart(d.Levels, func(l level) string { return thousands(l.DirtyPages) })
	c.title = "How long a checkpoint stops the guest, by pages dirtied in an epoch"
	c.says = fmt.Sprintf("longest stall that the guest sees, %d MiB of populated RAM, epochs of 50 ms; floors dashed, taken in turn on the same guest", d.Levels[0].RAMMiB)
	c.place = "pages dirtied in each epoch"
	return c, nil
}

func pauseByRAM(r *tool.Report) (*chart, error) {
	d, err := readPause(r)
	if err != nil || len(d.RAM) == 0 {
		return nil, errors.Join(err, errNotMeasured)
	}
	var rising []level // they are measured from the largest on
	for i := range d.RAM {
		rising = append(rising, d.RAM[len(d.RAM)-1-i])
	}
	c := pauseChart(rising, func(l level) string { return size(l.RAMMiB) })
	c.title = "How long a checkpoint stops the guest, by its memory"
	c.says = fmt.Sprintf("longest stall that the guest sees, all RAM populated, %s pages dirtied in each epoch of 50 ms; floors dashed", thousands(rising[0].DirtyPages))
	c.place = "memory of the guest"
	return c, nil
}

func pauseChart(levels []level, name func(level) string) *chart {
	c := &chart{form: lines, axis: "ms", series: []series{
		{name: "checkpoint p99", colour: 1}, {name: "checkpoint p50", colour: 0},
		{name: "stop + cont p99", colour: 6, dashed: true}, {name: "stop + cont p50", colour: 7, dashed: true},
		{name: "device state only p50", colour: 2, dashed: true}, {name: "nothing p50", colour: 4, dashed: true},
	}}
	for _, l := range levels {
		c.places = append(c.places, name(l))
		for i, v := range []float64{l.Checkpoint.P99, l.Checkpoint.P50, l.StopCont.P99, l.StopCont.P50, l.SaveDrained.P50, l.Nothing.P50} {
			c.series[i].v = append(c.series[i].v, v)
		}
	}
	return c
}

func pausePhases(r *tool.Report) (*chart, error) {
	d, err := readPause(r)
	if err != nil || len(d.Levels) == 0 {
		return nil, errors.Join(err, errNotMeasured)
	}
	c := &chart{form: stacked, axis: "ms, medians", place: "pages dirtied in each epoch",
		title: "Where the time of a checkpoint's pause goes",
		says:  "as the guest sees it, from its last step to its next; the number above is the sum of the medians",
		series: []series{
			{name: "stopped to first byte", colour: 6}, {name: "close the epoch's queue", colour: 4}, {name: "scan", colour: 0},
			{name: "copy", colour: 1}, {name: "held (throttled)", colour: 3}, {name: "let go to running", colour: 2},
		}}
	for _, l := range d.Levels {
		c.places = append(c.places, thousands(l.DirtyPages))
		p := l.Phases
		for i, v := range []float64{p.Brake, p.AtPause, p.Scan, p.Copy, p.Hold, p.Resume} {
			c.series[i].v = append(c.series[i].v, v)
		}
	}
	return c, nil
}

func cpuByRate(r *tool.Report) (*chart, error) {
	c := &chart{form: lines, axis: "speed, protected over unprotected", place: "checkpoints a second that were asked for",
		title: "What is left of the guest's CPU",
		says:  "work done in a second of the host's clock, protected over unprotected in the same round; 1 is the floor",
		aim:   1, aimSays: "unprotected", places: []string{"10 Hz", "40 Hz", "100 Hz"}}
	all := []series{
		{name: "all three kinds", colour: 0}, {name: "in registers", colour: 2, dashed: true},
		{name: "reads of 8 MiB", colour: 1, dashed: true}, {name: "writes of 8 MiB", colour: 3, dashed: true},
	}
	found := false
	for i, kind := range []string{"", "_integer", "_walk", "_write"} {
		there := false
		for _, hz := range []string{"10hz", "40hz", "100hz"} {
			v := metric(r, "cpu_ratio_"+hz+kind)
			there = there || plot.IsNumber(v)
			all[i].v = append(all[i].v, v)
		}
		if there {
			c.series, found = append(c.series, all[i]), true
		}
	}
	if !found {
		return nil, errNotMeasured
	}
	return c, nil
}

func streamSpeed(r *tool.Report) (*chart, error) {
	p, there := r.Parts["stream"]
	if !there {
		return nil, errNotMeasured
	}
	var d struct {
		Host []struct {
			Name    string  `json:"name"`
			Streams int     `json:"streams"`
			GBps    float64 `json:"gb_per_s"`
		} `json:"host"`
	}
	if err := p.ReadDetails(&d); err != nil || len(d.Host) == 0 {
		return nil, errors.Join(err, errNotMeasured)
	}
	c := &chart{form: bars, axis: "GB/s", title: "The page stream over loopback", series: []series{{colour: 0}},
		says: "runs of pages in messages of 4 MiB; loopback always copies, so zero-copy cannot gain here; grey: the floors"}
	for _, h := range d.Host {
		name := h.Name
		if h.Streams > 1 {
			name = fmt.Sprintf("%s, %d connections", name, h.Streams)
		}
		c.places = append(c.places, name)
		c.series[0].v = append(c.series[0].v, h.GBps)
		c.floors = append(c.floors, h.Name == "memcpy" || h.Name == "iperf3")
	}
	return c, nil
}

func todaysTools(r *tool.Report) (*chart, error) {
	c := &chart{form: bars, log: true, axis: "ms, powers of ten", title: "For how long the guest stands still, each time",
		says: "what libvirt offers today, and one of our checkpoints and failovers (blue), on the same guest", series: []series{{colour: 0}}}
	found := false
	for _, t := range []struct {
		name, metric string
		ours         bool
	}{
		{"save and restore, by memory", "save_stall_ms", false}, {"save and restore, by disk", "save_disk_stall_ms", false},
		{"live snapshot with memory", "snapshot_stall_ms", false}, {"live migration", "migrate_stall_ms", false},
		{"checkpoint", "checkpoint_stall_ms", true}, {"failover, once", "failover_stall_ms", true},
	} {
		v := metric(r, t.metric)
		found = found || plot.IsNumber(v)
		c.places = append(c.places, t.name)
		c.series[0].v = append(c.series[0].v, v)
		c.floors = append(c.floors, !t.ours)
	}
	if !found {
		return nil, errNotMeasured
	}
	return c, nil
}

// metric is a figure; not a number if it was not had.
func metric(r *tool.Report, name string) float64 {
	if v := r.Metrics[name]; v != nil {
		return *v
	}
	return math.NaN()
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func size(mib int) string {
	if mib >= 1024 && mib%1024 == 0 {
		return fmt.Sprintf("%d GiB", mib/1024)
	}
	return fmt.Sprintf("%d MiB", mib)
}
