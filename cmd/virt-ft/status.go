package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

const watchIntervalMin = 100 * time.Millisecond

func (a *app) statusCommand() *cobra.Command {
	var watch, quiet bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "status [DOMAIN]",
		Short: "Show which domains are protected, and how well",
		Long: `Show the domains of this host that are protected or stand by, or one of them in
detail. With --watch until interrupted; then -o json prints one array per line, and
-o yaml a document each time.

Exits with 3 when a domain shown does not survive the loss of one host now. With
--quiet that is all it tells.`,
		Example: `  virt-ft status web1
  virt-ft status --quiet web1 || echo "web1 is at risk"
  for d in $(virt-ft status -o name); do virt-ft unprotect "$d"; done
  virt-ft status -o json | jq -r '.[] | [.domain, .state] | @tsv'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.protectedDomains(),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "of --watch")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing, only exit with the code")
	output := outputFlag(cmd, formatWide, formatName)
	output.headersFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case interval < watchIntervalMin:
			return usageError("--interval %s is below %s", interval, watchIntervalMin)
		case watch && quiet:
			return usageError("--watch shows, and --quiet does not")
		}
		domain := ""
		if len(args) > 0 {
			domain = args[0]
		}
		return a.ask(output, func(c *control.Client) error {
			if watch {
				return a.watch(cmd, c, domain, interval, output)
			}
			list, err := c.Status(cmd.Context(), domain)
			if err == nil && !quiet {
				err = a.show(output, list, func() { a.printStatus(domain, list, output) })
			}
			if err == nil && slices.ContainsFunc(list, func(s control.Status) bool { return !s.Safe() }) {
				return exitError(control.ExitNotProtected)
			}
			return err
		})
	}
	return cmd
}

// watch shows the status until interrupted, which is how it is meant to end. A
// daemon that goes away is shown as such, and waited for.
func (a *app) watch(cmd *cobra.Command, c *control.Client, domain string, interval time.Duration, o *output) error {
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
		if a.out.isTerminal && !o.forPrograms() {
			fmt.Fprint(a.out, "\x1b[H\x1b[J")
		}
		switch {
		case known != nil:
			a.complain(known.Message, known.Remedy)
		case o.forPrograms():
			if err := o.next(a.out, list); err != nil {
				return err
			}
		default:
			a.printStatus(domain, list, o)
		}
		select {
		case <-tick.C:
		case <-cmd.Context().Done():
			return nil
		}
	}
}

func (a *app) printStatus(domain string, list []control.Status, o *output) {
	switch {
	case o.format == formatName:
		for _, s := range list {
			fmt.Fprintln(a.out, safeText(s.Domain))
		}
		return
	case domain != "" && len(list) == 1:
		a.printDetails(list[0])
		return
	case len(list) == 0:
		fmt.Fprintln(a.out, "no domain of this host is protected or stands by")
		return
	}
	var rows [][]cell
	columns := statusColumns(o.format == formatWide)
	if !o.noHeaders {
		var header []cell
		for _, c := range columns {
			header = append(header, cell{text: c.title, colour: bold})
		}
		rows = append(rows, header)
	}
	for _, s := range list {
		var row []cell
		for _, c := range columns {
			row = append(row, c.of(s))
		}
		rows = append(rows, row)
	}
	table(a.out, rows)
	for _, s := range list {
		a.printTroubles(s.Domain+": ", s)
	}
}

// statusColumn is a column of the table of domains.
type statusColumn struct {
	title string
	of    func(control.Status) cell
}

// statusColumns are those that fit 80 columns of a terminal, or all.
func statusColumns(wide bool) []statusColumn {
	text := func(of func(control.Status) string) func(control.Status) cell {
		return func(s control.Status) cell { return cell{text: of(s)} }
	}
	columns := []statusColumn{
		{"DOMAIN", text(func(s control.Status) string { return s.Domain })},
		{"ROLE", text(func(s control.Status) string { return s.Role })},
		{"STATE", func(s control.Status) cell { return cell{text: stateText(s), colour: stateColour(s)} }},
		{"PEER", text(func(s control.Status) string { return dash(s.Peer) })},
		{"PAUSE P50", text(func(s control.Status) string { return millis(s.Pause.P50Ms) })},
		{"P99", text(func(s control.Status) string { return millis(s.Pause.P99Ms) })},
		{"COMMITTED", text(ago)},
		{"OUTPUT", func(s control.Status) cell { return outputCell(s.Output) }},
	}
	if !wide {
		return columns
	}
	return append(columns, []statusColumn{
		{"EPOCH", text(func(s control.Status) string { return fmt.Sprint(s.Epoch.Committed) })},
		{"GEN", text(func(s control.Status) string { return fmt.Sprint(s.Generation) })},
		{"ARBITER", text(func(s control.Status) string { return dash(s.Arbiter) })},
		{"MEMORY", text(func(s control.Status) string { return bytesOrDash(float64(s.MemoryBytes), "") })},
		{"DIRTIED", text(func(s control.Status) string { return bytesOrDash(s.Throttle.DirtyBps, "/s") })},
		{"SENT", text(func(s control.Status) string { return bytesOrDash(s.RateBps, "/s") })},
		{"CLOCK", func(s control.Status) cell { return cell{text: dash(s.Clock.State), colour: clockColour(s.Clock)} }},
	}...)
}

// stateText is a domain's state and, while it is made, how far that is.
func stateText(s control.Status) string {
	if s.Sync != nil {
		return fmt.Sprintf("%s %d%%", s.State, percentOf(s.Sync))
	}
	return s.State
}
