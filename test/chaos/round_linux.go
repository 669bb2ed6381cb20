package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

const (
	// momentMax bounds the random time from protected to the fault: many epochs.
	momentMax = 400 * time.Millisecond
	// warmAnswers is how many answers clients get before the fault.
	warmAnswers = 10
	// passesAfter is how often the guest verifies all of its memory afterwards:
	// the first pass may have begun before the fault.
	passesAfter = 2
	// retryEvery is the pause between two tries to protect again.
	retryEvery = 100 * time.Millisecond
	// noticePoll is how often is looked whether a loss was noticed.
	noticePoll = 20 * time.Millisecond
)

// round protects, strikes once, and judges. Afterwards the guest runs at c.home
// and both hosts are as before.
func (c *chaos) round(ctx context.Context, i int, k kind, rng *rand.Rand) (o outcome, err error) {
	spent, since := spent{}, time.Now()
	done := func(p phase) {
		now := time.Now()
		spent[p], since = now.Sub(since), now
	}
	defer func() { o.spent = spent }()
	if err := c.ready(ctx, rng); err != nil {
		return o, err
	}
	done(phaseReady)
	missing, from := c.out.Missing(), c.home
	fault := time.Now()
	if o, err = c.strike(ctx, k, rng, fault); err != nil {
		return o, errors.Join(fmt.Errorf("after the fault: %w", err), c.heardOnce(from), c.judge(ctx))
	}
	done(phaseStrike)
	// At once, under load: what is wrong now may soon be written over.
	if err := c.askDisks(ctx); err != nil {
		return o, errors.Join(err, c.judge(ctx))
	}
	done(phaseDisks)
	if err := errors.Join(c.verify(ctx), c.heardOnce(from)); err != nil {
		return o, errors.Join(err, c.judge(ctx))
	}
	done(phaseMemory)
	// A dead daemon's gate drops; else every frame of a committed epoch is heard.
	if missing = c.out.Missing() - missing; missing > 0 && !traits()[k].lossy {
		c.report.Forgotten += missing
		return o, errors.Join(fmt.Errorf("%d ticks that the guest had sent were never heard (the observer had no room for %d frames)", missing, c.out.Unread()), c.judge(ctx))
	}
	o.silence = c.client.LongestSilence(fault, time.Now())
	if err := errors.Join(c.lookAtImages(ctx, i), c.judge(ctx)); err != nil {
		return o, err
	}
	done(phaseImages)
	asked := c.report.Asked
	if err := c.protected(ctx); err != nil {
		return o, errors.Join(fmt.Errorf("protecting again: %w", err), c.judge(ctx))
	}
	if o.moved && c.report.Asked == asked {
		c.report.Reprotected++
	}
	done(phaseRepair)
	if i%compareEvery == 0 {
		err = c.compareImages(ctx)
	}
	return o, err
}

