package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/virt-ft/virt-ft/internal/control"
)

// topSamplesMax is how many samples of each domain top keeps for its sparklines.
const topSamplesMax = 240

// topSample is one answer of the daemon.
type topSample struct {
	at     time.Time
	list   []control.Status
	epochs []control.Epoch // of the domain in detail
	events []control.Event
	err    error
}

// topTrack is what top remembers of a domain between samples.
type topTrack struct {
	at        time.Time
	committed uint64
	perSecond float64   // epochs
	pauses    []float64 // milliseconds, the last pause at each sample
}

// topView is what top shows: a model that is fed with samples and keys and draws
// itself as lines. Not safe for concurrent use.
type topView struct {
	paint func(colour, text string) string
	plain bool // ASCII only

	last     topSample // the last one that was an answer
	err      error     // of the last one, if it was none
	tracks   map[string]*topTrack
	selected string // name or UUID of a domain
	detail   bool
	help     bool
	sort     int
	top      int // first row shown
	rows     int // that fit, at the last drawing
}

// What the loop is to do after a key.
type topWish int

const (
	topNothing topWish = iota
	topQuit
	topSuspend
	topAgain
)

// take notes a sample.
func (v *topView) take(s topSample) {
	v.err = s.err
	if s.err != nil {
		return
	}
	v.last = s
	tracks := map[string]*topTrack{} // domains that are gone are forgotten
	for _, st := range s.list {
		t := v.tracks[trackKey(st)]
		if t == nil {
			t = &topTrack{}
		}
		if since := s.at.Sub(t.at).Seconds(); !t.at.IsZero() && since > 0 && st.Epoch.Committed >= t.committed {
			t.perSecond = float64(st.Epoch.Committed-t.committed) / since
		} else if st.EpochMs > 0 {
			t.perSecond = 1000 / st.EpochMs
		}
		t.at, t.committed = s.at, st.Epoch.Committed
		if t.pauses = append(t.pauses, st.Pause.LastMs); len(t.pauses) > topSamplesMax {
			t.pauses = t.pauses[1:]
		}
		tracks[trackKey(st)] = t
	}
	v.tracks = tracks
}

func trackKey(s control.Status) string { return s.Role + " " + s.UUID + " " + s.Domain }

// press reacts to a key.
func (v *topView) press(k key) topWish {
	if v.help && k != keyCtrlC && k != keySuspend {
		v.help = false
		return topNothing
	}
	switch k {
	case 'q', keyCtrlC:
		return topQuit
	case keySuspend:
		return topSuspend
	case '?', 'h':
		v.help = true
	case ' ', keyCtrlL:
		return topAgain
	case 's':
		v.sort = (v.sort + 1) % len(topSorts())
	case 'S':
		v.sort = (v.sort + len(topSorts()) - 1) % len(topSorts())
	case keyUp, 'k':
		v.move(-1)
		return v.againIfDetail()
	case keyDown, 'j':
		v.move(1)
		return v.againIfDetail()
	case keyHome, 'g':
		v.move(-len(v.last.list))
	case keyEnd, 'G':
		v.move(len(v.last.list))
	case keyEnter:
		v.move(0)
		v.detail = !v.detail && v.selected != ""
		return v.againIfDetail()
	case keyEscape:
		v.detail = false
	}
	return topNothing
}

func (v *topView) againIfDetail() topWish {
	if v.detail {
		v.last.epochs, v.last.events = nil, nil // of another domain
		return topAgain
	}
	return topNothing
}

// move selects a domain so many rows further.
func (v *topView) move(by int) {
	list := v.sorted()
	if len(list) == 0 {
		return
	}
	i := min(max(max(v.index(list), 0)+by, 0), len(list)-1)
	v.selected = list[i].Domain
	if v.index(list) != i { // two of one name
		v.selected = list[i].UUID
	}
}

// index is where the selected domain is; -1 if it is gone or none is.
func (v *topView) index(list []control.Status) int {
	return slices.IndexFunc(list, func(s control.Status) bool { return s.Domain == v.selected || s.UUID == v.selected && s.UUID != "" })
}

