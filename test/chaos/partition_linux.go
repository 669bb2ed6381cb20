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
	// hiccupMax bounds how long a host stands still without anybody noticing: far
	// less than the limit, for the machine may be busy.
	hiccupMax = 150 * time.Millisecond
	// afterMax bounds how long a frozen host stays so when the other took over.
	afterMax = 2 * time.Second
)

// cut harms the link until it is decided who goes on.
func (c *chaos) cut(ctx context.Context, fault time.Time, harm func() error) (o outcome, err error) {
	if err := harm(); err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, c.lab.HealReplication()) }()
	return c.either(ctx, fault)
}

// either waits until it is decided who goes on, and clients are answered there.
func (c *chaos) either(ctx context.Context, fault time.Time) (outcome, error) {
	moved, err := c.decided(ctx)
	switch {
	case err != nil:
		return outcome{}, err
	case moved:
		return c.moves(ctx, fault)
	}
	if _, err := c.client.WaitAnswer(ctx, time.Now()); err != nil {
		return outcome{}, fmt.Errorf("the guest won and is silent: %w", err)
	}
	return outcome{}, nil
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
		case len(there) == 1 && (there[0].State == "active" || there[0].Role == "primary"):
			return true, nil
		}
		if err := pause(ctx, noticePoll); err != nil {
			return false, fmt.Errorf("nobody goes on: %s says %+v, %s says %+v: %w", c.home.Name, here, c.lab.Peer(c.home).Name, there, err)
		}
	}
}

// loseArbiter takes it from a host, one time in two so that it does not answer,
// else so that it is not there.
func loseArbiter(h *lab.Host, rng *rand.Rand) error {
	if rng.IntN(2) == 0 {
		return h.HangArbiter()
	}
	return h.CutArbiter()
}

// island cuts one of the hosts off from its peer and from the arbiter. The other
// one goes on, and only that.
func (c *chaos) island(ctx context.Context, k kind, rng *rand.Rand, fault time.Time) (o outcome, err error) {
	lonely := c.home
	if k == faultFarAway {
		lonely = c.lab.Peer(c.home)
	}
	defer func() { err = errors.Join(err, c.lab.HealReplication(), lonely.HealArbiter()) }()
	if err := errors.Join(loseArbiter(lonely, rng), c.lab.CutReplication()); err != nil {
		return o, err
	}
	if o, err = c.either(ctx, fault); err == nil && o.moved != (k == faultIsland) {
		err = fmt.Errorf("%s was cut off from its peer and from the arbiter; it should not go on", lonely.Name)
	}
	if err == nil && rng.IntN(2) == 0 { // the arbiter comes back before the link, or with it
		err = lonely.HealArbiter()
	}
	return o, err
}

// dark takes link and arbiter from both hosts, until the guest is paused because
// nobody may decide. Then the arbiter comes back to one host, or to both.
func (c *chaos) dark(ctx context.Context, rng *rand.Rand, fault time.Time) (o outcome, err error) {
	hosts := c.lab.Hosts()
	defer func() {
		err = errors.Join(err, c.lab.HealReplication(), hosts[0].HealArbiter(), hosts[1].HealArbiter())
	}()
	if err := errors.Join(loseArbiter(hosts[0], rng), loseArbiter(hosts[1], rng), c.lab.CutReplication()); err != nil {
		return o, err
	}
	if _, err := c.home.WaitState(ctx, c.guest.Name, "undecided"); err != nil {
		return o, err
	}
	if err := pause(ctx, upTo(rng, awayMax)); err != nil {
		return o, err
	}
	for _, i := range [][]int{{0}, {1}, {0, 1}, {1, 0}}[rng.IntN(4)] {
		if err := hosts[i].HealArbiter(); err != nil {
			return o, err
		}
	}
	return c.either(ctx, fault)
}

