package main

import (
	"fmt"
	"math"

	"github.com/virt-ft/virt-ft/internal/plot"
)

// form is how a chart shows its series.
type form int

const (
	lines   form = iota // a point for each place on the x axis
	stacked             // a column for each place, the series one on the other
	bars                // one bar for each place, from left to right; one series
)

// chart is one plot. Values that are not numbers are left out.
type chart struct {
	form          form
	title, says   string
	axis          string   // of the values, with their unit
	place         string   // what the places are
	places        []string // names of the values of a series
	series        []series
	log           bool    // powers of ten; for bars only
	aim           float64 // a line across; 0: none
	aimSays       string
	floors        []bool // bars that are floors, by place
	subtitleLines [2]string
}

type series struct {
	name   string
	v      []float64
	dashed bool // floors are
	colour int
}

// Sizes in pixels.
const (
	width     = 820.
	height    = 460.
	left      = 66.
	top       = 98.
	right     = 210. // the legend's
	bottom    = 56.
	barLeft   = 230. // names of bars
	barHeight = 22.
	barGap    = 12.
)

// render draws it.
func (c *chart) render() []byte {
	d := &plot.Drawing{Width: width, Height: height}
	if c.form == bars {
		d.Height = top + bottom + float64(len(c.places))*(barHeight+barGap)
	}
	d.Text("title", 16, 26, plot.Start, c.title)
	d.Text("sub", 16, 45, plot.Start, c.says)
	d.Text("sub", 16, 60, plot.Start, c.subtitleLines[0])
	d.Text("sub", 16, 74, plot.Start, c.subtitleLines[1])
	if c.form == bars {
		c.drawBars(d)
	} else {
		c.drawColumns(d)
	}
	return d.File(c.title)
}

// drawColumns draws lines or stacked columns.
func (c *chart) drawColumns(d *plot.Drawing) {
	ticks := plot.Ticks(c.highest())
	most := ticks[len(ticks)-1]
	y := func(v float64) float64 { return d.Height - bottom - v/most*(d.Height-bottom-top) }
	x := func(i int) float64 {
		return left + (float64(i)+.5)*(d.Width-right-left)/float64(max(len(c.places), 1))
	}
	for _, v := range ticks {
		d.Line("grid", left, y(v), d.Width-right, y(v))
		d.Text("", left-8, y(v)+4, plot.End, plot.Number(v))
	}
	d.Line("axis", left, y(0), d.Width-right, y(0))
	for i, name := range c.places {
		d.Text("", x(i), d.Height-bottom+18, plot.Middle, name)
	}
	d.Text("", (left+d.Width-right)/2, d.Height-14, plot.Middle, c.place)
	d.Upright(18, (top+d.Height-bottom)/2, c.axis)
	if c.aim > 0 {
		d.Line("aim", left, y(c.aim), d.Width-right, y(c.aim))
		d.Text("sub", d.Width-right-4, y(c.aim)+14, plot.End, c.aimSays)
	}
	if c.form == stacked {
		c.drawStacks(d, x, y)
	} else {
		c.drawLines(d, x, y)
	}
	c.legend(d)
}

func (c *chart) drawLines(d *plot.Drawing, x func(int) float64, y func(float64) float64) {
	for _, s := range c.series {
		class := fmt.Sprintf("line s%d", s.colour%plot.Colours)
		if s.dashed {
			class += " dash"
		}
		var run [][2]float64
		for i, v := range s.v {
			if !plot.IsNumber(v) { // a gap, not a line across it
				d.Path(class, run)
				run = nil
				continue
			}
			run = append(run, [2]float64{x(i), y(v)})
			d.Dot(fmt.Sprintf("f%d", s.colour%plot.Colours), x(i), y(v))
		}
		d.Path(class, run)
	}
}

