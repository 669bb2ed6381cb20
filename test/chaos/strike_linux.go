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

// crash ends all that virt-ft has to do with on the primary's host at once. Its
// kernel goes on, closes connections and keeps what was written; libvirtd and
// the daemon come back when the guest has moved.
func (c *chaos) crash(ctx context.Context, fault time.Time) (outcome, error) {
	struck := c.home
	qemu, err := struck.QEMU(c.guest.Name)
	if err != nil {
		return outcome{}, err
	}
	services := []*lab.Service{struck.Daemon, struck.Libvirtd}
	for _, s := range services {
		if p := s.Process(); p != nil {
			err = errors.Join(err, p.Signal(syscall.SIGKILL))
		}
	}
	if err := errors.Join(err, syscall.Kill(qemu, syscall.SIGKILL)); err != nil {
		return outcome{}, err
	}
	o, err := c.moves(ctx, fault)
	if err != nil {
		return o, err
	}
	for _, s := range []*lab.Service{struck.Libvirtd, struck.Daemon} {
		if err := errors.Join(s.Kill(), s.Start(ctx)); err != nil { // Kill waits until it is gone
			return o, err
		}
	}
	return o, nil
}

// loseBackup kills the backup's daemon and starts it after a while. The guest
// must stay where it is.
func (c *chaos) loseBackup(ctx context.Context, away time.Duration) (outcome, error) {
	before, err := c.home.WaitState(ctx, c.guest.Name, "protected")
	if err != nil {
		return outcome{}, err
	}
	backup := c.lab.Peer(c.home)
	if err := backup.Daemon.Kill(); err != nil {
		return outcome{}, err
	}
	if err := pause(ctx, away); err != nil {
		return outcome{}, err
	}
	if err := backup.Daemon.Start(ctx); err != nil {
		return outcome{}, err
	}
	return outcome{}, c.recovers(ctx, before)
}

// endMirror ends the copy job of a disk, as an operator might. The guest must
// stay where it is, and what it writes from then on must not be missed.
func (c *chaos) endMirror(ctx context.Context, rng *rand.Rand) (outcome, error) {
	before, err := c.home.WaitState(ctx, c.guest.Name, "protected")
	if err != nil {
		return outcome{}, err
	}
	disks := guestDisks()
	if _, err := c.home.Virsh(ctx, "blockjob", c.guest.Name, disks[rng.IntN(len(disks))].Target, "--abort"); err != nil {
		return outcome{}, err
	}
	return outcome{}, c.recovers(ctx, before)
}

// recovers waits until the loss of what was is noticed, and clients are answered
// and the guest is protected again.
func (c *chaos) recovers(ctx context.Context, before lab.Protection) error {
	for {
		ps, err := c.home.Protections(ctx, c.guest.Name)
		if err == nil && len(ps) == 1 && (ps[0].State != before.State || ps[0].Generation != before.Generation || ps[0].Epoch.Captured < before.Epoch.Captured) {
			break
		}
		if perr := pause(ctx, noticePoll); perr != nil {
			return fmt.Errorf("%s does not notice that it lost its backup: %+v: %w", c.home.Name, ps, errors.Join(perr, err))
		}
	}
	if _, err := c.client.WaitAnswer(ctx, time.Now()); err != nil {
		return err
	}
	return c.protected(ctx)
}