// freeze stops the primary's host until the other has taken over, and for a
// while longer. Then it goes on: it must be silent, and end its copy.
func (c *chaos) freeze(ctx context.Context, rng *rand.Rand, fault time.Time) (o outcome, err error) {
	old := c.home
	if err := c.lab.FreezeHost(old); err != nil {
		return o, errors.Join(err, c.lab.ThawHost(old))
	}
	if o, err = c.moves(ctx, fault); err == nil {
		err = pause(ctx, upTo(rng, afterMax))
	}
	if err := errors.Join(err, c.lab.ThawHost(old)); err != nil {
		return o, err
	}
	return o, c.copyEnds(ctx, old)
}

// copyEnds waits until a host has destroyed the copy of the guest that ran there.
// A standby that it has meanwhile, for the guest's new home, is none.
func (c *chaos) copyEnds(ctx context.Context, old *lab.Host) error {
	for {
		_, err := old.QEMU(c.guest.Name)
		ps, perr := old.Protections(ctx, c.guest.Name)
		if err != nil || perr == nil && len(ps) == 1 && ps[0].Role == "backup" {
			return nil
		}
		if err := pause(ctx, noticePoll); err != nil {
			return fmt.Errorf("the copy on %s still runs; status: %+v, %w", old.Name, ps, errors.Join(err, perr))
		}
	}
}

// quietly does what nothing may come of: the protection goes on as if nothing
// had happened.
func (c *chaos) quietly(ctx context.Context, k kind, rng *rand.Rand) error {
	before, err := c.home.WaitState(ctx, c.guest.Name, "protected")
	if err != nil {
		return err
	}
	switch k {
	case faultHiccup:
		err = c.hiccup(ctx, upTo(rng, hiccupMax))
	case faultClients:
		if err = c.home.CutClient(); err == nil {
			err = errors.Join(pause(ctx, upTo(rng, awayMax)), c.home.HealClient())
		}
	case faultSuspend:
		if _, err = c.home.Virsh(ctx, "suspend", c.guest.Name); err == nil {
			err = pause(ctx, upTo(rng, awayMax))
			_, again := c.home.Virsh(ctx, "resume", c.guest.Name)
			err = errors.Join(err, again)
		}
	case faultStandby:
		err = c.killStandby(ctx)
	case faultArbiter:
		err = c.arbiterAway(ctx, rng)
	}
	if err != nil {
		return err
	}
	return c.calm(ctx, before)
}

// hiccup stops the primary's host for a moment. On a machine that is too busy to
// let it go on in time the fault was another one, and the run cannot tell.
func (c *chaos) hiccup(ctx context.Context, d time.Duration) error {
	began := time.Now()
	err := c.lab.FreezeHost(c.home)
	if err == nil {
		err = pause(ctx, d)
	}
	err = errors.Join(err, c.lab.ThawHost(c.home))
	if took := time.Since(began); took > d+hiccupMax {
		say("a host that was to stand still for %v did so for %v", d, took)
	}
	return err
}

// killStandby ends the QEMU that waits on the backup, and waits for another one.
func (c *chaos) killStandby(ctx context.Context) error {
	backup := c.lab.Peer(c.home)
	dead, err := backup.QEMU(c.guest.Name)
	if err == nil {
		err = syscall.Kill(dead, syscall.SIGKILL)
	}
	if err != nil {
		return err
	}
	for {
		pid, err := backup.QEMU(c.guest.Name)
		if err == nil && pid != dead {
			return nil
		}
		if perr := pause(ctx, noticePoll); perr != nil {
			return fmt.Errorf("no other standby is made: %w", errors.Join(perr, err))
		}
	}
}

// arbiterAway takes the arbiter from one host or from both for a while.
func (c *chaos) arbiterAway(ctx context.Context, rng *rand.Rand) (err error) {
	all := c.lab.Hosts()
	cut := [][]*lab.Host{all[:1], all[1:], all}[rng.IntN(3)]
	for _, h := range cut {
		err = errors.Join(err, loseArbiter(h, rng))
	}
	if err == nil {
		err = pause(ctx, upTo(rng, awayMax))
	}
	for _, h := range cut {
		err = errors.Join(err, h.HealArbiter())
	}
	return err
}
