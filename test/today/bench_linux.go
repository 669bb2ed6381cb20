package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// stepMax bounds each use of a tool, tickMax how long the guest is waited for
// when a tool says that it is done.
const (
	stepMax = 2 * time.Minute
	tickMax = 10 * time.Second
)

// bench is a lab with a guest, and an observer of its network.
type bench struct {
	o     options
	lab   *lab.Lab
	boot  lab.GuestOptions
	guest *lab.Guest
	out   *lab.Observer
	at    *lab.Host         // where the guest runs
	skip  map[string]string // tools that this machine cannot use, and why
}

// newBench builds the lab, starts the daemons and the guest.
func newBench(ctx context.Context, o options) (_ *bench, err error) {
	assets, err := lab.FindAssets()
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, skip: map[string]string{}}
	for _, name := range toolNames() {
		if !o.wants(name) {
			b.skip[name] = "left out by -only"
		}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if b.lab, err = lab.New(ctx, lab.Options{Dir: o.dir, Log: log, Migration: true}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, stepMax)
	defer cancel()
	if err := b.lab.InstallDaemons(o.binary, lab.PlainTransport); err != nil {
		return nil, err
	}
	boot, err := b.lab.InstallBoot(assets)
	if err != nil {
		return nil, err
	}
	if err := b.lab.StartDaemons(ctx); err != nil {
		return nil, err
	}
	if b.out, err = lab.NewObserver(b.lab, silenceMin); err != nil {
		return nil, err
	}
	b.boot = o.boot
	b.boot.Kernel, b.boot.Initrd = boot.Kernel, boot.Initrd
	return b, b.start(ctx)
}

// start boots the guest on host A and has it use all of its memory, and count.
func (b *bench) start(ctx context.Context) (err error) {
	start := time.Now()
	b.at = b.lab.A
	if b.guest, err = b.at.StartGuest(ctx, b.boot); err != nil {
		return err
	}
	a, err := b.lab.Command(ctx, "populate 0")
	if err != nil {
		return err
	}
	if _, err := b.lab.Command(ctx, "work cpu count"); err != nil {
		return err
	}
	say("guest %s runs on host A and has written to %v MiB (%d ms)", b.guest.Name, a["mib"], time.Since(start).Milliseconds())
	return nil
}

// close ends all; the lab takes guest and daemons with it.
func (b *bench) close() {
	if b.out != nil {
		b.out.Close()
	}
	b.lab.Close()
}

// measure uses every tool in every round, and loses host A at the end. What was
// measured before an error is returned with it.
func (b *bench) measure(ctx context.Context) (*results, error) {
	rs := &results{Rounds: b.o.rounds, MemMiB: b.o.boot.MemMiB, DirtyPagesS: b.o.dirty, skip: b.skip}
	for i := range b.o.rounds {
		for _, step := range []struct {
			tool string
			use  func(context.Context, *results) error
		}{
			{"save", func(ctx context.Context, rs *results) error { return b.save(ctx, saveMemory, &rs.saves[saveMemory]) }},
			{"save", func(ctx context.Context, rs *results) error { return b.save(ctx, saveDisk, &rs.saves[saveDisk]) }},
			{"snapshot", b.snapshot},
			{"migrate", b.migrate},
			{"migrate", b.comeBack},
			{"checkpoint", b.checkpoints},
		} {
			if b.skip[step.tool] != "" {
				continue
			}
			if err := b.step(ctx, rs, step.use); err != nil {
				return rs, fmt.Errorf("round %d, %s: %w", i+1, step.tool, err)
			}
		}
		say("round %d of %d: %s", i+1, b.o.rounds, rs.line())
	}
	if !b.o.wants("failover") {
		return rs, nil
	}
	if err := b.step(ctx, rs, b.failover); err != nil {
		return rs, fmt.Errorf("failover: %w", err)
	}
	return rs, nil
}

// step uses a tool. One that refuses is not asked again.
func (b *bench) step(ctx context.Context, rs *results, use func(context.Context, *results) error) error {
	bound, cancel := context.WithTimeout(ctx, stepMax)
	defer cancel()
	err := use(bound, rs)
	var no *refusal
	if errors.As(err, &no) && ctx.Err() == nil {
		say("%s does not work here: %v", no.tool, no.err)
		b.skip[no.tool] = no.Error()
		return nil
	}
	return err
}

// errSilent says that a tool was done and the guest is not there.
var errSilent = errors.New("the guest is silent")

// ticked waits until the guest's ticks come from a host, from now on. The guest
// is there to be used again then.
func (b *bench) ticked(ctx context.Context, h *lab.Host) error {
	now := time.Now()
	ctx, cancel := context.WithTimeout(ctx, tickMax)
	defer cancel()
	_, err := b.out.WaitTick(ctx, func(o lab.Observation) bool { return o.Host == h.Name && o.At.After(now) })
	if err == nil {
		return nil
	}
	last, _ := b.out.Last()
	asking, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer done()
	state, serr := h.Virsh(asking, "domstate", "--reason", b.guest.Name)
	return fmt.Errorf("%w: %s: no tick of %s, which libvirt calls %q (%v); the last one came from %q %v ago: %w",
		errSilent, h.Name, b.guest.Name, strings.TrimSpace(state), serr, last.Host, time.Since(last.At), err)
}

// beacon opens the guest's counter where it runs now.
func (b *bench) beacon(ctx context.Context) (*lab.Beacon, error) {
	return b.at.OpenBeacon(ctx, b.guest.Name, b.guest.Ready.BeaconGPA)
}

// silence is the longest silence of the guest's that was over, and not before,
// since a moment.
func (b *bench) silence(since time.Time) (time.Duration, error) {
	longest := time.Duration(0)
	for _, g := range b.out.Gaps() {
		if g.After.At.After(since) {
			longest = max(longest, g.Silence())
		}
	}
	if longest == 0 {
		return 0, errors.New("the guest was not silent for a moment")
	}
	return longest, nil
}
