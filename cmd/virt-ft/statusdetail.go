package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
)

// phasesText says where the time of the pauses went.
func phasesText(p control.Phases) string {
	text := fmt.Sprintf("stop %s, gate %s, scan %s, copy %s", millis(p.StopMs), millis(p.GateMs), millis(p.ScanMs), millis(p.CopyMs))
	if p.HoldMs > 0 {
		text += ", held " + millis(p.HoldMs)
	}
	if p.ClockMs > 0 {
		text += ", clock " + millis(p.ClockMs)
	}
	return text + ", device state " + millis(p.DeviceMs)
}

// shipText says how memory travels.
func shipText(s *control.ShipStatus) string {
	text := fmt.Sprintf("%d pages: %d zero, %d the same as before; %d connections, %s", s.Pages, s.ZeroPages, s.SamePages, s.Streams, dash(s.ZeroCopy))
	if s.Packed {
		text += fmt.Sprintf(", packed to %.0f%%", 100*s.PackRatio)
	}
	return text
}

// throttleText says what decides the pace.
func throttleText(t control.ThrottleStatus) string {
	text := t.Reason
	if t.Share > 0 {
		text = fmt.Sprintf("slowed down by %s: %s", share(t.Share), text)
	}
	if t.LinkBps > 0 {
		text += fmt.Sprintf(" (writes %s/s, link %s/s)", byteCount(t.DirtyBps), byteCount(t.LinkBps))
	}
	return text
}

// diskText says in a line where a disk is, and what it cost to replicate it.
func diskText(d control.DiskStatus) string {
	text := fmt.Sprintf("%s, %s", d.Path, byteCount(float64(d.SizeBytes)))
	if d.WrittenBytes > 0 {
		text += fmt.Sprintf(", %s written: %s sent, %s equal", byteCount(float64(d.WrittenBytes)), byteCount(float64(d.SentBytes)), byteCount(float64(d.EqualBytes)))
	}
	return text
}

// outputCell says in a word what becomes of a guest's output.
func outputCell(o *control.OutputStatus) cell {
	switch {
	case o == nil:
		return cell{text: "-"}
	case o.Stalled != "":
		return cell{text: "stalled", colour: red}
	case o.Mode == control.OutputClosed:
		return cell{text: o.Mode, colour: red}
	}
	return cell{text: o.Mode}
}

// outputText says in a line what becomes of a guest's output.
func outputText(o *control.OutputStatus) string {
	if o == nil {
		return "-"
	}
	parts := []string{o.Mode}
	if o.HeldFrames > 0 {
		parts[0] += fmt.Sprintf(" %d frames (%s), the oldest for %s", o.HeldFrames, byteCount(float64(o.HeldBytes)), millis(max(o.OldestMs, 0.1)))
	}
	if o.Mode == control.OutputHolding {
		lease := "lease over"
		if o.LeaseMs > 0 {
			lease = "lease for " + millis(max(o.LeaseMs, 0.1))
		}
		parts = append(parts, lease)
	}
	parts = append(parts, fmt.Sprintf("%d released", o.ReleasedFrames))
	for _, c := range []struct {
		count uint64
		what  string
	}{
		{o.DroppedFull, "lost to a full queue"}, {o.DroppedLease, "refused without a lease"},
		{o.InputsLogged, "inputs logged"}, {o.InputsSkipped, "inputs not logged"},
	} {
		if c.count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.count, c.what))
		}
	}
	return strings.Join(parts, ", ")
}

func ago(s control.Status) string {
	if s.Epoch.Committed == 0 {
		return "-"
	}
	return millis(max(s.LastCommitAgeMs, 0.1)) + " ago"
}

// trouble is something about a domain that somebody should look at.
type trouble struct{ colour, word, text string }

func troublesOf(s control.Status) []trouble {
	var ts []trouble
	for _, w := range s.Warnings {
		ts = append(ts, trouble{yellow, "warning:", safeText(w)})
	}
	if s.Output != nil && s.Output.Stalled != "" {
		ts = append(ts, trouble{red, "stalled:", safeText(s.Output.Stalled)})
	}
	if s.Error != "" {
		ts = append(ts, trouble{red, "error:", safeText(s.Error)})
	}
	return ts
}

func (a *app) printTroubles(prefix string, s control.Status) {
	for _, t := range troublesOf(s) {
		fmt.Fprintf(a.out, "%s %s%s\n", a.out.paint(t.colour, t.word), safeText(prefix), t.text)
	}
}

func (a *app) printDetails(s control.Status) {
	table(a.out, detailRows(s))
	a.printTroubles("", s)
}

// detailRows is all that is known of a domain.
func detailRows(s control.Status) [][]cell {
	var rows [][]cell
	add := func(name, colour, format string, args ...any) {
		rows = append(rows, []cell{{text: name}, {text: fmt.Sprintf(format, args...), colour: colour}})
	}
	add("domain", bold, "%s", s.Domain)
	add("uuid", "", "%s", s.UUID)
	add("role", "", "%s", s.Role)
	since := ""
	if !s.Since.IsZero() {
		since = " since " + s.Since.Local().Format(time.DateTime)
	}
	add("state", stateColour(s), "%s%s", s.State, since)
	add("peer", "", "%s", dash(s.Peer))
	add("generation", "", "%d", s.Generation)
	add("arbiter", "", "%s", dash(s.Arbiter))
	if s.Sync != nil {
		add("sync", "", "%s", syncText(s.Sync))
	}
	add("epoch", "", "%d captured, %d acknowledged, %d committed %s", s.Epoch.Captured, s.Epoch.Acked, s.Epoch.Committed,
		strings.TrimPrefix(ago(s), "-"))
	add("epoch interval", "", "%s", millis(s.EpochMs))
	if s.Pacing != (control.Pacing{}) {
		add("pacing", "", "%s", pacingText(s.Pacing))
	}
	add("pause", "", "p50 %s, p99 %s, last %s", millis(s.Pause.P50Ms), millis(s.Pause.P99Ms), millis(s.Pause.LastMs))
	if p := s.Pause.Phases; p != (control.Phases{}) {
		add("pause spent on", "", "%s", phasesText(p))
	}
	add("last epoch", "", "%d pages (%s)", s.DirtyPages, byteCount(float64(s.DirtyPages)*4096))
	add("sent", "", "%s, now %s/s", byteCount(float64(s.BytesSent)), byteCount(s.RateBps))
	if s.Ship != nil {
		add("memory sent", "", "%s", shipText(s.Ship))
	}
	if t := s.Throttle; t.Reason != "" {
		colour := ""
		if t.Share > 0 {
			colour = yellow
		}
		add("pace", colour, "%s", throttleText(t))
	}
	add("memory", "", "%s", byteCount(float64(s.MemoryBytes)))
	for _, d := range s.Disks {
		add("disk "+d.Name, "", "%s", diskText(d))
	}
	add("output", outputCell(s.Output).colour, "%s", outputText(s.Output))
	add("clock", clockColour(s.Clock), "%s", clockText(s.Clock))
	if s.FailoverMs > 0 {
		add("last failover", "", "took %s", millis(s.FailoverMs))
	}
	return rows
}
