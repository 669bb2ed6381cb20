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
		asJSON, err := wantJSON(*output)
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Events(cmd.Context(), func(e control.Event) error {
			if asJSON {
				return json.NewEncoder(a.out).Encode(e)
			}
			_, err := fmt.Fprintf(a.out, "%s  %s  %s  %s\n", e.At.Local().Format("15:04:05.000"),
				safeText(dash(e.Domain)), safeText(e.Kind), safeText(e.Text))
			return err
		})
	}
	return cmd
}
