package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

// onDomain makes cmd, which has its words already, ask the daemon for one thing
// with a domain, and say then that it is done: said is a format for the domain's name.
func (a *app) onDomain(cmd *cobra.Command, said string, do func(context.Context, *control.Client, string) error) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = cobra.ExactArgs(1), a.protectedDomains()
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		if err := do(cmd.Context(), c, args[0]); err != nil {
			return err
		}
		fmt.Fprintf(a.out, said+"\n", safeText(args[0]))
		return nil
	}
	return cmd
}