func (c *chart) drawStacks(d *plot.Drawing, x func(int) float64, y func(float64) float64) {
	const half = 26.
	for i := range c.places {
		sum := 0.
		for _, s := range c.series {
			if v := s.v[i]; plot.IsNumber(v) && v > 0 {
				d.Rect(fmt.Sprintf("f%d", s.colour%plot.Colours), x(i)-half, y(sum+v), 2*half, y(sum)-y(sum+v))
				sum += v
			}
		}
		d.Text("", x(i), y(sum)-6, plot.Middle, plot.Number(sum))
	}
}

func (c *chart) legend(d *plot.Drawing) {
	at := top + 10
	for i := range c.series {
		s := c.series[i]
		if c.form == stacked { // as they lie
			s = c.series[len(c.series)-1-i]
		}
		x := d.Width - right + 16
		if c.form == stacked {
			d.Rect(fmt.Sprintf("f%d", s.colour%plot.Colours), x, at-10, 14, 12)
		} else {
			class := fmt.Sprintf("line s%d", s.colour%plot.Colours)
			if s.dashed {
				class += " dash"
			}
			d.Line(class, x, at-4, x+22, at-4)
		}
		d.Text("", x+30, at, plot.Start, s.name)
		at += 20
	}
}

// drawBars draws one bar for each place, with its value behind it.
func (c *chart) drawBars(d *plot.Drawing) {
	most := c.highest()
	marks := plot.Ticks(most)
	least := 0.
	if c.log {
		marks = powers(c.lowest(), most)
		least = marks[0]
	}
	most = marks[len(marks)-1]
	span := d.Width - barLeft - 80
	x := func(v float64) float64 { return barLeft + (v-least)/(most-least)*span }
	if c.log {
		x = func(v float64) float64 {
			return barLeft + math.Log10(max(v, least)/least)/math.Log10(most/least)*span
		}
	}
	foot := d.Height - bottom
	for _, v := range marks {
		d.Line("grid", x(v), top, x(v), foot)
		d.Text("", x(v), foot+16, plot.Middle, plot.Number(v))
	}
	d.Line("axis", barLeft, top, barLeft, foot)
	d.Text("", barLeft+span/2, d.Height-14, plot.Middle, c.axis)
	for i, name := range c.places {
		at := top + barGap/2 + float64(i)*(barHeight+barGap)
		d.Text("", barLeft-10, at+barHeight/2+4, plot.End, name)
		v := c.series[0].v[i]
		if !plot.IsNumber(v) {
			d.Text("sub", barLeft+6, at+barHeight/2+4, plot.Start, "not measured")
			continue
		}
		class := fmt.Sprintf("f%d", c.series[0].colour%plot.Colours)
		if i < len(c.floors) && c.floors[i] {
			class = "f6"
		}
		d.Rect(class, barLeft, at, max(x(v)-barLeft, 1), barHeight)
		d.Text("", x(v)+6, at+barHeight/2+4, plot.Start, plot.Number(v))
	}
}

// highest is the largest value, of stacks the largest sum.
func (c *chart) highest() float64 {
	most := c.aim
	for i := range c.places {
		sum := 0.
		for _, s := range c.series {
			v := s.v[i]
			if !plot.IsNumber(v) {
				continue
			}
			sum += max(v, 0)
			if most = max(most, v); c.form == stacked {
				most = max(most, sum)
			}
		}
	}
	return most
}

// lowest is the smallest value above 0; 1 if there is none.
func (c *chart) lowest() float64 {
	least := math.Inf(1)
	for _, s := range c.series {
		for _, v := range s.v {
			if plot.IsNumber(v) && v > 0 {
				least = min(least, v)
			}
		}
	}
	if math.IsInf(least, 1) {
		return 1
	}
	return least
}

// powersMax is how many powers of ten a chart spans: what is smaller is drawn as
// the least.
const powersMax = 9

// powers are the powers of ten around both.
func powers(least, most float64) (v []float64) {
	to := math.Ceil(math.Log10(max(most, least)))
	from := max(math.Floor(math.Log10(least)), to-powersMax)
	for e := from; e <= max(to, from+1); e++ {
		v = append(v, math.Pow(10, e))
	}
	return v
}
