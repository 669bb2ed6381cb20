package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
)

// completeTimeMax is how long the Tab key waits for the daemon.
const completeTimeMax = 2 * time.Second

// completion is what cobra asks for words that fit.
type completion = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective)

// protectedDomains completes the first argument with domains of which this host
// is the primary or the backup.
func (a *app) protectedDomains() completion {
	return a.completeDomain(func(ctx context.Context, c *control.Client) ([]cobra.Completion, error) {
		list, err := c.Status(ctx, "")
		var words []cobra.Completion
		for _, s := range list {
			words = append(words, cobra.CompletionWithDesc(s.Domain, s.Role+", "+s.State))
		}
		return words, err
	})
}

// runningDomains completes it with domains of this host that run, protected or not.
func (a *app) runningDomains() completion {
	return a.completeDomain(func(ctx context.Context, c *control.Client) ([]cobra.Completion, error) {
		list, err := c.Domains(ctx)
		var words []cobra.Completion
		for _, d := range list {
			switch {
			case !d.Active || d.Role == control.RoleBackup:
			case d.Role != "":
				words = append(words, cobra.CompletionWithDesc(d.Name, d.Role))
			default:
				words = append(words, d.Name)
			}
		}
		return words, err
	})
}

// completeDomain completes the first argument only. What cannot be asked for is no word:
// nobody wants a message while typing.
func (a *app) completeDomain(ask func(context.Context, *control.Client) ([]cobra.Completion, error)) completion {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeMax)
		defer cancel()
		words, err := ask(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return beginning(words, typed), cobra.ShellCompDirectiveNoFileComp
	}
}

// completePeers completes --to with the peers of the configuration.
func (a *app) completePeers(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	cfg, err := config.Load(a.config)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var words []cobra.Completion
	for _, name := range slices.Sorted(maps.Keys(cfg.Peers)) {
		words = append(words, cobra.CompletionWithDesc(name, cfg.Peers[name]))
	}
	return beginning(words, typed), cobra.ShellCompDirectiveNoFileComp
}

// toFlag adds --to.
func (a *app) toFlag(cmd *cobra.Command, to *string, usage string) {
	cmd.Flags().StringVar(to, "to", "", usage)
	_ = cmd.RegisterFlagCompletionFunc("to", a.completePeers)
}

// beginning returns the words that begin with what was typed. Control characters
// would be taken for more than a name.
func beginning(words []cobra.Completion, typed string) []cobra.Completion {
	var fit []cobra.Completion
	for _, w := range words {
		name, _, _ := strings.Cut(w, "\t")
		if strings.HasPrefix(w, typed) && name == safeText(name) {
			fit = append(fit, w)
		}
	}
	return fit
}
