package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

const (
	// Pace and jitter of requests: no rhythm that epochs could fall in with.
	requestPace, requestJitter = 15 * time.Millisecond, 20 * time.Millisecond
	// latencyWindows is how many windows requests go on for: each gives one
	// figure only.
	latencyWindows = 3
	// chatEveryMs is between two datagrams of a chatty guest.
	chatEveryMs = 1
)

// speeds returns how many pieces of each kind of work the guest does a second.
// It goes on working.
func (b *bench) speeds(ctx context.Context) (all speeds, err error) {
	for k, kind := range kinds() {
		if err = b.begin(ctx, kind); err != nil {
			return all, err
		}
		if all[k], err = b.pieces(ctx); err != nil {
			return all, err
		}
	}
	return all, nil
}

// begin has the guest work, until it has got under way.
func (b *bench) begin(ctx context.Context, kind string) error {
	if err := b.command(ctx, "work cpu "+kind); err != nil {
		return err
	}
	return during(ctx, warmUp)
}

// pieces counts for a window what is done a second.
func (b *bench) pieces(ctx context.Context) (float64, error) {
	began := time.Now()
	before, err := b.beacon.Spins()
	if err != nil {
		return 0, err
	}
	if err := during(ctx, b.o.window); err != nil {
		return 0, err
	}
	took := time.Since(began)
	after, err := b.beacon.Spins()
	if err == nil && after == before {
		err = errors.New("the guest did nothing")
	}
	return float64(after-before) / took.Seconds(), err
}

// chatty measures a guest that sends all the time while it works.
func (b *bench) chatty(ctx context.Context, to *talk, protected bool) error {
	if err := b.command(ctx, fmt.Sprintf("work chat %s %d", b.sink.LocalAddr(), chatEveryMs)); err != nil {
		return err
	}
	if err := b.begin(ctx, integer); err != nil {
		return err
	}
	before, err := b.usageIf(ctx, protected)
	if err != nil {
		return err
	}
	if to.Chatty, err = b.pieces(ctx); err != nil {
		return err
	}
	after, err := b.usageIf(ctx, protected)
	if err != nil {
		return err
	}
	to.ChattyUse = after.since(before)
	return b.command(ctx, "work off")
}

// usageIf looks at usage if there is a protection to look at.
func (b *bench) usageIf(ctx context.Context, protected bool) (usage, error) {
	if !protected {
		return usage{}, nil
	}
	return b.usage(ctx)
}

// paced forces a rate of checkpoints, and measures the guest's speed and what
// the daemons take meanwhile.
func (b *bench) paced(ctx context.Context, hz int) (p paced, err error) {
	if err := b.pace(ctx, hz); err != nil {
		return p, err
	}
	for k, kind := range kinds() {
		if err := b.begin(ctx, kind); err != nil {
			return p, err
		}
		before, err := b.usage(ctx)
		if err != nil {
			return p, err
		}
		if p.Speed[k], err = b.pieces(ctx); err != nil {
			return p, err
		}
		after, err := b.usage(ctx)
		if err != nil {
			return p, err
		}
		p.Use[k] = after.since(before)
	}
	return p, b.command(ctx, "work off")
}

// pace asks for exactly so many checkpoints a second.
func (b *bench) pace(ctx context.Context, hz int) error {
	every := (time.Second / time.Duration(hz)).String()
	return b.ctl(ctx, "set", b.guest.Name, "--epoch-min", every, "--epoch-idle", every, "--pause-share", shareMax)
}

// idle looks at a guest that does nothing, at the rate that was asked for last.
func (b *bench) idle(ctx context.Context, to *round) error {
	if err := during(ctx, warmUp); err != nil {
		return err
	}
	before, err := b.usage(ctx)
	if err != nil {
		return err
	}
	if err := during(ctx, 2*b.o.window); err != nil {
		return err
	}
	after, err := b.usage(ctx)
	if err != nil {
		return err
	}
	to.Idle = after.since(before)
	to.Memory, err = b.memory()
	return err
}

// latencies are those of requests to the guest, sorted.
func (b *bench) latencies(ctx context.Context) ([]time.Duration, error) {
	b.client++
	c, err := b.lab.StartClient(ctx, lab.ClientOptions{ID: b.client, Seed: uint64(b.client), TCP: 1, Pace: requestPace, Jitter: requestJitter})
	if err != nil {
		return nil, err
	}
	defer c.Stop()
	if err := during(ctx, warmUp); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := during(ctx, latencyWindows*b.o.window); err != nil {
		return nil, err
	}
	all := c.Latencies(began, time.Now())
	if len(all) == 0 {
		err = errors.New("no request was answered")
	}
	return all, errors.Join(err, c.Verdict().Err())
}

// integer is the kind of work that needs nothing but a processor.
const integer = "integer"

// kinds of work that the guest knows.
func kinds() [kindCount]string { return [...]string{integer, "walk", "write"} }

// rates are the checkpoints a second that are asked for; the last is the highest.
func rates() [rateCount]int { return [...]int{10, 40, 100} }

func rateName(i int) string { return strconv.Itoa(rates()[i]) + "hz" }
