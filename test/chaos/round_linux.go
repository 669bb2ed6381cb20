package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

const (
	// momentMax bounds the random time from protected to the fault: many epochs.
	momentMax = 1500 * time.Millisecond
	// daemonAwayMax bounds how long a killed daemon stays away.
	daemonAwayMax = 2 * time.Second
	// dyingMax bounds how long a host's link fails before the host does: less than
	// it takes to notice.
	dyingMax = 100 * time.Millisecond
	// warmAnswers is how many answers clients get before the fault.
	warmAnswers = 20
	// passesAfter is how often the guest verifies all of its memory afterwards:
	// the first pass may have begun before the fault.
	passesAfter = 2
	// retryEvery is the pause between two tries to protect again.
	retryEvery = 200 * time.Millisecond
	// noticePoll is how often is looked whether a loss was noticed.
	noticePoll = 20 * time.Millisecond
)

// round protects, strikes once, and judges. Afterwards the guest runs at c.home
// and both hosts are as before.
func (c *chaos) round(ctx context.Context, i int, k kind, rng *rand.Rand) (outcome, error) {
	if err := c.ready(ctx, rng); err != nil {
		return outcome{}, err
	}
	missing := c.out.Missing()
	fault := time.Now()
	o, err := c.strike(ctx, k, rng, fault)
	if err != nil {
		return o, errors.Join(fmt.Errorf("after the fault: %w", err), c.judge(ctx))
	}
	// At once, under load: what is wrong now may soon be written over.
	if err := c.askDisks(ctx); err != nil {
		return o, errors.Join(err, c.judge(ctx))
	}
	if err := c.verify(ctx, fault, o.moved); err != nil {
		return o, errors.Join(err, c.judge(ctx))
	}
	// A dead daemon's gate drops; else every frame of a committed epoch is heard.
	if missing = c.out.Missing() - missing; missing > 0 && k != faultDaemon {
		c.report.Forgotten += missing
		return o, errors.Join(fmt.Errorf("%d ticks that the guest had sent were never heard", missing), c.judge(ctx))
	}
	o.silence = c.client.LongestSilence(fault, time.Now())
	if err := errors.Join(c.lookAtImages(ctx, i), c.judge(ctx)); err != nil {
		return o, err
	}
	whole := time.Now()
	if err := c.protected(ctx); err != nil {
		return o, errors.Join(fmt.Errorf("protecting again: %w", err), c.judge(ctx))
	}
	o.repair = time.Since(whole)
	if i%compareEvery == 0 {
		return o, c.compareImages(ctx)
	}
	return o, nil
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
	return pause(ctx, time.Duration(rng.Int64N(int64(momentMax))))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// strike does the fault and waits until clients are answered again and the
// daemons know where the guest is.
func (c *chaos) strike(ctx context.Context, k kind, rng *rand.Rand, fault time.Time) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	switch k {
	case faultQEMU:
		pid, err := c.home.QEMU(c.guest.Name)
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil {
			return outcome{}, err
		}
		return c.moves(ctx, fault)
	case faultHost:
		return c.powerLoss(ctx, rng, fault)
	case faultDaemon:
		return c.restart(ctx, time.Duration(rng.Int64N(int64(daemonAwayMax))))
	case faultLink:
		return c.cut(ctx, fault)
	case faultPower:
		return c.crash(ctx, fault)
	case faultBackup:
		return c.loseBackup(ctx, time.Duration(rng.Int64N(int64(daemonAwayMax))))
	case faultJob:
		return c.endMirror(ctx, rng)
	}
	return outcome{}, fmt.Errorf("unknown fault %q", k)
}

