package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) unprotectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unprotect DOMAIN",
		Short: "Stop protecting a domain",
		Long:  "Stop protecting DOMAIN: it runs on where it is, and its standby is removed.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.Unprotect(cmd.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s is no longer protected\n", safeText(args[0]))
			return nil
		},
	}
}
