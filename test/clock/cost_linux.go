package main

import (
	"context"
	"errors"
)

const (
	costHz    = 50
	groupSize = 8 // checkpoints with, then without a keeper, in turn
	groupSkip = 2 // at the beginning of each: the tracer is new, its memory cold
)

// cost is what keeping the clock adds to pauses.
type cost struct {
	CPUs    int     `json:"cpus"`
	Samples int     `json:"samples"` // of each kind
	P50Us   float64 `json:"p50_us"`  // of the pause as the session measures it (Phases.PausedNs): with, minus without
	P99Us   float64 `json:"p99_us"`
	// Of the longest time between two reads of the guest's clock.
	GuestP50Us float64 `json:"guest_p50_us"`
	GuestP99Us float64 `json:"guest_p99_us"`
	// How long Resuming had to wait for the tracer, and how long QEMU was traced.
	WaitP50Us     float64 `json:"wait_p50_us"`
	AttachedP50Us float64 `json:"attached_p50_us"`
	BareP50Us     float64 `json:"bare_pause_p50_us"` // without a keeper, for comparison
}

// pauses are samples of one kind, in ns.
type pauses struct{ paused, guest, wait, attached []int64 }

// costs measures pauses with and without a keeper, in small groups in turn, so
// that other work of the machine hits both alike.
func costs(ctx context.Context, s *subject, groups int) (c cost, err error) {
	var kinds [2]pauses // without, with
	defer func() { err = errors.Join(err, s.release()) }()
	p := newPace(costHz)
	for g := range 2 * groups {
		kind := &kinds[g%2]
		if err := s.release(); err != nil {
			return c, err
		}
		if g%2 == 1 {
			if err := s.keep(ctx); err != nil {
				return c, err
			}
		}
		for i := range groupSize {
			if err := p.wait(ctx); err != nil {
				return c, err
			}
			from := s.CPU(0).Events
			got, err := s.checkpoint(ctx, nil)
			if err != nil {
				return c, err
			}
			if _, err := s.readFresh(ctx); err != nil {
				return c, err
			}
			gap, err := s.gapNs(from)
			if err != nil {
				return c, err
			}
			if i < groupSkip || gap == 0 {
				continue
			}
			kind.paused, kind.guest = append(kind.paused, got.Phases.PausedNs), append(kind.guest, gap)
			kind.wait = append(kind.wait, got.Phases.ClockNs)
			if s.clock.Keeper != nil {
				kind.attached = append(kind.attached, s.clock.Report().LastAttached.Nanoseconds())
			}
		}
	}
	return newCost(s.CPUs(), kinds[0], kinds[1]), s.check(ctx)
}

// gapNs is the longest time since event number from in which the first processor
// did not read its clock.
func (s *subject) gapNs(from uint64) (longest int64, err error) {
	events, _, err := s.EventsSince(0, from)
	if err != nil {
		return 0, err
	}
	page, err := s.page()
	if err != nil {
		return 0, err
	}
	for _, e := range events {
		longest = max(longest, int64(page.At(e.TSC)-page.At(e.PrevTSC)))
	}
	return longest, nil
}
