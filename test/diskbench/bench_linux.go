package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// bench is a lab with a guest on host A.
type bench struct {
	o          options
	lab        *lab.Lab
	boot       lab.GuestOptions
	guest      *lab.Guest
	durability string // of the backup's daemon
	mirrors    int    // begun so far
}

// newBench builds the lab, starts the daemons and boots the guest.
func newBench(ctx context.Context, o options) (_ *bench, err error) {
	start := time.Now()
	assets, err := lab.FindAssets()
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, durability: memory.String()}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if b.lab, err = lab.New(ctx, lab.Options{Dir: o.dir, Log: log}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if o.ramMiB > 0 {
		for _, dir := range []string{"/var/lib/libvirt/images", "/var/lib/virt-ft"} {
			if err := b.lab.B.LimitDisk(dir, o.ramMiB); err != nil {
				return nil, err
			}
		}
	}
	if err := b.lab.InstallDaemons(o.binary, lab.PlainTransport+diskConfig(b.durability)); err != nil {
		return nil, err
	}
	if b.boot, err = b.lab.InstallBoot(assets); err != nil {
		return nil, err
	}
	if _, err := inTime(ctx, func(ctx context.Context) (any, error) { return nil, b.lab.StartDaemons(ctx) }); err != nil {
		return nil, err
	}
	shape := o.boot
	shape.Disks = []lab.GuestDisk{{Target: diskName, SizeMiB: o.diskMiB}}
	if b.guest, err = b.start(ctx, shape); err != nil {
		return nil, err
	}
	say("guest %s runs on host A (%d ms)", b.guest.Name, time.Since(start).Milliseconds())
	return b, nil
}

// close ends all; the lab takes guests and servers with it.
func (b *bench) close() { b.lab.Close() }

// measure goes through the modes, round after round. What was measured before
// an error is in r.
func (b *bench) measure(ctx context.Context, r *result) error {
	modes := b.o.modes[:0:0]
	for _, m := range b.o.modes {
		if why := lacks(m); why != "" {
			say("%s is not measured: %s", m, why)
			continue
		}
		modes = append(modes, m)
	}
	// The first writes to a new image allocate its blocks.
	if err := b.fill(ctx); err != nil {
		return err
	}
	for i := range b.o.rounds {
		var now round
		for _, m := range modes {
			s, err := b.sample(ctx, m)
			if err != nil {
				return fmt.Errorf("round %d, %s: %w", i+1, m, err)
			}
			now[m] = s
			say("round %d of %d, %-11s  4 KiB: p50 %4.0f us, p99 %5.0f us, %d writes;  1 MiB: %4.0f MB/s;  stretch %.2f, pauses %.1f ms",
				i+1, b.o.rounds, m, s.P50Us, s.P99Us, s.Writes, s.MBps, s.Stretch, s.PauseMs)
		}
		r.rounds = append(r.rounds, now)
	}
	return nil
}

// fill writes to all of the disk behind the guest's records, where the
// benchmark does.
func (b *bench) fill(ctx context.Context) error {
	for written := 0.; written < float64(b.o.diskMiB); {
		s, err := b.command(ctx, 1)
		if err != nil {
			return err
		}
		written += max(s.MBps, 1) // MB, and a little: its second is one of writing
	}
	return nil
}

// sample measures once in a mode.
func (b *bench) sample(ctx context.Context, m mode) (_ sample, err error) {
	type leaving = func(context.Context) error
	leave, err := inTime(ctx, func(ctx context.Context) (leaving, error) { return b.enter(ctx, m) })
	if err != nil {
		return sample{}, err
	}
	s, err := b.command(ctx, b.o.seconds)
	if err == nil && (m == memory || m == fsync) {
		s.PauseMs, err = b.stillProtected(ctx)
	}
	_, lerr := inTime(ctx, func(ctx context.Context) (any, error) { return nil, leave(ctx) })
	return s, errors.Join(err, lerr)
}

// stillProtected makes sure that what was measured was a protected guest, and
// returns the median of its latest pauses, in milliseconds.
func (b *bench) stillProtected(ctx context.Context) (float64, error) {
	ps, err := b.lab.A.Protections(ctx, b.guest.Name)
	if err != nil {
		return 0, err
	}
	if len(ps) != 1 || ps[0].State != "protected" {
		return 0, fmt.Errorf("the guest is not protected any more after its writes: %+v", ps)
	}
	return ps[0].Pause.P50Ms, nil
}

// command has the guest write for some seconds in either way.
func (b *bench) command(ctx context.Context, seconds int) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepMax+2*time.Duration(seconds)*time.Second)
	defer cancel()
	began := time.Now()
	a, err := b.lab.Command(ctx, fmt.Sprintf("disk %s bench %d", diskName, seconds))
	if err != nil {
		return s, err
	}
	s.Stretch = tool.Round3(time.Since(began).Seconds() / float64(2*seconds))
	for key, to := range map[string]*float64{"p50_us": &s.P50Us, "p99_us": &s.P99Us, "mean_us": &s.MeanUs, "mb_per_s": &s.MBps} {
		v, ok := a[key].(float64)
		if !ok || v <= 0 {
			return s, fmt.Errorf("the guest's answer has no %s: %v", key, a)
		}
		*to = tool.Round3(v)
	}
	writes, _ := a["writes"].(float64)
	s.Writes = int(writes)
	return s, nil
}