// topSort is an order of the rows.
type topSort struct {
	name string
	less func(a, b control.Status) int
}

func topSorts() []topSort {
	down := func(of func(control.Status) float64) func(a, b control.Status) int {
		return func(a, b control.Status) int { return cmp.Compare(of(b), of(a)) }
	}
	return []topSort{
		{"name", func(a, b control.Status) int { return 0 }},
		{"state", func(a, b control.Status) int {
			return cmp.Or(cmp.Compare(riskOf(b), riskOf(a)), strings.Compare(a.State, b.State))
		}},
		{"pause", down(func(s control.Status) float64 { return s.Pause.P99Ms })},
		{"dirtied", down(func(s control.Status) float64 { return s.Throttle.DirtyBps })},
		{"held", down(func(s control.Status) float64 {
			if s.Output == nil {
				return -1
			}
			return s.Output.OldestMs
		})},
		{"commit age", down(func(s control.Status) float64 { return s.LastCommitAgeMs })},
	}
}

// riskOf is 2 for a domain that a lost host would be the end of, 1 for one with
// warnings.
func riskOf(s control.Status) int {
	switch {
	case !s.Safe():
		return 2
	case len(troublesOf(s)) > 0:
		return 1
	}
	return 0
}

func (v *topView) sorted() []control.Status {
	list := slices.Clone(v.last.list)
	slices.SortStableFunc(list, func(a, b control.Status) int {
		return cmp.Or(topSorts()[v.sort].less(a, b), strings.Compare(a.Domain, b.Domain), strings.Compare(a.UUID, b.UUID))
	})
	return list
}

// page draws everything for a terminal of that size; a width of 0 is any, and a
// height of 0 asks for a table without head, keys and cursor, for a file.
func (v *topView) page(width, height int) []string {
	var lines []string
	batch := height == 0
	switch {
	case v.help:
		lines = append(v.head(width), v.helpLines()...)
	case v.detail:
		lines = v.detailLines(width, batch)
		if !batch {
			lines = append(v.head(width), lines...)
		}
	default:
		lines = v.listLines(width, height)
	}
	if batch {
		return lines
	}
	if room := max(height-1, 1); len(lines) > room {
		lines = lines[:room]
	} else {
		lines = append(lines, make([]string, room-len(lines))...)
	}
	return append(lines, v.paint(faint, clip(v.keysLine(), width)))
}

func (v *topView) keysLine() string {
	if v.help {
		return "any key: back"
	}
	if v.detail {
		return "q quit   Esc back   j k other domain   ? help"
	}
	return "q quit   j k choose   Enter details   s sort by: " + topSorts()[v.sort].name + "   ? help"
}

// head says how all are, and whether the daemon answers.
func (v *topView) head(width int) []string {
	if v.err != nil {
		text := "the daemon does not answer: " + v.err.Error() + "; trying again"
		if !v.last.at.IsZero() {
			text = fmt.Sprintf("what follows is %s old: ", time.Since(v.last.at).Round(time.Second)) + text
		}
		return []string{v.paint(red, clip(safeText(text), width)), ""}
	}
	if v.last.at.IsZero() {
		return []string{clip("virt-ft top: asking the daemon", width), ""}
	}
	safe := 0
	for _, s := range v.last.list {
		if s.Safe() {
			safe++
		}
	}
	text := fmt.Sprintf("virt-ft top  %s  domains: %d, safe: %d", v.last.at.Local().Format(time.TimeOnly), len(v.last.list), safe)
	line := clip(text, width)
	if risk := len(v.last.list) - safe; risk > 0 {
		line = clip(text, width-16) + "  " + v.paint(red, fmt.Sprintf("at risk: %d", risk))
	}
	return []string{line, ""}
}

