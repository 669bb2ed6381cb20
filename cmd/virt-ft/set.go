package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) setCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set DOMAIN",
		Short: "Change how a protected domain is paced, and show it",
		Long: `Change how often and for how long checkpoints stop DOMAIN, which this host must
be the primary of, and for how long its output may wait. It is in force at once
and until the protection ends. Prints what is in force then; without options
nothing is changed.`,
		Example: `  virt-ft set web1
  virt-ft set web1 --epoch-idle 50ms --held-max 5s`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.protectedDomains(),
	}
	pacing := newPacingFlags(cmd.Flags())
	cmd.Flags().DurationVar(&pacing.held, heldMaxFlag, 0,
		"give the backup up, as if it were silent, once output has waited for this long; 0: output waits for as long as it takes")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.ask(output, func(c *control.Client) error {
			change, err := pacing.change()
			if err != nil {
				return err
			}
			now, err := c.Set(cmd.Context(), control.SetRequest{Domain: args[0], PacingChange: change})
			if err != nil {
				return err
			}
			return a.show(output, now, func() {
				table(a.out, [][]cell{
					{{text: "epoch min"}, {text: nanos(now.MinNs)}},
					{{text: "epoch idle"}, {text: nanos(now.IdleNs)}},
					{{text: "pause share"}, {text: share(now.PauseShareMax)}},
					{{text: "held max"}, {text: heldMax(now.HeldMaxNs)}},
				})
			})
		})
	}
	return cmd
}

// Names of options of protect and set.
const (
	epochMinFlag   = "epoch-min"
	epochIdleFlag  = "epoch-idle"
	pauseShareFlag = "pause-share"
	heldMaxFlag    = "held-max"
)

// pacingFlags are the options that change a control.Pacing. An option that is
// not given leaves its value alone.
type pacingFlags struct {
	flags           *pflag.FlagSet
	min, idle, held time.Duration
	share           float64
}

// newPacingFlags adds the options that protect and set have in common.
func newPacingFlags(flags *pflag.FlagSet) *pacingFlags {
	p := &pacingFlags{flags: flags}
	flags.DurationVar(&p.min, epochMinFlag, 0, `never two checkpoints closer than this, such as "2ms"`)
	flags.DurationVar(&p.idle, epochIdleFlag, 0, `time between checkpoints of a guest that sends nothing, such as "100ms"`)
	flags.Float64Var(&p.share, pauseShareFlag, 0, "share of its time that the guest may be paused, such as 0.2")
	return p
}

// change returns what the given options ask for. The daemon knows the bounds;
// here only nonsense is refused.
func (p *pacingFlags) change() (control.PacingChange, error) {
	var c control.PacingChange
	for _, d := range []struct {
		name  string
		value time.Duration
		least time.Duration
		to    **int64
	}{
		{epochMinFlag, p.min, 1, &c.MinNs}, {epochIdleFlag, p.idle, 1, &c.IdleNs}, {heldMaxFlag, p.held, 0, &c.HeldMaxNs},
	} {
		if !p.flags.Changed(d.name) {
			continue
		}
		if d.value < d.least {
			return c, usageError("--%s %s is not a time such as 2ms", d.name, d.value)
		}
		ns := d.value.Nanoseconds()
		*d.to = &ns
	}
	if p.flags.Changed(pauseShareFlag) {
		if !(p.share > 0 && p.share < 1) {
			return c, usageError("--%s %v is not between 0 and 1", pauseShareFlag, p.share)
		}
		c.PauseShareMax = &p.share
	}
	return c, nil
}

func nanos(ns int64) string { return time.Duration(ns).String() }

func share(s float64) string { return strconv.FormatFloat(100*s, 'g', 3, 64) + "%" }

func heldMax(ns int64) string {
	if ns == 0 {
		return "as long as it takes"
	}
	return nanos(ns)
}

// pacingText says a pacing in one line.
func pacingText(p control.Pacing) string {
	text := fmt.Sprintf("a checkpoint each %s to %s, paused for at most %s", nanos(p.MinNs), nanos(p.IdleNs), share(p.PauseShareMax))
	if p.HeldMaxNs > 0 {
		text += ", output waits at most " + nanos(p.HeldMaxNs)
	}
	return text
}