// ready waits for protection, for clients at work, and then for the moment.
func (c *chaos) ready(ctx context.Context, rng *rand.Rand) error {
	if err := c.protected(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	for want := c.client.Verdict().Acked + warmAnswers; c.client.Verdict().Acked < want; {
		if err := pause(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("clients are not answered: %w", err)
		}
	}
	if err := c.eraseSome(ctx, rng); err != nil {
		return err
	}
	return pause(ctx, upTo(rng, momentMax))
}

// upTo is a random time below d.
func upTo(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// moves waits until the guest goes on at the other host.
func (c *chaos) moves(ctx context.Context, fault time.Time) (outcome, error) {
	to := c.lab.Peer(c.home)
	sent, err := c.out.WaitAnswer(ctx, to.Name, fault)
	if err != nil {
		return outcome{}, err
	}
	first, err := c.client.WaitAnswer(ctx, sent)
	if err != nil {
		return outcome{}, err
	}
	// By itself it may be protected again before anybody looks.
	if _, err := to.WaitState(ctx, c.guest.Name, "active", "connecting", "syncing", "protected"); err != nil {
		return outcome{}, err
	}
	heard, err := c.out.Speeches(fault)
	if err != nil {
		return outcome{}, err
	}
	o := outcome{moved: true, failover: first.At.Sub(fault)}
	for _, s := range heard {
		if s.Host == to.Name && o.heard == 0 {
			o.heard = s.First.Sub(fault)
		}
	}
	c.home = to
	return o, nil
}

// stays waits until clients are answered and the guest is protected, after a
// fault that must not move it.
func (c *chaos) stays(ctx context.Context) error {
	if _, err := c.client.WaitAnswer(ctx, time.Now()); err != nil {
		return err
	}
	return c.protected(ctx)
}

// calmEpochs is how many epochs the backup acknowledges after a fault that
// nothing may come of: that many show that it still stands by.
const calmEpochs = 3

// calm waits until the protection of before has gone on: the same one, without a
// new session.
func (c *chaos) calm(ctx context.Context, before lab.Protection) error {
	if _, err := c.client.WaitAnswer(ctx, time.Now()); err != nil {
		return err
	}
	for from := uint64(0); ; {
		ps, err := c.home.Protections(ctx, c.guest.Name)
		if err == nil && len(ps) == 1 {
			now := ps[0]
			if now.State != "protected" || now.Generation != before.Generation || now.Epoch.Acked < before.Epoch.Acked {
				return fmt.Errorf("nothing should have come of it, but %+v became %+v", before, now)
			}
			if from == 0 {
				from = now.Epoch.Acked
			}
			if now.Epoch.Acked >= from+calmEpochs {
				return nil
			}
		}
		if perr := pause(ctx, noticePoll); perr != nil {
			return fmt.Errorf("%s has %+v: %w", c.home.Name, ps, errors.Join(perr, err))
		}
	}
}

// verify watches the guest check all of its memory at c.home.
func (c *chaos) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	here := func(o lab.Observation) bool { return o.Host == c.home.Name }
	first, err := c.out.WaitTick(ctx, here)
	if err != nil {
		return err
	}
	last, err := c.out.WaitTick(ctx, func(o lab.Observation) bool { return here(o) && o.Passes >= first.Passes+passesAfter })
	if err != nil {
		return fmt.Errorf("the guest does not verify its memory: %w", err)
	}
	c.report.MemoryErrors = last.MemErrors
	if last.MemErrors > 0 {
		return fmt.Errorf("the guest found %d errors in its memory", last.MemErrors)
	}
	return nil
}

// heardOnce looks who was heard since it looked last, when the guest ran at from.
func (c *chaos) heardOnce(from *lab.Host) error {
	now := time.Now()
	heard, err := c.out.Speeches(c.looked)
	if err != nil {
		return err
	}
	old, speeches := from, 2 // the old home's end, and the new home's
	if from == c.home {
		old, speeches = c.lab.Peer(c.home), 1
	}
	split, err := c.out.Split(c.looked, old.Name)
	if err != nil {
		return err
	}
	c.report.SplitFrames += split.Frames
	c.report.SplitTicks += split.Ticks
	if n := len(heard); n > speeches || split != (lab.Split{}) || n > 0 && heard[n-1].Host != c.home.Name {
		c.report.TwoHosts++
		return fmt.Errorf("the guest, whose home was %s and is %s, was heard from both hosts in turn: %+v", from.Name, c.home.Name, heard)
	}
	c.looked = now
	return nil
}

// judge asks the guest for all it should know and fills the report in.
func (c *chaos) judge(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	v, err := c.client.Check(ctx)
	back := c.out.StepsBack()
	c.report.judge(v, back)
	if back > 0 {
		err = errors.Join(err, fmt.Errorf("%d ticks came after later ones", back))
	}
	return errors.Join(v.Err(), err)
}

// protected waits until the guest is protected at c.home. The daemons do that by
// themselves where there is something left of a protection; when they have not
// for a while it asks them. The other host may still be busy with what was.
func (c *chaos) protected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	var last error
	asked, idle := false, time.Now()
	for {
		ps, err := c.home.Protections(ctx, c.guest.Name)
		switch {
		case err == nil && len(ps) == 1 && ps[0].State == "protected":
			if asked {
				c.report.Asked++
			}
			return nil
		case err == nil && len(ps) == 1 && ps[0].Role == "primary" && ps[0].State != "stopped":
			idle = time.Now() // on its way
		case time.Since(idle) >= c.patience:
			asked = true
			_, last = c.home.Ctl(ctx, "protect", c.guest.Name, "--to", c.lab.Peer(c.home).Name)
		}
		if last != nil {
			say("%s: protect: %v", c.home.Name, last)
		}
		if err := pause(ctx, retryEvery); err != nil {
			return errors.Join(err, last, fmt.Errorf("status: %+v", ps))
		}
	}
}
