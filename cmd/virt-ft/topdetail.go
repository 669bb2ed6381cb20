package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/virt-ft/virt-ft/internal/control"
)

const topBarMax = 40

// detailLines draws one domain: its state, the phases of its pauses as bars, and
// what happened to it.
func (v *topView) detailLines(width int, batch bool) []string {
	i := v.index(v.last.list)
	if i < 0 {
		if v.last.at.IsZero() {
			return nil
		}
		lines := []string{v.paint(red, clip(safeText(v.selected)+" is not protected, nor does it stand by here", width)), ""}
		return append(lines, v.eventLines(width, batch)...)
	}
	s := v.last.list[i]
	keep := []string{"state", "peer", "sync", "epoch", "pace", "sent", "output", "clock"}
	rows := slices.DeleteFunc(detailRows(s), func(row []cell) bool {
		return !slices.Contains(keep, row[0].text) && !strings.HasPrefix(row[0].text, "disk ")
	})
	lines := []string{v.paint(bold, clip(fmt.Sprintf("%s  %s", safeText(s.Domain), safeText(s.Role)), width))}
	if s.Sync != nil {
		lines = append(lines, clip("sync  "+v.bar(float64(percentOf(s.Sync))/100, topBarMax), width))
	}
	lines = append(lines, tableLines(rows, width, v.paint)...)
	for _, t := range troublesOf(s) {
		lines = append(lines, v.paint(t.colour, t.word)+clip(" "+t.text, width-len(t.word)))
	}
	lines = append(append(lines, ""), v.pauseLines(s, width)...)
	return append(append(lines, ""), v.eventLines(width, batch)...)
}

// pauseLines draws the pauses of the last epochs, and where their time goes.
func (v *topView) pauseLines(s control.Status, width int) []string {
	var pauses, acks []float64
	for _, e := range v.last.epochs {
		pauses, acks = append(pauses, e.PausedMs), append(acks, e.AckMs)
	}
	if len(pauses) == 0 {
		return nil
	}
	room := 60
	if width > 0 {
		room = max(width-24, 10)
	}
	line := func(name string, values []float64) string {
		return fmt.Sprintf("%-7s %s  up to %s", name, strings.TrimRight(v.sparkline(values, room), " "), shortMillis(slices.Max(values[max(0, len(values)-room):])))
	}
	lines := []string{clip(line("pauses", pauses), width), clip(line("acks", acks), width), ""}
	p := s.Pause.Phases
	phases := []struct {
		name string
		ms   float64
	}{{"stop", p.StopMs}, {"gate", p.GateMs}, {"scan", p.ScanMs}, {"copy", p.CopyMs}, {"hold", p.HoldMs}, {"clock", p.ClockMs}, {"device", p.DeviceMs}}
	most := 0.0
	for _, x := range phases {
		most = max(most, x.ms)
	}
	for _, x := range phases {
		if x.ms > 0 {
			lines = append(lines, clip(fmt.Sprintf("%-7s %8s  %s", x.name, millis(x.ms), v.bar(x.ms/most, min(topBarMax, room))), width))
		}
	}
	return lines
}

// eventLines are the last events, the latest first.
func (v *topView) eventLines(width int, batch bool) []string {
	var lines []string
	if len(v.last.events) > 0 {
		lines = append(lines, v.paint(bold, "events"))
	}
	for _, e := range slices.Backward(v.last.events) {
		line := fmt.Sprintf("%s  %s", e.At.Local().Format(clockFormat), safeText(e.Text))
		if !batch {
			line = clip(line, width)
		}
		lines = append(lines, line)
	}
	return lines
}
