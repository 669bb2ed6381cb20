package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

func guestMetrics() []string {
	return []string{"zc_cpu_ratio", "zc_not_copied_share", "zc_throughput_ratio"}
}

// Sizes of chunks that a sweep compares end at sweepMax. From evenFrom on the
// bytes make the time, below it the calls do: so less is sent then.
const (
	sweepMax = 1 << 20
	evenFrom = 128 << 10
)

func (o options) sweepMiB(chunk int) int { return max(2, o.mib*min(chunk, evenFrom)/evenFrom) }

// measureGuest has the guest send in both ways, round after round.
func measureGuest(ctx context.Context, o options, r *tool.Result, d *details) error {
	skip := func(why string) {
		for _, metric := range guestMetrics() {
			r.Skip(metric, why)
		}
	}
	if o.rounds == 0 {
		skip("left out: -rounds 0")
		return nil
	}
	s, err := newSender(ctx, o.init)
	var missing *lab.MissingError
	if errors.As(err, &missing) {
		skip(missing.Error())
		return nil
	}
	if err != nil {
		return err
	}
	defer s.close()
	g, err := s.rounds(ctx, o.mib, o.rounds, o.chunk)
	if err != nil {
		return err
	}
	d.Guest = &g
	if why := g.NIC.lacks(); why != "" {
		skip(why)
		return nil
	}
	if g.ZeroCopy.Completions == 0 {
		skip("nothing was lent to the guest's kernel: " + g.ZeroCopy.Mode)
		return nil
	}
	r.Metric("zc_cpu_ratio", g.CPURatio)
	r.Metric("zc_throughput_ratio", g.ThroughputRatio)
	r.Metric("zc_not_copied_share", g.NotCopiedShare)
	for chunk := chunkMin; o.sweep > 0 && chunk <= sweepMax; chunk *= 2 {
		g, err := s.rounds(ctx, o.sweepMiB(chunk), o.sweep, chunk)
		if err != nil {
			return err
		}
		d.Sweep = append(d.Sweep, sweepLine{chunk, g})
	}
	return nil
}

// rounds measures with one size of chunk. The way that comes first changes from
// round to round, and a first round warms up and does not count.
func (s *sender) rounds(ctx context.Context, mib, rounds, chunk int) (g guestResult, err error) {
	var pairs []pair
	for i := range rounds + 1 {
		var p pair
		for turn := range 2 {
			to, how := &p.plain, "plain"
			if (turn+i)%2 == 1 {
				to, how = &p.zerocopy, "zerocopy"
			}
			if *to, err = s.send(ctx, mib, how, chunk, discard); err != nil {
				return g, fmt.Errorf("round %d, %s in chunks of %d bytes: %w", i, how, chunk, err)
			}
		}
		if i == 0 {
			continue
		}
		pairs = append(pairs, p)
		say("guest, %d KiB, round %d of %d: busy %d against %d ms plain, vCPU %d against %d ms, %d of %d completions copied", chunk>>10, i, rounds,
			p.zerocopy.BusyNs/1e6, p.plain.BusyNs/1e6, p.zerocopy.vcpuNs/1e6, p.plain.vcpuNs/1e6, p.zerocopy.Copied, p.zerocopy.Completions)
	}
	g = summarize(pairs)
	g.MiB, g.Chunk, g.NIC = mib, chunk, pairs[0].zerocopy.NIC
	return g, nil
}
