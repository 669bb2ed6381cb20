package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

// Conditions of wait beside the states.
const (
	conditionSafe        = "safe"        // survives the loss of a host: protected or standby
	conditionUnprotected = "unprotected" // this host is neither its primary nor its backup
)

// conditions are the values of --for.
func conditions() []string {
	all := append(control.States(control.RolePrimary), control.States(control.RoleBackup)...)
	slices.Sort(all)
	all = slices.DeleteFunc(slices.Compact(all), func(s string) bool { return s == "stopped" }) // over before anybody can ask
	return append([]string{conditionSafe, conditionUnprotected}, all...)
}

func (a *app) waitCommand() *cobra.Command {
	var condition string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "wait DOMAIN",
		Short: "Wait until a domain is protected, or in another state",
		Long: `Wait until DOMAIN is, on this host, what --for says: "safe" (protected or standby,
whichever this host's part is), "unprotected" (this host has no part in it), or a
state as status shows it. A domain that nobody has protected yet is waited for, too.

Exits with 0 as soon as it is, at once if it is already; with 3 when its protection
ends instead; with 5 when --timeout is over. It listens and does not poll.`,
		Example: `  virt-ft protect web1 --to hostB --detach && virt-ft wait web1 --timeout 10m
  virt-ft wait web1 --for active --timeout 0 && logger "web1 runs here now"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.protectedDomains(),
	}
	cmd.Flags().StringVar(&condition, "for", conditionSafe, "safe, unprotected, or a state")
	cmd.Flags().DurationVar(&limit, "timeout", time.Minute, "for how long; 0: for ever")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(conditions(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(conditions(), condition) {
			return usageError("--for %s: known are %s", condition, orList(conditions()))
		}
		if limit < 0 {
			return usageError("--timeout %s is not a time such as 60s", limit)
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		w := &waiting{domain: args[0], condition: condition}
		return a.await(cmd.Context(), c, w, limit)
	}
	return cmd
}

// await waits for w's condition for at most limit, 0 being for ever.
func (a *app) await(ctx context.Context, c *control.Client, w *waiting, limit time.Duration) error {
	waitCtx, stop := context.WithCancel(ctx)
	defer stop()
	if limit > 0 {
		timer := time.AfterFunc(limit, stop)
		defer timer.Stop()
	}
	look := func() error { return w.look(waitCtx, c) }
	// Whatever happens after listening began comes as an event: so the first look
	// misses nothing. Events of other domains may be about one of the same name.
	err := c.Events(waitCtx, control.EventQuery{Follow: true}, look, func(control.Event) error { return look() })
	switch {
	case errors.Is(err, errReached):
		fmt.Fprintf(a.out, "%s is %s\n", safeText(w.domain), safeText(w.last))
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case waitCtx.Err() != nil:
		return control.Errorf(control.CodeTimeout, "virt-ft status "+w.domain, "%s is not %s after %s: it is %s", w.domain, w.condition, limit, dash(w.last))
	}
	return err
}

// errReached ends the wait: the condition holds.
var errReached = errors.New("reached")

// waiting is what wait knows of a domain.
type waiting struct {
	domain, condition string
	last              string // as people are told
	primary           bool   // this host was seen to be its primary
}

// look asks for the domain's state and returns errReached when the condition
// holds, and an error when it cannot come about any more.
func (w *waiting) look(ctx context.Context, c *control.Client) error {
	list, err := c.Status(ctx, w.domain)
	var known *control.Error
	switch {
	case errors.As(err, &known) && (known.Code == control.CodeNotProtected || known.Code == control.CodeNotFound):
		w.last = conditionUnprotected
		switch {
		case w.condition == conditionUnprotected:
			return errReached
		case w.primary:
			return err // it ended; a backup may be followed by a primary, which is worth waiting for
		}
		return nil
	case errors.As(err, &known) && known.Code == control.CodeUnavailable:
		return nil // libvirt is away, or the protection is still being taken up: its state will be an event
	case err != nil:
		return err
	case len(list) == 0:
		return nil
	}
	s := list[0]
	w.last, w.primary = strings.TrimSpace(s.State+" ("+s.Role+")"), s.Role == control.RolePrimary
	if s.State == w.condition || w.condition == conditionSafe && s.Safe() {
		return errReached
	}
	return nil
}
