package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

// eventsShown is how many past events --follow begins with when nobody says how many.
const eventsShown = 10

func (a *app) eventsCommand() *cobra.Command {
	var q control.EventQuery
	var since string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened to the domains of this host",
		Long: `Show what happened to the domains of this host, the latest last: changes of
state, failovers, output that waits. The daemon keeps the last 1024 events since it
was started; the journal has those before.

With --follow show the last 10, and go on as things happen until interrupted. With
-o json one object per line, with -o yaml a document for each.`,
		Example: `  virt-ft events --since 1h
  virt-ft events -f --domain web1
  virt-ft events -f -n 0 -o json | jq -r 'select(.kind == "state") | .state'`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&q.Domain, "domain", "", "of this domain only, by name or UUID")
	cmd.Flags().IntVarP(&q.Last, "last", "n", -1, "how many of the past (default: all, with --follow 10)")
	cmd.Flags().StringVar(&since, "since", "", `not before this time: "10m" ago, "15:04", "2006-01-02 15:04:05"`)
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().Lookup("last").DefValue = "" // is said in its text
	_ = cmd.RegisterFlagCompletionFunc("domain", a.protectedDomains())
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		switch {
		case cmd.Flags().Changed("last") && q.Last < 0:
			return usageError("--last %d is not a number of events", q.Last)
		case !cmd.Flags().Changed("last") && q.Follow && since == "":
			q.Last = eventsShown
		}
		if q.Since, err = moment(since, time.Now()); err != nil {
			return err
		}
		return a.ask(output, func(c *control.Client) error {
			return c.Events(cmd.Context(), q, nil, func(e control.Event) error {
				return a.showNext(output, e, func() string { return eventLine(e) })
			})
		})
	}
	return cmd
}

// eventLine is an event of the last day, or with its date.
func eventLine(e control.Event) string {
	format := clockFormat
	if time.Since(e.At) > 24*time.Hour {
		format = time.DateOnly + " " + clockFormat
	}
	return fmt.Sprintf("%s  %s  %s  %s", e.At.Local().Format(format), safeText(dash(e.Domain)), safeText(e.Kind), safeText(e.Text))
}

// clockFormat is the time of day of what happened a moment ago.
const clockFormat = "15:04:05.000"

// moment reads a time: a duration before now, a time of today, or a date.
func moment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(strings.TrimPrefix(text, "-")); err == nil {
		return now.Add(-d), nil
	}
	for _, format := range []string{time.RFC3339Nano, time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(format, text, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, format := range []string{"15:04", time.TimeOnly} {
		if t, err := time.ParseInLocation(format, text, now.Location()); err == nil {
			y, m, d := now.Date()
			return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, now.Location()), nil
		}
	}
	return time.Time{}, usageError(`--since %s is neither a duration such as 10m nor a time such as "15:04" or "2006-01-02 15:04:05"`, text)
}
