package main

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/virt-ft/virt-ft/internal/control"
)

// topColumn is a column of top's table.
type topColumn struct {
	title  string
	width  int
	left   bool // aligned to the left
	keep   int  // the higher, the sooner it goes when the terminal is narrow
	text   func(control.Status) string
	colour func(control.Status) string // nil: none
}

const (
	topDomainMax = 24
	sparkWidth   = 10
)

// columns are all of them, as they are shown if there is room.
func (v *topView) columns(list []control.Status) []topColumn {
	name := len("DOMAIN")
	for _, s := range list {
		name = max(name, utf8.RuneCountInString(safeText(s.Domain)))
	}
	held := func(of func(*control.OutputStatus) string) func(control.Status) string {
		return func(s control.Status) string {
			if s.Output == nil {
				return "-"
			}
			return of(s.Output)
		}
	}
	return []topColumn{
		{"DOMAIN", min(name, topDomainMax), true, 0, func(s control.Status) string { return safeText(s.Domain) }, nil},
		{"ROLE", 7, true, 4, func(s control.Status) string { return safeText(s.Role) }, nil},
		{"STATE", 11, true, 0, func(s control.Status) string { return safeText(stateText(s)) }, stateColour},
		{"EP/S", 5, false, 2, v.rateText, nil},
		{"P50", 6, false, 5, func(s control.Status) string { return shortMillis(s.Pause.P50Ms) }, nil},
		{"P99", 6, false, 1, func(s control.Status) string { return shortMillis(s.Pause.P99Ms) }, nil},
		{"PAUSES", sparkWidth, true, 3, v.pausesText, nil},
		{"DIRTIED", 7, false, 6, func(s control.Status) string { return shortRate(s.Throttle.DirtyBps) }, nil},
		{"SENT", 7, false, 7, func(s control.Status) string { return shortRate(s.RateBps) }, nil},
		{"HELD", 5, false, 5, held(func(o *control.OutputStatus) string { return fmt.Sprint(o.HeldFrames) }), func(s control.Status) string { return outputCell(s.Output).colour }},
		{"OLDEST", 6, false, 8, held(func(o *control.OutputStatus) string { return shortMillis(o.OldestMs) }), nil},
		{"COMMIT", 6, false, 2, func(s control.Status) string { return shortMillis(s.LastCommitAgeMs) }, nil},
		{"DRIFT", 7, false, 9, driftText, nil},
	}
}

func (v *topView) rateText(s control.Status) string {
	if t := v.tracks[trackKey(s)]; t != nil && t.perSecond > 0 {
		return fmt.Sprintf("%.1f", t.perSecond)
	}
	return "-"
}

func (v *topView) pausesText(s control.Status) string {
	t := v.tracks[trackKey(s)]
	if t == nil || s.Pause.LastMs == 0 {
		return "-"
	}
	return v.sparkline(t.pauses, sparkWidth)
}

// driftText is how wrong the guest's clock has become.
func driftText(s control.Status) string {
	us := s.Clock.DriftUs
	if us == 0 {
		us = s.Clock.EmulatedDriftUs
	}
	switch a := math.Abs(us); {
	case a == 0:
		return "-"
	case a < 1000:
		return fmt.Sprintf("%+.0fus", us)
	}
	return fmt.Sprintf("%+.0fms", us/1000)
}

// fitColumns leaves columns out until the rest fits; width 0 fits all.
func fitColumns(columns []topColumn, width int) []topColumn {
	for width > 0 {
		total, least := 1, 0 // the mark before a row
		for i, c := range columns {
			total += c.width + 1
			if c.keep >= columns[least].keep {
				least = i
			}
		}
		if total <= width+1 || columns[least].keep == 0 {
			break
		}
		columns = append(append([]topColumn(nil), columns[:least]...), columns[least+1:]...)
	}
	return columns
}

// columnLine aligns the fields of a row; paint, if not nil, colours one.
func columnLine(columns []topColumn, text func(topColumn) string, paint func(topColumn, string) string) string {
	var line []string
	for _, c := range columns {
		field := padTo(clip(text(c), c.width), c.width, !c.left)
		if paint != nil {
			field = paint(c, field)
		}
		line = append(line, field)
	}
	return strings.TrimRight(strings.Join(line, " "), " ")
}

// shortMillis is a duration in at most six characters.
func shortMillis(ms float64) string {
	switch {
	case ms == 0:
		return "-"
	case ms < 100:
		return fmt.Sprintf("%.1fms", ms)
	case ms < 10_000:
		return fmt.Sprintf("%.0fms", ms)
	case ms < 1000_000:
		return fmt.Sprintf("%.0fs", ms/1000)
	}
	return fmt.Sprintf("%.0fh", time.Duration(ms*float64(time.Millisecond)).Hours())
}

// shortRate is bytes a second in at most seven characters.
func shortRate(bps float64) string {
	if bps == 0 {
		return "-"
	}
	units := "BKMGTP"
	i := 0
	for bps >= 1000 && i < len(units)-1 {
		bps /= 1024
		i++
	}
	if bps < 10 && i > 0 {
		return fmt.Sprintf("%.1f%c/s", bps, units[i])
	}
	return fmt.Sprintf("%.0f%c/s", bps, units[i])
}
