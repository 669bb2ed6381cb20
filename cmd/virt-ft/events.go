package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) eventsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens, as it happens",
		Long:  "Show what happens on this host from now on, until interrupted. With -o json one object per line.",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.ask(*output, func(c *control.Client, asJSON bool) error {
			return c.Events(cmd.Context(), func(e control.Event) error {
				if asJSON {
					return json.NewEncoder(a.out).Encode(e)
				}
				_, err := fmt.Fprintf(a.out, "%s  %s  %s  %s\n", e.At.Local().Format(clockFormat),
					safeText(dash(e.Domain)), safeText(e.Kind), safeText(e.Text))
				return err
			})
		})
	}
	return cmd
}

// clockFormat is the time of day of what happened a moment ago.
const clockFormat = "15:04:05.000"