// listLines draws the table of all domains, and what is wrong with them.
func (v *topView) listLines(width, height int) []string {
	list := v.sorted()
	var lines []string
	if height > 0 {
		lines = v.head(width)
	}
	if len(list) == 0 {
		if v.err == nil && !v.last.at.IsZero() {
			lines = append(lines, "no domain of this host is protected or stands by")
		}
		return lines
	}
	var troubles []string
	for _, s := range list {
		for _, t := range troublesOf(s) {
			troubles = append(troubles, v.paint(t.colour, t.word)+clip(" "+safeText(s.Domain)+": "+t.text, width-len(t.word)))
		}
	}
	columns := fitColumns(v.columns(list), width)
	lines = append(lines, v.paint(bold, columnLine(columns, func(c topColumn) string { return c.title }, nil)))
	first, last := v.window(list, height, len(lines), len(troubles))
	for i, s := range list[first:last] {
		mark := " "
		if height > 0 && v.index(list) == first+i {
			mark = ">"
		}
		line := columnLine(columns, func(c topColumn) string { return c.text(s) }, func(c topColumn, text string) string {
			if c.colour != nil {
				return v.paint(c.colour(s), text)
			}
			return text
		})
		if height > 0 {
			line = mark + line
		}
		lines = append(lines, line)
	}
	if height > 0 {
		lines[len(lines)-(last-first)-1] = " " + lines[len(lines)-(last-first)-1]
	}
	if more := len(list) - (last - first); more > 0 {
		lines = append(lines, v.paint(faint, fmt.Sprintf(" … and %d more", more)))
	}
	return append(append(lines, ""), troubles...)
}

// window returns which rows fit beside a head and some troubles, with the
// selected one among them.
func (v *topView) window(list []control.Status, height, head, troubles int) (first, last int) {
	if height == 0 {
		return 0, len(list)
	}
	v.rows = max(1, height-head-3-min(troubles, height/4))
	i := max(v.index(list), 0)
	v.top = min(v.top, i)
	v.top = max(v.top, i-v.rows+1)
	v.top = max(0, min(v.top, len(list)-v.rows))
	return v.top, min(len(list), v.top+v.rows)
}

func (v *topView) helpLines() []string {
	return []string{
		"EP/S     checkpoints a second       P50, P99  of recent pauses",
		"PAUSES   the last ones, over time   HELD      frames that wait",
		"OLDEST   how long one has waited    COMMIT    age of the last commit",
		"DIRTIED  written by the guest       SENT      to the backup",
		"DRIFT    of the guest's clock",
		"",
		"q            quit",
		"j k, arrows  choose a domain; g G the first, the last",
		"Enter        its details, and back; so does Esc",
		"s S          sort by another column",
		"space        ask again, now",
		"Ctrl-Z       suspend",
	}
}

// sparkline draws the last values, scaled to the largest.
func (v *topView) sparkline(values []float64, width int) string {
	levels := []rune("▁▂▃▄▅▆▇█")
	if v.plain {
		levels = []rune("_.-=+*%#")
	}
	if len(values) > width {
		values = values[len(values)-width:]
	}
	most := 0.0
	for _, x := range values {
		most = max(most, x)
	}
	var b strings.Builder
	for _, x := range values {
		i := 0
		if most > 0 {
			i = min(int(x/most*float64(len(levels))), len(levels)-1)
		}
		b.WriteRune(levels[max(i, 0)])
	}
	return b.String() + strings.Repeat(" ", max(0, width-len(values)))
}

// bar draws a share of width.
func (v *topView) bar(share float64, width int) string {
	full, rest := "█", "·"
	if v.plain {
		full, rest = "#", "."
	}
	n := min(max(int(share*float64(width)+0.5), 0), width)
	return strings.Repeat(full, n) + strings.Repeat(rest, width-n)
}

func padTo(text string, width int, right bool) string {
	pad := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
	if right {
		return pad + text
	}
	return text + pad
}

func utf8Locale(name string) bool {
	name = strings.ToLower(name)
	return strings.Contains(name, "utf-8") || strings.Contains(name, "utf8")
}
