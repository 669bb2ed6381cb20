package report

import (
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/plot"
)

// window is what a chart shows.
const window = time.Hour

// chart is one plot over the hour.
type chart struct {
	title, axis string
	lines       []line
	stacked     bool // one line on the other, areas between
}

type line struct {
	name   string
	colour int
	of     func(*control.HistorySlot) float64
	any    bool // also of slots without a checkpoint
}

func charts() []chart {
	spread := func(of func(*control.HistorySlot) control.Spread) []line {
		return []line{
			{"max", 6, func(s *control.HistorySlot) float64 { return float64(of(s).Max) }, false},
			{"p99", 1, func(s *control.HistorySlot) float64 { return float64(of(s).P99) }, false},
			{"p50", 0, func(s *control.HistorySlot) float64 { return float64(of(s).P50) }, false},
		}
	}
	var phases []line
	for i, name := range []string{"stop", "gate", "scan", "copy", "hold", "clock", "device"} {
		phases = append(phases, line{name, i, func(s *control.HistorySlot) float64 {
			p := &s.Phases
			return [...]float64{p.StopMs, p.GateMs, p.ScanMs, p.CopyMs, p.HoldMs, p.ClockMs, p.DeviceMs}[i]
		}, false})
	}
	const perSlot = 5. // seconds
	return []chart{
		{title: "Pause of the guest", axis: "ms", lines: spread(func(s *control.HistorySlot) control.Spread { return s.PausedMs })},
		{title: "Where the pause goes: medians of the phases, one on the other", axis: "ms", lines: phases, stacked: true},
		{title: "From a pause until the backup has the checkpoint", axis: "ms", lines: spread(func(s *control.HistorySlot) control.Spread { return s.AckMs })},
		{title: "Time between two checkpoints", axis: "ms", lines: spread(func(s *control.HistorySlot) control.Spread { return s.IntervalMs })},
		{title: "Pages that the guest writes", axis: "pages of 4 KiB a second", lines: []line{{"", 3, func(s *control.HistorySlot) float64 { return float64(s.DirtyPagesSum) / perSlot }, false}}},
		{title: "Sent to the backup", axis: "MiB a second", lines: []line{{"", 2, func(s *control.HistorySlot) float64 { return float64(s.SentBytesSum) / perSlot / (1 << 20) }, false}}},
		{title: "Age of the oldest frame that waits for the backup", axis: "ms", lines: []line{{"", 4, func(s *control.HistorySlot) float64 { return s.OldestMs }, false}}},
		{title: "Age of the last checkpoint that the backup has", axis: "ms", lines: []line{{"", 5, func(s *control.HistorySlot) float64 { return s.LastCommitAgeMs }, true}}},
	}
}

// Sizes in pixels.
const (
	width  = 860.
	height = 250.
	left   = 62.
	right  = 78. // the legend's
	top    = 34.
	bottom = 54.
	band   = 16. // of states, below the axis
)

// draw returns the chart as SVG, or nothing if no slot has a value.
func (c *chart) draw(h *control.History) string {
	from := h.Now.Add(-window)
	values, most := c.values(h)
	if values == nil {
		return ""
	}
	d := &plot.Drawing{Width: width, Height: height}
	ticks := plot.Ticks(most)
	high := ticks[len(ticks)-1]
	y := func(v float64) float64 { return height - bottom - v/high*(height-bottom-top) }
	x := func(t time.Time) float64 {
		return left + min(max(t.Sub(from).Seconds()/window.Seconds(), 0), 1)*(width-left-right)
	}
	d.Text("chart", left, 18, plot.Start, c.title)
	d.Text("sub", width-right, 18, plot.End, c.axis)
	for _, v := range ticks {
		d.Line("grid", left, y(v), width-right, y(v))
		d.Text("", left-8, y(v)+4, plot.End, plot.Number(v))
	}
	d.Line("axis", left, y(0), width-right, y(0))
	for t := from.Truncate(10 * time.Minute).Add(10 * time.Minute); t.Before(h.Now); t = t.Add(10 * time.Minute) {
		d.Line("axis", x(t), y(0), x(t), y(0)+4)
		d.Text("", x(t), height-bottom+17, plot.Middle, t.Format("15:04"))
	}
	for i := range c.lines { // of stacks the highest first, so that the others lie on it
		k := i
		if c.stacked {
			k = len(c.lines) - 1 - i
		}
		for _, run := range runs(h, values[k], x, y) {
			if c.stacked {
				d.Area(fmt.Sprintf("f%d", c.lines[k].colour), run, y(0))
			} else {
				d.Path(fmt.Sprintf("line s%d", c.lines[k].colour), run)
			}
		}
		if name := c.lines[k].name; name != "" {
			d.Rect(fmt.Sprintf("f%d", c.lines[k].colour), width-right+12, top+float64(i)*19, 10, 10)
			d.Text("", width-right+28, top+float64(i)*19+9, plot.Start, name)
		}
	}
	drawStates(d, h, x)
	return d.Element(c.title)
}

// values are those of each line by slot, -1 where there is none, and the largest.
func (c *chart) values(h *control.History) (all [][]float64, most float64) {
	all, some := make([][]float64, len(c.lines)), false
	for i := range h.Slots {
		s, sum := &h.Slots[i], 0.
		for k, l := range c.lines {
			v := -1.
			if s.Epochs > 0 || l.any && s.Role != "" {
				v, some = l.of(s), true
				if c.stacked {
					sum += v
					v = sum
				}
				most = max(most, v)
			}
			all[k] = append(all[k], v)
		}
	}
	if !some || most == 0 {
		return nil, 0
	}
	return all, most
}

// runs are the points of slots that follow each other.
func runs(h *control.History, values []float64, x func(time.Time) float64, y func(float64) float64) (all [][][2]float64) {
	step := time.Duration(h.SlotSeconds) * time.Second
	open := false
	for i, v := range values {
		if v < 0 {
			open = false
			continue
		}
		if !open || h.Slots[i].At.Sub(h.Slots[i-1].At) > step {
			all = append(all, nil)
		}
		open = true
		n := len(all) - 1
		all[n] = append(all[n], [2]float64{x(h.Slots[i].At.Add(step / 2)), y(v)})
	}
	return all
}

// drawStates draws a band of what the domain was here, with the words where they fit.
func drawStates(d *plot.Drawing, h *control.History, x func(time.Time) float64) {
	step := time.Duration(h.SlotSeconds) * time.Second
	const letter = 6.2
	for i := 0; i < len(h.Slots); {
		s, k := &h.Slots[i], i+1
		for k < len(h.Slots) && h.Slots[k].State == s.State && h.Slots[k].Role == s.Role && h.Slots[k].At.Sub(h.Slots[k-1].At) <= step {
			k++
		}
		a, b := x(s.At), x(h.Slots[k-1].At.Add(step))
		i = k
		if s.State == "" {
			continue
		}
		class := "other"
		if s.State == control.StateProtected || s.State == control.StateStandby {
			class = "safe"
		}
		d.Rect("state "+class, a, height-band-10, max(b-a-1, 1), band)
		if word := s.Role + " " + s.State; b-a > float64(len(word))*letter+8 {
			d.Text("sub", a+5, height-band+2, plot.Start, word)
		} else if b-a > float64(len(s.State))*letter+8 {
			d.Text("sub", a+5, height-band+2, plot.Start, s.State)
		}
	}
}