// powerLoss ends the primary's host, and brings it back when the guest has
// moved. A host does not always die at once: one time in three it hears nothing
// of its peer for the last moments, so that the backup has what the primary does
// not know to be acknowledged, and one time in three it is not heard, so that
// the primary has what the backup never got.
func (c *chaos) powerLoss(ctx context.Context, rng *rand.Rand, fault time.Time) (outcome, error) {
	struck := c.home
	if deaf := []*lab.Host{nil, struck, c.lab.Peer(struck)}[rng.IntN(3)]; deaf != nil {
		if err := c.lab.DeafenReplication(deaf); err != nil {
			return outcome{}, err
		}
		if err := pause(ctx, time.Duration(rng.Int64N(int64(dyingMax)))); err != nil {
			return outcome{}, err
		}
	}
	struck.PowerOff()
	if err := c.lab.HealReplication(); err != nil {
		return outcome{}, err
	}
	o, err := c.moves(ctx, fault)
	if err != nil {
		return o, err
	}
	if err := struck.PowerOn(ctx); err != nil {
		return o, err
	}
	return o, struck.Daemon.Start(ctx)
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
	if _, err := to.WaitState(ctx, c.guest.Name, "active"); err != nil {
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

// restart kills the primary's daemon and starts it after a while. The guest
// must stay where it is.
func (c *chaos) restart(ctx context.Context, away time.Duration) (outcome, error) {
	if err := c.home.Daemon.Kill(); err != nil {
		return outcome{}, err
	}
	if err := pause(ctx, away); err != nil {
		return outcome{}, err
	}
	began := time.Now()
	if err := c.home.Daemon.Start(ctx); err != nil {
		return outcome{}, err
	}
	first, err := c.client.WaitAnswer(ctx, began)
	if err != nil {
		return outcome{}, err
	}
	_, err = c.home.WaitState(ctx, c.guest.Name, "protected")
	return outcome{back: first.At.Sub(began)}, err
}

// cut cuts the link until it is decided who goes on.
func (c *chaos) cut(ctx context.Context, fault time.Time) (outcome, error) {
	if err := c.lab.CutReplication(); err != nil {
		return outcome{}, err
	}
	moved, err := c.decided(ctx)
	if err != nil {
		return outcome{}, errors.Join(err, c.lab.HealReplication())
	}
	o := outcome{}
	if moved {
		if o, err = c.moves(ctx, fault); err != nil {
			return o, errors.Join(err, c.lab.HealReplication())
		}
	} else if _, err = c.client.WaitAnswer(ctx, time.Now()); err != nil {
		return o, errors.Join(fmt.Errorf("the guest won and is silent: %w", err), c.lab.HealReplication())
	}
	return o, c.lab.HealReplication()
}

// decided waits until one of the two may go on, and tells whether the guest
// moves.
func (c *chaos) decided(ctx context.Context) (moved bool, err error) {
	for {
		here, _ := c.home.Protections(ctx, c.guest.Name)
		there, _ := c.lab.Peer(c.home).Protections(ctx, c.guest.Name)
		switch {
		case len(here) == 1 && here[0].State == "alone":
			return false, nil
		case len(there) == 1 && there[0].State == "active":
			return true, nil
		}
		if err := pause(ctx, retryEvery); err != nil {
			return false, fmt.Errorf("nobody goes on: %s says %+v, %s says %+v: %w", c.home.Name, here, c.lab.Peer(c.home).Name, there, err)
		}
	}
}

// verify watches the guest check all of its memory at c.home, and looks who was
// heard since the fault.
func (c *chaos) verify(ctx context.Context, fault time.Time, moved bool) error {
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
	heard, err := c.out.Speeches(fault)
	if err != nil {
		return err
	}
	// One speech, or the old home's end and the new home's.
	if n := len(heard); n > 2 || n == 2 && !moved || heard[n-1].Host != c.home.Name {
		c.report.TwoHosts++
		return fmt.Errorf("the guest was heard from both hosts in turn: %+v", heard)
	}
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

// protected waits until the guest is protected at c.home, asking for it if
// nobody has; the other host may still be busy with what was.
func (c *chaos) protected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	var last error
	for {
		ps, err := c.home.Protections(ctx, c.guest.Name)
		switch {
		case err == nil && len(ps) == 1 && ps[0].State == "protected":
			return nil
		case err == nil && len(ps) == 1 && ps[0].Role == "primary" && ps[0].State != "stopped":
			// on its way
		default:
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
