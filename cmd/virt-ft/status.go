package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

const watchIntervalMin = 100 * time.Millisecond

func (a *app) statusCommand() *cobra.Command {
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "status [DOMAIN]",
		Short: "Show which domains are protected, and how well",
		Long: `Show the domains of this host that are protected or stand by, or one of them in
detail. With --watch until interrupted; then -o json prints one array per line.

Exits with 3 when a domain shown does not survive the loss of one host now.`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "of --watch")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := wantJSON(*output)
		if err != nil {
			return err
		}
		if interval < watchIntervalMin {
			return usageError("--interval %s is below %s", interval, watchIntervalMin)
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		domain := ""
		if len(args) > 0 {
			domain = args[0]
		}
		if watch {
			return a.watch(cmd, c, domain, interval, asJSON)
		}
		list, err := c.Status(cmd.Context(), domain)
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(a.out, list)
		} else {
			a.printStatus(domain, list)
		}
		if err == nil && !allSafe(list) {
			return exitError(control.ExitNotProtected)
		}
		return err
	}
	return cmd
}

func allSafe(list []control.Status) bool {
	for _, s := range list {
		if !s.Safe() {
			return false
		}
	}
	return true
}

// watch shows the status until interrupted, which is how it is meant to end. A
// daemon that goes away is shown as such, and waited for.
func (a *app) watch(cmd *cobra.Command, c *control.Client, domain string, interval time.Duration, asJSON bool) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		list, err := c.Status(cmd.Context(), domain)
		var known *control.Error
		switch {
		case cmd.Context().Err() != nil:
			return nil
		case err != nil && !errors.As(err, &known):
			return err
		}
		if a.out.isTerminal && !asJSON {
			fmt.Fprint(a.out, "\x1b[H\x1b[J")
		}
		switch {
		case known != nil:
			a.complain(known.Message, known.Remedy)
		case asJSON:
			var line bytes.Buffer
			if err := json.NewEncoder(&line).Encode(list); err != nil {
				return err
			}
			if _, err := a.out.Write(line.Bytes()); err != nil {
				return err
			}
		default:
			a.printStatus(domain, list)
		}
		select {
		case <-tick.C:
		case <-cmd.Context().Done():
			return nil
		}
	}
}

func (a *app) printStatus(domain string, list []control.Status) {
	if domain != "" && len(list) == 1 {
		a.printDetails(list[0])
		return
	}
	if len(list) == 0 {
		fmt.Fprintln(a.out, "no domain of this host is protected or stands by")
		return
	}
	rows := [][]cell{}
	var header []cell
	for _, title := range []string{"DOMAIN", "ROLE", "STATE", "PEER", "EPOCH", "PAUSE P50", "P99", "COMMITTED", "OUTPUT"} {
		header = append(header, cell{text: title, colour: bold})
	}
	rows = append(rows, header)
	for _, s := range list {
		state := s.State
		if s.Sync != nil {
			state += fmt.Sprintf(" %d%%", percentOf(s.Sync))
		}
		rows = append(rows, []cell{{text: s.Domain}, {text: s.Role}, {text: state, colour: stateColour(s)}, {text: dash(s.Peer)},
			{text: fmt.Sprint(s.Epoch.Committed)}, {text: millis(s.Pause.P50Ms)}, {text: millis(s.Pause.P99Ms)},
			{text: ago(s)}, outputCell(s.Output)})
	}
	table(a.out, rows)
	for _, s := range list {
		a.printTroubles(s.Domain+": ", s)
	}
}

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

func (a *app) printTroubles(prefix string, s control.Status) {
	for _, w := range s.Warnings {
		fmt.Fprintf(a.out, "%s %s\n", a.out.paint(yellow, "warning:"), safeText(prefix+w))
	}
	if s.Output != nil && s.Output.Stalled != "" {
		fmt.Fprintf(a.out, "%s %s\n", a.out.paint(red, "stalled:"), safeText(prefix+s.Output.Stalled))
	}
	if s.Error != "" {
		fmt.Fprintf(a.out, "%s %s\n", a.out.paint(red, "error:"), safeText(prefix+s.Error))
	}
}

func (a *app) printDetails(s control.Status) {
	rows := [][]cell{}
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
	table(a.out, rows)
	a.printTroubles("", s)
}
