package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) unprotectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unprotect DOMAIN",
		Short: "Stop protecting a domain",
		Long:  "Stop protecting DOMAIN: it runs on where it is, and its standby is removed.",
		Args:  cobra.ExactArgs(1),
		RunE: a.onDomain("%s is no longer protected", func(ctx context.Context, c *control.Client, domain string) error {
			return c.Unprotect(ctx, domain)
		}),
	}
}
