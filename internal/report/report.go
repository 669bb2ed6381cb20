// Package report writes what a daemon remembers of a domain as one HTML file that
// needs nothing else: plots of the last hour, checkpoints, events, settings and what
// check found. It can be sent to somebody, printed, and opened in years.
package report

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/plot"
)

//go:embed report.html
var files embed.FS

// epochsShown and eventsShown bound the tables.
const (
	epochsShown = 60
	eventsShown = 200
)

// Report is what is written.
type Report struct {
	History control.History
	Version control.Version
	// Check is what check found, and CheckFailed why it could not be asked.
	Check       *control.CheckReport
	CheckFailed string
}

// Write writes the file.
func (r *Report) Write(w io.Writer) error {
	t, err := template.New("report.html").Funcs(template.FuncMap{
		"ms": milliseconds, "bytes": func(n uint64) string { return byteCount(float64(n)) }, "clock": func(t time.Time) string { return t.Format("15:04:05") },
		"stamp": func(t time.Time) string { return t.Format("2006-01-02 15:04:05 MST") },
		"dirty": func(e control.Epoch) int { return e.LivePages + e.PausePages },
	}).ParseFS(files, "report.html")
	if err != nil {
		return err
	}
	return t.Execute(w, r.page())
}

// page is what the template shows.
type page struct {
	*Report
	Style    template.CSS
	From     time.Time
	Facts    []fact
	Charts   []template.HTML
	Epochs   []control.Epoch // the last first
	Events   []control.Event // the last first
	Findings []section
}

type fact struct{ Name, Value string }

type section struct {
	Name     string
	Findings []control.Finding
}

func (r *Report) page() *page {
	h := &r.History
	p := &page{Report: r, Style: template.CSS(plot.Style), From: h.Now.Add(-window), Facts: r.facts()} // a constant
	for _, c := range charts() {
		if svg := c.draw(h); svg != "" {
			p.Charts = append(p.Charts, template.HTML(svg)) // package plot escapes texts
		}
	}
	p.Epochs = slices.Clone(h.Epochs[max(0, len(h.Epochs)-epochsShown):])
	slices.Reverse(p.Epochs)
	p.Events = slices.Clone(h.Events[max(0, len(h.Events)-eventsShown):])
	slices.Reverse(p.Events)
	if c := r.Check; c != nil {
		for _, s := range []section{{"Host " + c.HostName, c.Host}, {"Peer " + c.PeerName, c.Peer}, {"Domain " + c.DomainName, c.Domain}} {
			if len(s.Findings) > 0 {
				p.Findings = append(p.Findings, s)
			}
		}
	}
	return p
}

// facts are the sums of the hour, and what holds at its end.
func (r *Report) facts() []fact {
	h, s := &r.History, &r.History.Status
	state := s.Role + ", " + s.State
	if !h.Live {
		state = "ended; it was " + state
	}
	f := []fact{{"state", state}, {"since", s.Since.Format("15:04:05 on 2006-01-02")}, {"peer", s.Peer}, {"generation", fmt.Sprint(s.Generation)}}
	if s.Arbiter != "" {
		f = append(f, fact{"arbiter", s.Arbiter})
	}
	if s.MemoryBytes > 0 {
		f = append(f, fact{"memory", byteCount(float64(s.MemoryBytes))})
	}
	var epochs, longest, sent, held float64
	for i := range h.Slots {
		x := &h.Slots[i]
		epochs, longest = epochs+float64(x.Epochs), max(longest, float64(x.PausedMs.Max))
		sent, held = sent+float64(x.SentBytesSum), max(held, x.OldestMs)
	}
	if epochs > 0 {
		f = append(f, fact{"checkpoints in the hour", count(epochs)}, fact{"longest pause", milliseconds(longest)},
			fact{"sent in the hour", byteCount(sent)}, fact{"longest wait of a frame", milliseconds(held)})
	}
	if s.Pacing.IdleNs > 0 {
		p := s.Pacing
		f = append(f, fact{"pace", fmt.Sprintf("every %v to %v, pauses at most %.0f %% of the time", time.Duration(p.MinNs), time.Duration(p.IdleNs), p.PauseShareMax*100)})
	}
	if c := s.Clock; c.State != "" {
		f = append(f, fact{"clock", fmt.Sprintf("%s, drift %s", c.State, milliseconds(c.DriftUs/1000))})
	}
	if s.FailoverMs > 0 {
		f = append(f, fact{"last failover", milliseconds(s.FailoverMs) + " from the detection to the running guest"})
	}
	return f
}

func milliseconds(v float64) string {
	if math.Abs(v) >= 10000 {
		return plot.Number(v/1000) + " s"
	}
	return plot.Number(v) + " ms"
}

func count(v float64) string {
	digits := fmt.Sprintf("%.0f", v)
	var b strings.Builder
	for i, c := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteString("\u202f") // a narrow space
		}
		b.WriteRune(c)
	}
	return b.String()
}

func byteCount(v float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	return plot.Number(v) + " " + units[i]
}
