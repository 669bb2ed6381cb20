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
	// awayMax bounds how long what was killed, or cut off, stays away.
	awayMax = time.Second
	// dyingMax bounds how long a host's link fails before the host does: less than
	// it takes to notice.
	dyingMax = 100 * time.Millisecond
)

// strike does the fault and waits until clients are answered again and the
// daemons know where the guest is.
func (c *chaos) strike(ctx context.Context, k kind, rng *rand.Rand, fault time.Time) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	peer := c.lab.Peer(c.home)
	switch k {
	case faultQEMU:
		return c.killQEMU(ctx, fault)
	case faultHost:
		return c.powerLoss(ctx, rng, fault)
	case faultPower:
		return c.crash(ctx, fault)
	case faultFreeze:
		return c.freeze(ctx, rng, fault)
	case faultFailback:
		return c.failback(ctx, fault)
	case faultDaemon:
		return c.restart(ctx, upTo(rng, awayMax))
	case faultLink:
		return c.cut(ctx, fault, c.lab.CutReplication)
	case faultDeafHere:
		return c.cut(ctx, fault, func() error { return c.lab.DeafenReplication(c.home) })
	case faultDeafPeer:
		return c.cut(ctx, fault, func() error { return c.lab.DeafenReplication(peer) })
	case faultIsland, faultFarAway:
		return c.island(ctx, k, rng, fault)
	case faultDark:
		return c.dark(ctx, rng, fault)
	case faultLibvirtd:
		return outcome{}, c.away(ctx, upTo(rng, awayMax), c.home.Libvirtd)
	case faultBackLibv:
		return outcome{}, c.away(ctx, upTo(rng, awayMax), peer.Libvirtd)
	case faultBackup:
		return outcome{}, c.loseBackup(ctx, upTo(rng, awayMax))
	case faultBackHost:
		return outcome{}, c.loseBackupHost(ctx)
	case faultJob:
		return outcome{}, c.endMirror(ctx, rng)
	case faultHiccup, faultClients, faultSuspend, faultStandby, faultArbiter:
		return outcome{}, c.quietly(ctx, k, rng)
	}
	return outcome{}, fmt.Errorf("unknown fault %q", k)
}

func (c *chaos) killQEMU(ctx context.Context, fault time.Time) (outcome, error) {
	pid, err := c.home.QEMU(c.guest.Name)
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		return outcome{}, err
	}
	return c.moves(ctx, fault)
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
		if err := pause(ctx, upTo(rng, dyingMax)); err != nil {
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

// crash ends all that virt-ft has to do with on the primary's host at once. Its
// kernel goes on, closes connections and keeps what was written; libvirtd and
// the daemon come back when the guest has moved.
func (c *chaos) crash(ctx context.Context, fault time.Time) (outcome, error) {
	struck := c.home
	qemu, err := struck.QEMU(c.guest.Name)
	if err != nil {
		return outcome{}, err
	}
	for _, s := range []*lab.Service{struck.Daemon, struck.Libvirtd} {
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

// failback moves the guest as an operator does.
func (c *chaos) failback(ctx context.Context, fault time.Time) (outcome, error) {
	if _, err := c.home.Ctl(ctx, "failback", c.guest.Name); err != nil {
		return outcome{}, err
	}
	return c.moves(ctx, fault)
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

// away kills a libvirtd, starts it again after a while, and waits until all is
// well: the guest must stay.
func (c *chaos) away(ctx context.Context, away time.Duration, s *lab.Service) error {
	err := s.Kill()
	if err == nil {
		err = pause(ctx, away)
	}
	if err == nil {
		err = s.Start(ctx)
	}
	if err == nil {
		err = c.stays(ctx)
	}
	return err
}

// loseBackup kills the backup's daemon and starts it after a while. The guest
// must stay where it is.
func (c *chaos) loseBackup(ctx context.Context, away time.Duration) error {
	before, err := c.home.WaitState(ctx, c.guest.Name, "protected")
	if err != nil {
		return err
	}
	backup := c.lab.Peer(c.home)
	if err := backup.Daemon.Kill(); err != nil {
		return err
	}
	if err := pause(ctx, away); err != nil {
		return err
	}
	if err := backup.Daemon.Start(ctx); err != nil {
		return err
	}
	return c.recovers(ctx, before)
}

// loseBackupHost cuts the power of the backup's host, and brings it back when
// the guest goes on alone.
func (c *chaos) loseBackupHost(ctx context.Context) error {
	backup := c.lab.Peer(c.home)
	backup.PowerOff()
	if _, err := c.home.WaitState(ctx, c.guest.Name, "alone"); err != nil {
		return err
	}
	if _, err := c.client.WaitAnswer(ctx, time.Now()); err != nil {
		return err
	}
	if err := backup.PowerOn(ctx); err != nil {
		return err
	}
	return backup.Daemon.Start(ctx)
}

// endMirror ends the copy job of a disk, as an operator might. The guest must
// stay where it is, and what it writes from then on must not be missed.
func (c *chaos) endMirror(ctx context.Context, rng *rand.Rand) error {
	before, err := c.home.WaitState(ctx, c.guest.Name, "protected")
	if err != nil {
		return err
	}
	disks := guestDisks()
	if _, err := c.home.Virsh(ctx, "blockjob", c.guest.Name, disks[rng.IntN(len(disks))].Target, "--abort"); err != nil {
		return err
	}
	return c.recovers(ctx, before)
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
	return c.stays(ctx)
}
