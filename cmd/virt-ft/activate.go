package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) activateCommand() *cobra.Command {
	var force bool
	cmd := a.onDomain(&cobra.Command{
		Use:   "activate DOMAIN",
		Short: "Let this host's copy of a domain go on alone",
		Long: `Let this host's copy of DOMAIN go on alone. This is the operator's decision that
the other host's copy does not run and never will again in this generation: with
the arbiter "manual" nobody else can know.

On the backup's host the standby runs on from its last committed epoch. On the
primary's host the guest runs already, but what it sends waits while nobody knows
whether the standby took over: from now on it is sent again.

Refused while the other host answers, unless --force is given. On the primary's
host --force also lets a fenced guest go on: one that the backup won, and was lost
before it ran. The arbiter's records are corrected first; if the backup ran the
guest after all, they say so, and nothing is done.`,
		Example: "  virt-ft activate web1",
	}, "%s runs on this host, alone", func(ctx context.Context, c *control.Client, domain string) error {
		return c.Activate(ctx, domain, force)
	})
	cmd.Flags().BoolVar(&force, "force", false, "even if the other host answers, or holds the right to run the domain and has not used it")
	return cmd
}
