package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) activateCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "activate DOMAIN",
		Short: "Run the standby of a domain on this host",
		Long: `Run the standby of DOMAIN on this host, from its last committed epoch. This is
the operator's decision that the other host does not run it and never will again
in this generation: with the arbiter "manual" nobody else can know.

Refused while the other host answers, unless --force is given.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.Activate(cmd.Context(), args[0], force); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s runs on this host\n", safeText(args[0]))
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if the other host answers")
	return cmd
}
