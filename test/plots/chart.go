package main

import (
	"fmt"
	"math"
	"strconv"
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
	d := &drawing{width: width, height: height}
	if c.form == bars {
		d.height = top + bottom + float64(len(c.places))*(barHeight+barGap)
	}
	d.text("title", 16, 26, start, c.title)
	d.text("sub", 16, 45, start, c.says)
	d.text("sub", 16, 60, start, c.subtitleLines[0])
	d.text("sub", 16, 74, start, c.subtitleLines[1])
	if c.form == bars {
		c.drawBars(d)
	} else {
		c.drawColumns(d)
	}
	return d.file(c.title)
}

// drawColumns draws lines or stacked columns.
func (c *chart) drawColumns(d *drawing) {
	ticks := ticks(c.highest())
	most := ticks[len(ticks)-1]
	y := func(v float64) float64 { return d.height - bottom - v/most*(d.height-bottom-top) }
	x := func(i int) float64 {
		return left + (float64(i)+.5)*(d.width-right-left)/float64(max(len(c.places), 1))
	}
	for _, v := range ticks {
		d.line("grid", left, y(v), d.width-right, y(v))
		d.text("", left-8, y(v)+4, end, number(v))
	}
	d.line("axis", left, y(0), d.width-right, y(0))
	for i, name := range c.places {
		d.text("", x(i), d.height-bottom+18, middle, name)
	}
	d.text("", (left+d.width-right)/2, d.height-14, middle, c.place)
	d.upright(18, (top+d.height-bottom)/2, c.axis)
	if c.aim > 0 {
		d.line("aim", left, y(c.aim), d.width-right, y(c.aim))
		d.text("sub", d.width-right-4, y(c.aim)+14, end, c.aimSays)
	}
	if c.form == stacked {
		c.drawStacks(d, x, y)
	} else {
		c.drawLines(d, x, y)
	}
	c.legend(d)
}

func (c *chart) drawLines(d *drawing, x func(int) float64, y func(float64) float64) {
	for _, s := range c.series {
		class := fmt.Sprintf("line s%d", s.colour%colours)
		if s.dashed {
			class += " dash"
		}
		var run [][2]float64
		for i, v := range s.v {
			if !isNumber(v) { // a gap, not a line across it
				d.path(class, run)
				run = nil
				continue
			}
			run = append(run, [2]float64{x(i), y(v)})
			d.dot(fmt.Sprintf("f%d", s.colour%colours), x(i), y(v))
		}
		d.path(class, run)
	}
}

func (c *chart) drawStacks(d *drawing, x func(int) float64, y func(float64) float64) {
	const half = 26.
	for i := range c.places {
		sum := 0.
		for _, s := range c.series {
			if v := s.v[i]; isNumber(v) && v > 0 {
				d.rect(fmt.Sprintf("f%d", s.colour%colours), x(i)-half, y(sum+v), 2*half, y(sum)-y(sum+v))
				sum += v
			}
		}
		d.text("", x(i), y(sum)-6, middle, number(sum))
	}
}

func (c *chart) legend(d *drawing) {
	at := top + 10
	for i := range c.series {
		s := c.series[i]
		if c.form == stacked { // as they lie
			s = c.series[len(c.series)-1-i]
		}
		x := d.width - right + 16
		if c.form == stacked {
			d.rect(fmt.Sprintf("f%d", s.colour%colours), x, at-10, 14, 12)
		} else {
			class := fmt.Sprintf("line s%d", s.colour%colours)
			if s.dashed {
				class += " dash"
			}
			d.line(class, x, at-4, x+22, at-4)
		}
		d.text("", x+30, at, start, s.name)
		at += 20
	}
}

// drawBars draws one bar for each place, with its value behind it.
func (c *chart) drawBars(d *drawing) {
	most := c.highest()
	marks := ticks(most)
	least := 0.
	if c.log {
		marks = powers(c.lowest(), most)
		least = marks[0]
	}
	most = marks[len(marks)-1]
	span := d.width - barLeft - 80
	x := func(v float64) float64 { return barLeft + (v-least)/(most-least)*span }
	if c.log {
		x = func(v float64) float64 {
			return barLeft + math.Log10(max(v, least)/least)/math.Log10(most/least)*span
		}
	}
	foot := d.height - bottom
	for _, v := range marks {
		d.line("grid", x(v), top, x(v), foot)
		d.text("", x(v), foot+16, middle, number(v))
	}
	d.line("axis", barLeft, top, barLeft, foot)
	d.text("", barLeft+span/2, d.height-14, middle, c.axis)
	for i, name := range c.places {
		at := top + barGap/2 + float64(i)*(barHeight+barGap)
		d.text("", barLeft-10, at+barHeight/2+4, end, name)
		v := c.series[0].v[i]
		if !isNumber(v) {
			d.text("sub", barLeft+6, at+barHeight/2+4, start, "not measured")
			continue
		}
		class := fmt.Sprintf("f%d", c.series[0].colour%colours)
		if i < len(c.floors) && c.floors[i] {
			class = "f6"
		}
		d.rect(class, barLeft, at, max(x(v)-barLeft, 1), barHeight)
		d.text("", x(v)+6, at+barHeight/2+4, start, number(v))
	}
}

// highest is the largest value, of stacks the largest sum.
func (c *chart) highest() float64 {
	most := c.aim
	for i := range c.places {
		sum := 0.
		for _, s := range c.series {
			v := s.v[i]
			if !isNumber(v) {
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
			if isNumber(v) && v > 0 {
				least = min(least, v)
			}
		}
	}
	if math.IsInf(least, 1) {
		return 1
	}
	return least
}

func isNumber(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// tiny is what no measurement here tells from nothing.
const tiny = 1e-9

// ticks are round numbers from 0 to the first that is not below most.
func ticks(most float64) []float64 {
	if !isNumber(most) || most < tiny {
		return []float64{0, 1}
	}
	step := math.Pow(10, math.Floor(math.Log10(most/5)))
	for _, factor := range []float64{1, 2, 5, 10} {
		if most/(step*factor) <= 6 {
			step *= factor
			break
		}
	}
	n := int(math.Ceil(most/step - 1e-9))
	v := make([]float64, 0, n+1)
	for i := range n + 1 {
		v = append(v, float64(i)*step)
	}
	return v
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

// number shows three digits that count, and no zeros behind the point.
func number(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	}
	f, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 3, 64), 64) // its own words
	return strconv.FormatFloat(f, 'f', -1, 64)
}
