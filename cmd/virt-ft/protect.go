package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) protectCommand() *cobra.Command {
	var req control.ProtectRequest
	var pacing *pacingFlags
	cmd := &cobra.Command{
		Use:   "protect DOMAIN --to HOST",
		Short: "Protect a running domain",
		Long: `Protect the running DOMAIN: make a standby of it on HOST and keep it a few
milliseconds behind. Nothing is changed in the guest, and it is not restarted.

From its first checkpoint on, what the guest sends waits until the standby has
what it depends on: nobody sees an answer that a failover would forget. So
sending is what checkpoints are taken for, as often as --epoch-min allows, and
every --epoch-idle otherwise; what is not given, the configuration says.

Writable disks are copied to flat raw images on HOST, and what is written to
them follows with each checkpoint. An image that is there from earlier is only
brought up to date.

Returns when the domain is protected; the daemon keeps it so. Interrupting the
command before that cancels: the standby is removed and the guest runs on
unprotected. With --detach the command returns once the copying has begun.

With --dry-run nothing is done: it prints what check finds and what would be done,
with -o also for programs, and exits with 1 if it would be refused.`,
		Example: `  virt-ft protect web1 --to hostB
  virt-ft protect web1 --to hostB --dry-run
  virt-ft protect web1 --to hostB --disk vda=/srv/web1.raw --epoch-idle 50ms`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.runningDomains(),
	}
	f := cmd.Flags()
	a.toFlag(cmd, &req.To, "the host that holds the standby: a peer of the configuration, or an address")
	pacing = newPacingFlags(f) // defaults: those of the configuration
	f.StringVar(&req.Arbiter, "arbiter", "", `who decides after a loss of contact: file, etcd, fence, manual, or in order like etcd+fence (default: that of the configuration)`)
	f.StringToStringVar(&req.Disks, "disk", nil, `where the copy of a disk goes on HOST, such as vda=/srv/web1.raw; may be repeated
(default: disks.place of its configuration)`)
	f.BoolVar(&req.DryRun, "dry-run", false, "only find out whether it could be done")
	f.BoolVar(&req.Detach, "detach", false, "do not wait until the domain is protected")
	_ = cmd.MarkFlagRequired("to")
	_ = cmd.RegisterFlagCompletionFunc("arbiter", cobra.FixedCompletions(arbiterKinds(), cobra.ShellCompDirectiveNoFileComp))
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		change, err := pacing.change()
		if err == nil {
			err = checkArbiter(req.Arbiter)
		}
		if err != nil {
			return err
		}
		req.Domain, req.Pacing = args[0], change
		switch {
		case req.DryRun && req.Detach:
			return usageError("--dry-run does nothing that --detach could leave alone")
		case !req.DryRun && output.format != formatTable:
			return usageError("-o is of --dry-run; what became of a protection tells virt-ft status -o %s", output.format)
		}
		return a.ask(output, func(c *control.Client) error {
			if req.DryRun {
				return a.dryRun(cmd, c, req, output)
			}
			return a.protect(cmd, c, req)
		})
	}
	return cmd
}

func arbiterKinds() []string {
	return []string{config.ArbiterFile, config.ArbiterEtcd, config.ArbiterFence, config.ArbiterManual}
}

// checkArbiter refuses what cannot be the value of --arbiter; the daemon knows
// which kinds go together.
func checkArbiter(kinds string) error {
	if kinds == "" {
		return nil // the configuration says
	}
	for _, kind := range strings.Split(kinds, config.ArbiterThen) {
		if !slices.Contains(arbiterKinds(), kind) {
			return usageError("--arbiter %s: known are %s, and some of them in order, joined by %s", kinds, orList(arbiterKinds()), config.ArbiterThen)
		}
	}
	return nil
}

// dryRunAnswer is what protect --dry-run tells programs.
type dryRunAnswer struct {
	Possible bool                `json:"possible"`
	Why      string              `json:"why,omitempty"`    // not
	Remedy   string              `json:"remedy,omitempty"` // what to do then
	Plan     *control.Status     `json:"plan,omitempty"`   // what would be in force
	Check    control.CheckReport `json:"check"`
}

// dryRun prints what a protection would meet and be. It exits with 1 if it would
// be refused.
func (a *app) dryRun(cmd *cobra.Command, c *control.Client, req control.ProtectRequest, o *output) error {
	var answer dryRunAnswer
	var err error
	if answer.Check, err = c.Check(cmd.Context(), control.CheckRequest{Domain: req.Domain, To: req.To, NoBandwidth: true}); err != nil {
		return err
	}
	err = c.Protect(cmd.Context(), req, func(s control.Status) { answer.Plan = &s })
	var refused *control.Error
	switch {
	case err == nil:
		answer.Possible = answer.Check.Worst() != control.LevelFail
	case errors.As(err, &refused) && refused.Code != control.CodeInvalid:
		answer.Why, answer.Remedy = refused.Message, refused.Remedy
	default:
		return err
	}
	if err := a.show(o, answer, func() { a.printDryRun(req, answer) }); err != nil {
		return err
	}
	if !answer.Possible {
		return exitError(control.ExitError)
	}
	return nil
}

func (a *app) printDryRun(req control.ProtectRequest, answer dryRunAnswer) {
	a.printReport(answer.Check)
	if !answer.Possible {
		if answer.Check.Worst() != control.LevelFail {
			a.complain(answer.Why, answer.Remedy)
		}
		return
	}
	fmt.Fprintln(a.out)
	fmt.Fprintln(a.out, a.out.paint(bold, "would be done"))
	rows := [][]cell{{{text: "  standby"}, {text: fmt.Sprintf("of %s on %s, paused, a copy of all its memory", req.Domain, req.To)}}}
	if p := answer.Plan; p != nil {
		rows = append(rows, []cell{{text: "  peer"}, {text: p.Peer}}, []cell{{text: "  arbiter"}, {text: p.Arbiter}}, []cell{{text: "  pacing"}, {text: pacingText(p.Pacing)}})
		for _, d := range p.Disks {
			rows = append(rows, []cell{{text: "  disk " + d.Name}, {text: "copied to " + d.Path}})
		}
	}
	table(a.out, rows)
	fmt.Fprintf(a.out, "nothing was done: leave --dry-run out to do it\n")
}

func (a *app) protect(cmd *cobra.Command, c *control.Client, req control.ProtectRequest) error {
	p := &progress{out: a.out}
	err := c.Protect(cmd.Context(), req, p.show)
	p.finish()
	switch {
	case err != nil && cmd.Context().Err() != nil:
		if req.Detach {
			return err
		}
		fmt.Fprintf(a.err, "cancelled: %s runs on unprotected\n", safeText(req.Domain))
		return exitError(control.ExitInterrupted)
	case err != nil:
		return err
	case req.Detach:
		fmt.Fprintf(a.out, "%s is being protected: virt-ft status %[1]s --watch\n", safeText(req.Domain))
	default:
		fmt.Fprintf(a.out, "%s is protected to %s\n", safeText(req.Domain), safeText(req.To))
	}
	return nil
}
