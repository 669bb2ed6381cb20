package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of this command and of the daemon",
		Long: `Show the version of this command and of the daemon. A daemon that does not
answer is no failure.`,
		Example: "  virt-ft version -o json | jq -r .daemon.version",
		Args:    cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := output.check(); err != nil {
			return err
		}
		answer := struct {
			Client control.Version  `json:"client"`
			Daemon *control.Version `json:"daemon,omitempty"`
		}{Client: control.BuildVersion()}
		// A daemon that does not answer is no failure of this command.
		if c, err := a.client(); err == nil {
			defer c.Close()
			if v, err := c.Version(cmd.Context()); err == nil {
				answer.Daemon = &v
			}
		}
		return a.show(output, answer, func() {
			fmt.Fprintf(a.out, "virt-ft %s\n", describe(answer.Client))
			if answer.Daemon == nil {
				fmt.Fprintln(a.out, "daemon  not running")
				return
			}
			fmt.Fprintf(a.out, "daemon  %s\n", describe(*answer.Daemon))
		})
	}
	return cmd
}

func describe(v control.Version) string {
	text := v.Version
	if v.Revision != "" {
		text += " (" + v.Revision + ")"
	}
	if v.Host != "" {
		text += " on " + v.Host
	}
	return safeText(text)
}
