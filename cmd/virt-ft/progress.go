package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
)

const (
	barWidth    = 24
	percentStep = 10 // between two lines when the output is not a terminal
)

// progress shows an initial sync: as a bar that is redrawn on a terminal, else
// as a line whenever the state changes or another tenth is done.
type progress struct {
	out      *terminal
	state    string
	percent  int // of the last plain line
	warned   map[string]bool
	drawn    bool
	finished bool
}

func (p *progress) show(s control.Status) {
	if p.finished {
		return
	}
	for _, w := range s.Warnings {
		if !p.warned[w] {
			if p.warned == nil {
				p.warned = map[string]bool{}
			}
			p.warned[w] = true
			p.clear()
			fmt.Fprintf(p.out, "%s %s\n", p.out.paint(yellow, "warning:"), safeText(w))
		}
	}
	if p.out.isTerminal {
		p.clear()
		fmt.Fprint(p.out, clip(barLine(s), p.out.width()-1))
		p.drawn = true
		return
	}
	percent := percentOf(s.Sync)
	if s.State == p.state && percent/percentStep == p.percent/percentStep {
		return
	}
	p.state, p.percent = s.State, percent
	fmt.Fprintln(p.out, plainLine(s))
}

// finish leaves the cursor at the start of an empty line.
func (p *progress) finish() {
	p.clear()
	p.finished = true
}

func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.drawn = false
	}
}

func percentOf(s *control.SyncStatus) int {
	if s == nil || s.TotalBytes == 0 {
		return 0
	}
	return int(min(float64(s.DoneBytes)/float64(s.TotalBytes), 1) * 100)
}

func barLine(s control.Status) string {
	if s.Sync == nil {
		return safeText(s.State)
	}
	full := percentOf(s.Sync) * barWidth / 100
	return fmt.Sprintf("%s [%s%s] %s", safeText(s.State), strings.Repeat("#", full), strings.Repeat("-", barWidth-full), syncText(s.Sync))
}

func plainLine(s control.Status) string {
	if s.Sync == nil {
		return safeText(s.State)
	}
	return safeText(s.State) + " " + syncText(s.Sync)
}

// syncText says how far a sync is. A guest that keeps writing makes the total grow.
func syncText(s *control.SyncStatus) string {
	text := fmt.Sprintf("%d%%  %s of %s", percentOf(s), byteCount(float64(s.DoneBytes)), byteCount(float64(s.TotalBytes)))
	if s.RateBps > 0 {
		text += "  " + byteCount(s.RateBps) + "/s"
	}
	if s.EtaS > 0 {
		eta := time.Duration(s.EtaS * float64(time.Second))
		text += "  ETA " + max(eta.Round(time.Second), time.Second).String()
	}
	return text
}

func clip(line string, width int) string {
	if r := []rune(line); len(r) > width && width > 0 {
		return string(r[:width])
	}
	return line
}
