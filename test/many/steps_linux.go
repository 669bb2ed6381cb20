package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// protect protects all guests from A to B.
func (c *crowd) protect(ctx context.Context) error {
	each, errs := make([]float64, len(c.guests)), make([]error, len(c.guests))
	room := make(chan struct{}, c.atOnce)
	begin := time.Now()
	var wg sync.WaitGroup
	for i, g := range c.guests {
		wg.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			start := time.Now()
			_, errs[i] = c.lab.A.Ctl(ctx, "protect", g.Name, "--to", c.lab.B.Name)
			each[i] = time.Since(start).Seconds()
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	all := time.Since(begin).Seconds()
	slices.Sort(each)
	c.result.Metric("protect_all_s", all)
	c.result.Metric("protect_p50_s", tool.Percentile(each, .5))
	c.result.Metric("protect_max_s", tool.Percentile(each, 1))
	say("all protected in %.1f s; a command took %.1f s in the median", all, tool.Percentile(each, .5))
	return nil
}

// work watches all guests work.
func (c *crowd) work(ctx context.Context) error {
	before, err := c.protections(ctx, c.lab.A, "protected")
	if err != nil {
		return err
	}
	start := time.Now()
	if err := c.shares(ctx, "protected"); err != nil {
		return err
	}
	after, err := c.protections(ctx, c.lab.A, "protected")
	if err != nil {
		return err
	}
	seconds := time.Since(start).Seconds()
	var epochs, p50, p99 []float64
	for name, now := range after {
		if now.Generation != before[name].Generation || now.Epoch.Acked < before[name].Epoch.Acked {
			return fmt.Errorf("%s began a session anew: it had %d epochs, and has %d", name, before[name].Epoch.Acked, now.Epoch.Acked)
		}
		epochs = append(epochs, float64(now.Epoch.Acked-before[name].Epoch.Acked)/seconds)
		p50, p99 = append(p50, now.Pause.P50Ms), append(p99, now.Pause.P99Ms)
	}
	slices.Sort(epochs)
	c.result.Metric("epochs_p50_hz", tool.Median(epochs))
	c.result.Metric("epochs_min_hz", epochs[0])
	c.result.Metric("pause_p50_ms", tool.Median(p50))
	c.result.Metric("pause_p99_ms", tool.Median(p99))
	c.result.Metric("pause_p99_max_ms", slices.Max(p99))
	say("%.1f epochs/s in the median, %.1f for the slowest; pause %.1f ms, p99 %.1f ms", tool.Median(epochs), epochs[0], tool.Median(p50), tool.Median(p99))
	return errors.Join(c.look("protected", c.lab.Hosts()...), c.lookAtStandbys())
}

// protections returns what a host says of all guests, once each is in a state.
func (c *crowd) protections(ctx context.Context, h *lab.Host, states ...string) (map[string]lab.Protection, error) {
	for {
		ps, err := h.Protections(ctx, "")
		by := map[string]lab.Protection{}
		missing := ""
		for _, p := range ps {
			by[p.Domain] = p
		}
		for _, g := range c.guests {
			if p := by[g.Name]; !slices.Contains(states, p.State) {
				missing = fmt.Sprintf("%s on %s is %q, not %v: %s", g.Name, h.Name, p.State, states, p.Error)
			}
		}
		if err == nil && missing == "" {
			return by, nil
		}
		if wait(ctx, pollEvery) != nil {
			return nil, errors.Join(ctx.Err(), err, errors.New(missing))
		}
	}
}

const pollEvery = 20 * time.Millisecond

// wait sleeps, unless ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// restartDaemon kills A's daemon: the next one is to take up all guests, before
// their standbys take over.
func (c *crowd) restartDaemon(ctx context.Context) error {
	if !c.restart {
		return nil
	}
	begin := time.Now()
	if err := c.lab.A.Daemon.Restart(ctx); err != nil {
		return err
	}
	ready := time.Since(begin).Seconds()
	if _, err := c.protections(ctx, c.lab.A, "protected"); err != nil {
		return err
	}
	all := time.Since(begin).Seconds()
	c.result.Metric("restart_ready_s", ready)
	c.result.Metric("restart_protected_s", all)
	say("daemon killed: the next one answers after %.1f s, all are protected again after %.1f s", ready, all)
	return c.look("restarted", c.lab.A)
}

// powerLoss cuts A's power.
func (c *crowd) powerLoss(ctx context.Context) error {
	begin := time.Now()
	c.lab.A.PowerOff()
	heard := make([]float64, len(c.guests))
	for i, g := range c.guests {
		v, err := c.out.WaitVoice(ctx, g.Ready.BootID, func(v lab.Voice) bool { _, ok := v.From(c.lab.B.Name, begin); return ok })
		if err != nil {
			return fmt.Errorf("%s is lost: %w", g.Name, err)
		}
		first, _ := v.From(c.lab.B.Name, begin)
		heard[i] = tool.Ms(first.First.Sub(begin).Nanoseconds())
	}
	active, err := c.protections(ctx, c.lab.B, "active")
	if err != nil {
		return err
	}
	var told []float64
	for _, p := range active {
		told = append(told, p.FailoverMs)
	}
	slices.Sort(heard)
	slices.Sort(told)
	for name, q := range map[string]float64{"p50": .5, "p99": .99, "max": 1} {
		c.result.Metric("failover_"+name+"_ms", tool.Percentile(heard, q))
		c.result.Metric("takeover_"+name+"_ms", tool.Percentile(told, q))
	}
	say("power cut: heard again after %.0f ms in the median, %.0f ms at the latest; the daemon's own part %.0f and %.0f ms",
		tool.Percentile(heard, .5), tool.Percentile(heard, 1), tool.Percentile(told, .5), tool.Percentile(told, 1))
	if err := c.look("active", c.lab.B); err != nil {
		return err
	}
	return c.sound(ctx)
}

// sound waits until each guest checked all of its memory on B, and counts what
// anybody forgot.
func (c *crowd) sound(ctx context.Context) error {
	var wrong []error
	for _, g := range c.guests {
		v, err := c.out.Voice(g.Ready.BootID)
		if err != nil {
			return err
		}
		from := v.Last.Passes
		if v, err = c.out.WaitVoice(ctx, g.Ready.BootID, func(v lab.Voice) bool { return v.Last.Passes >= from+2 }); err != nil {
			return fmt.Errorf("%s does not go on: %w", g.Name, err)
		}
		if v.Last.MemErrors != 0 || v.StepsBack != 0 || len(v.Speeches) != 2 {
			wrong = append(wrong, fmt.Errorf("%s: %d wrong pages, %d steps back, heard from %v", g.Name, v.Last.MemErrors, v.StepsBack, v.Speeches))
		}
	}
	c.result.Metric("lost", float64(len(wrong)))
	if len(wrong) == 0 {
		say("all %d go on, none forgot anything", len(c.guests))
	}
	return errors.Join(wrong...)
}
