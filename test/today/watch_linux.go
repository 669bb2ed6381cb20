package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

const (
	// nap is the pause between two looks at the guest's counter: a loop of its
	// own would take one of two processors from guest and daemons.
	nap = 100 * time.Microsecond
	// leadIn is for how long the counter is watched before and after.
	leadIn = 20 * time.Millisecond
	// stallMin is the shortest stall that is kept, silenceMin the shortest
	// silence of the guest's ticks.
	stallMin   = time.Millisecond
	silenceMin = 2 * tickEveryMs * time.Millisecond
	stallsMax  = 1 << 16
)

// watched looks at the guest's counter while f does something and returns each
// time for which it stood still.
func watched(ctx context.Context, b *lab.Beacon, f func() error) ([]time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type seen struct {
		stalls []time.Duration
		err    error
	}
	found := make(chan seen, 1)
	go func() {
		stalls, err := watch(ctx, b)
		found <- seen{stalls, err}
	}()
	err := during(ctx, leadIn)
	if err == nil {
		err = f()
	}
	if err == nil {
		err = during(ctx, leadIn)
	}
	cancel()
	s := <-found
	return s.stalls, errors.Join(err, s.err)
}

// watch looks until ctx ends. A stall lasts from the look that saw the counter
// move for the last time to the last one that saw it stand: one nap less than it
// may have been, and nothing more for looks that come late on a busy machine.
func watch(ctx context.Context, b *lab.Beacon) (stalls []time.Duration, err error) {
	last, err := b.Spins()
	moved := time.Now()
	stood := moved
	for err == nil && ctx.Err() == nil {
		time.Sleep(nap)
		now := time.Now()
		var v uint64
		if v, err = b.Spins(); err != nil || v == last {
			stood = now
			continue
		}
		if still := stood.Sub(moved); still >= stallMin && len(stalls) < stallsMax {
			stalls = append(stalls, still)
		}
		last, moved, stood = v, now, now
	}
	return stalls, err
}

// longest returns the n longest, the longest first; zeros where there are fewer.
func longest(stalls []time.Duration, n int) []time.Duration {
	all := slices.SortedFunc(slices.Values(stalls), func(a, b time.Duration) int { return int(b - a) })
	if len(all) < n {
		all = append(all, make([]time.Duration, n-len(all))...)
	}
	return all[:n]
}
