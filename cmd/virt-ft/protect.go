package main

import (
	"fmt"
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
unprotected. With --detach the command returns once the copying has begun.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := pacing.change()
			if err != nil {
				return err
			}
			req.Domain, req.Pacing = args[0], change
			return a.protect(cmd, req)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.To, "to", "", "the host that holds the standby: a peer of the configuration, or an address")
	pacing = newPacingFlags(f) // defaults: those of the configuration
	f.StringVar(&req.Arbiter, "arbiter", "", `who decides after a loss of contact: file, etcd, fence, manual, or in order like etcd+fence (default: that of the configuration)`)
	f.StringToStringVar(&req.Disks, "disk", nil, `where the copy of a disk goes on HOST, such as vda=/srv/web1.raw; may be repeated
(default: disks.place of its configuration)`)
	f.BoolVar(&req.DryRun, "dry-run", false, "only find out whether it could be done")
	f.BoolVar(&req.Detach, "detach", false, "do not wait until the domain is protected")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

func (a *app) protect(cmd *cobra.Command, req control.ProtectRequest) error {
	for _, kind := range strings.Split(req.Arbiter, config.ArbiterThen) {
		switch kind {
		case config.ArbiterFile, config.ArbiterEtcd, config.ArbiterFence, config.ArbiterManual:
		case "":
			if req.Arbiter == "" {
				continue // the configuration says
			}
			fallthrough
		default:
			return usageError("--arbiter %s: known are file, etcd, fence and manual, and some of them in order, joined by %s", req.Arbiter, config.ArbiterThen)
		}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	p := &progress{out: a.out}
	err = c.Protect(cmd.Context(), req, p.show)
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
	case req.DryRun:
		fmt.Fprintf(a.out, "%s can be protected to %s\n", safeText(req.Domain), safeText(req.To))
	case req.Detach:
		fmt.Fprintf(a.out, "%s is being protected: virt-ft status %[1]s --watch\n", safeText(req.Domain))
	default:
		fmt.Fprintf(a.out, "%s is protected to %s\n", safeText(req.Domain), safeText(req.To))
	}
	return nil
}
