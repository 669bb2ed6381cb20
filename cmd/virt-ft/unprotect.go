package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) unprotectCommand() *cobra.Command {
	return a.onDomain(&cobra.Command{
		Use:     "unprotect DOMAIN",
		Short:   "Stop protecting a domain",
		Long:    "Stop protecting DOMAIN: it runs on where it is, and its standby is removed.",
		Example: "  virt-ft unprotect web1",
	}, "%s is no longer protected", func(ctx context.Context, c *control.Client, domain string) error {
		return c.Unprotect(ctx, domain)
	})
}
