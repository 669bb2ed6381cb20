package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

// epochsShown is how many epochs are shown when nobody says how many.
const epochsShown = 20

func (a *app) epochsCommand() *cobra.Command {
	var last int
	var follow bool
	cmd := &cobra.Command{
		Use:   "epochs DOMAIN",
		Short: "Show where the time of each checkpoint went",
		Long: `Show the last acknowledged checkpoints of DOMAIN, which this host must be the
primary of: for how long each stopped the guest and what was done meanwhile, what
was sent, and when the backup had it; times in milliseconds. With --follow also
those to come. With -o json one object per line, with -o yaml a document for each.`,
		Example: `  virt-ft epochs web1 -n 5 -o wide
  virt-ft epochs web1 -f -n 0 -o json | jq .paused_ms`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.protectedDomains(),
	}
	cmd.Flags().IntVarP(&last, "last", "n", epochsShown, "how many")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	output := outputFlag(cmd, formatWide)
	output.headersFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if last < 0 {
			return usageError("--last %d is not a number of epochs", last)
		}
		return a.ask(output, func(c *control.Client) error {
			columns, shown := epochColumns(output.format == formatWide), 0
			return c.Epochs(cmd.Context(), args[0], last, follow, func(e control.Epoch) error {
				return a.showNext(output, e, func() string {
					line := epochLine(columns, e)
					if shown++; shown%epochsShown == 1 && !output.noHeaders {
						line = a.out.paint(bold, epochHeader(columns)) + "\n" + line
					}
					return line
				})
			})
		})
	}
	return cmd
}

// epochColumn is a column of what epochs prints, aligned to the right.
type epochColumn struct {
	title string
	width int
	text  func(control.Epoch) string
}

// epochColumns are those that fit 80 columns of a terminal, or all. Times are
// in milliseconds.
func epochColumns(wide bool) []epochColumn {
	ms := func(of func(control.Epoch) float64) func(control.Epoch) string {
		return func(e control.Epoch) string { return fmt.Sprintf("%.1f", of(e)) }
	}
	all := []struct {
		always bool
		epochColumn
	}{
		{true, epochColumn{"TIME", len(clockFormat), func(e control.Epoch) string { return e.At.Local().Format(clockFormat) }}},
		{true, epochColumn{"EPOCH", 7, func(e control.Epoch) string { return fmt.Sprint(e.Epoch) }}},
		{false, epochColumn{"INTERVAL", 8, ms(func(e control.Epoch) float64 { return e.IntervalMs })}},
		{true, epochColumn{"PAUSED", 7, ms(func(e control.Epoch) float64 { return e.PausedMs })}},
		{true, epochColumn{"STOP", 6, ms(func(e control.Epoch) float64 { return e.StopMs })}},
		{false, epochColumn{"GATE", 5, ms(func(e control.Epoch) float64 { return e.GateMs })}},
		{true, epochColumn{"SCAN", 5, ms(func(e control.Epoch) float64 { return e.ScanMs })}},
		{true, epochColumn{"COPY", 5, ms(func(e control.Epoch) float64 { return e.CopyMs })}},
		{false, epochColumn{"HOLD", 5, ms(func(e control.Epoch) float64 { return e.HoldMs })}},
		{true, epochColumn{"DEVICE", 6, ms(func(e control.Epoch) float64 { return e.DeviceMs })}},
		{false, epochColumn{"LIVE", 6, func(e control.Epoch) string { return fmt.Sprint(e.LivePages) }}},
		{true, epochColumn{"PAGES", 6, func(e control.Epoch) string { return fmt.Sprint(e.PausePages) }}},
		{false, epochColumn{"SAME", 6, func(e control.Epoch) string { return fmt.Sprint(e.SamePages) }}},
		{true, epochColumn{"SENT", 10, sentText}},
		{false, epochColumn{"SHIP", 6, ms(func(e control.Epoch) float64 { return e.ShipMs })}},
		{true, epochColumn{"ACK", 6, ms(func(e control.Epoch) float64 { return e.AckMs })}},
	}
	var columns []epochColumn
	for _, c := range all {
		if wide || c.always {
			columns = append(columns, c.epochColumn)
		}
	}
	return columns
}

// sentText is what an epoch sent, marked if its memory was packed.
func sentText(e control.Epoch) string {
	if e.Packed {
		return "z " + byteCount(float64(e.SentBytes))
	}
	return byteCount(float64(e.SentBytes))
}

func epochHeader(columns []epochColumn) string {
	var line []string
	for _, c := range columns {
		line = append(line, fmt.Sprintf("%*s", c.width, c.title))
	}
	return strings.Join(line, " ")
}

func epochLine(columns []epochColumn, e control.Epoch) string {
	var line []string
	for _, c := range columns {
		line = append(line, fmt.Sprintf("%*s", c.width, c.text(e)))
	}
	return strings.Join(line, " ")
}
