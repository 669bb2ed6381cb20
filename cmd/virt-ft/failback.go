package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) failbackCommand() *cobra.Command {
	return a.onDomain(&cobra.Command{
		Use:   "failback DOMAIN",
		Short: "Move a protected guest to its backup, in order",
		Long: `Move the guest of DOMAIN to the host that stands by for it: it is stopped, all that
changed since the last checkpoint is brought there, and it goes on there, with the
same memory and connections. Nothing is lost, and nothing is decided by a failure.

Run it on the host where the guest runs, while it is protected. Use it to bring a
guest back after a failover, or to empty a host before its maintenance. If the move
fails the guest goes on where it was.`,
		Example: "  virt-ft failback web1",
	}, "%s runs on the other host", func(ctx context.Context, c *control.Client, domain string) error {
		return c.Failback(ctx, domain)
	})
}
