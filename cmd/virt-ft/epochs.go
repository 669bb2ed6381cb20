package main

import (
	"encoding/json"
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
was sent, and when the backup had it. With --follow also those to come. With
-o json one object per line.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().IntVarP(&last, "last", "n", epochsShown, "how many")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if last < 0 {
			return usageError("--last %d is not a number of epochs", last)
		}
		return a.ask(*output, func(c *control.Client, asJSON bool) error {
			shown := 0
			return c.Epochs(cmd.Context(), args[0], last, follow, func(e control.Epoch) error {
				if asJSON {
					return json.NewEncoder(a.out).Encode(e)
				}
				if shown%epochsShown == 0 {
					if _, err := fmt.Fprintln(a.out, a.out.paint(bold, epochHeader())); err != nil {
						return err
					}
				}
				shown++
				_, err := fmt.Fprintln(a.out, epochLine(e))
				return err
			})
		})
	}
	return cmd
}

// epochColumns are the titles and widths of what epochLine writes. Times are in
// milliseconds.
func epochColumns() []struct {
	title string
	width int
} {
	return []struct {
		title string
		width int
	}{
		{"TIME", len(clockFormat)}, {"EPOCH", 8}, {"INTERVAL", 8}, {"PAUSED", 7}, {"STOP", 6}, {"GATE", 5}, {"SCAN", 5}, {"COPY", 5}, {"HOLD", 5}, {"DEVICE", 6},
		{"LIVE", 6}, {"PAGES", 6}, {"SAME", 6}, {"SENT", 9}, {"SHIP", 6}, {"ACK", 7},
	}
}

func epochHeader() string {
	var titles []string
	for _, c := range epochColumns() {
		titles = append(titles, c.title)
	}
	return columns(titles)
}

func epochLine(e control.Epoch) string {
	ms := func(v float64) string { return fmt.Sprintf("%.1f", v) }
	sent := byteCount(float64(e.SentBytes))
	if e.Packed {
		sent = "z " + sent
	}
	return columns([]string{e.At.Local().Format(clockFormat), fmt.Sprint(e.Epoch), ms(e.IntervalMs), ms(e.PausedMs), ms(e.StopMs), ms(e.GateMs), ms(e.ScanMs), ms(e.CopyMs),
		ms(e.HoldMs), ms(e.DeviceMs), fmt.Sprint(e.LivePages), fmt.Sprint(e.PausePages), fmt.Sprint(e.SamePages), sent, ms(e.ShipMs), ms(e.AckMs)})
}

// columns aligns fields to the right.
func columns(fields []string) string {
	var line strings.Builder
	for i, c := range epochColumns() {
		if i > 0 {
			line.WriteByte(' ')
		}
		fmt.Fprintf(&line, "%*s", c.width, fields[i])
	}
	return line.String()
}
