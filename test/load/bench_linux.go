package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

const (
	// stepMax bounds everything that is waited for but the windows themselves.
	stepMax = 2 * time.Minute
	// warmUp is for how long something runs before it is measured: QEMU has
	// translated the guest's code by then, and the pace has settled.
	warmUp = 200 * time.Millisecond
	// shareMax is the highest pause share that the daemon accepts.
	shareMax = "0.9"
)

// bench is a lab with a guest on host A, and what listens to it.
type bench struct {
	o      options
	lab    *lab.Lab
	guest  *lab.Guest
	beacon *lab.Beacon
	sink   net.PacketConn // where the guest's chatter goes; nobody reads it
	bulk   string         // address of the guest's bulk service
	client uint32         // of the latest client
}

// newBench builds the lab, starts the daemons, boots the guest and has it use
// all of its memory.
func newBench(ctx context.Context, o options) (_ *bench, err error) {
	start := time.Now()
	assets, err := lab.FindAssets()
	if err != nil {
		return nil, err
	}
	b := &bench{o: o}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if b.lab, err = lab.New(ctx, lab.Options{Dir: o.dir, Log: log}); err != nil {
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
	o.boot.Kernel, o.boot.Initrd = boot.Kernel, boot.Initrd
	if b.guest, err = b.lab.A.StartGuest(ctx, o.boot); err != nil {
		return nil, err
	}
	if b.beacon, err = b.lab.A.OpenBeacon(ctx, b.guest.Name, b.guest.Ready.BeaconGPA); err != nil {
		return nil, err
	}
	a, err := b.lab.Command(ctx, "populate 0")
	if err != nil {
		return nil, err
	}
	if err := b.listen(ctx); err != nil {
		return nil, err
	}
	say("guest %s runs on host A and has written to %v MiB (%d ms)", b.guest.Name, a["mib"], time.Since(start).Milliseconds())
	return b, nil
}

// listen opens what the guest talks to, and its bulk service.
func (b *bench) listen(ctx context.Context) error {
	err := b.lab.InSwitch(func() (err error) {
		// Only there so that no host answers "unreachable": the guest would have
		// to listen to that.
		b.sink, err = net.ListenPacket("udp4", net.JoinHostPort(lab.ClientAddr, "0"))
		return err
	})
	if err != nil {
		return err
	}
	a, err := b.lab.Command(ctx, "work bulk 0")
	if err != nil {
		return err
	}
	port, ok := a["port"].(float64)
	if !ok {
		return fmt.Errorf("the guest does not say where its bulk service is: %v", a)
	}
	b.bulk = net.JoinHostPort(lab.GuestAddr, fmt.Sprint(port))
	return nil
}

// close ends all; the lab takes guest and daemons with it.
func (b *bench) close() {
	if b.sink != nil {
		b.sink.Close()
	}
	b.lab.Close()
}

// measure goes through the rounds. What was measured before an error is
// returned with it.
func (b *bench) measure(ctx context.Context) (*results, error) {
	rs := &results{MemMiB: b.o.boot.MemMiB, WindowS: b.o.window.Seconds()}
	for i := range b.o.rounds {
		// The floor is taken on both sides of what it is compared with, and what
		// is measured once now before and now behind: a machine that becomes
		// slower over time favours neither.
		var now round
		talkFirst := i%2 == 0
		err := b.unprotected(ctx, &now, &now.Base.Speed, talkFirst)
		if err == nil {
			err = b.protected(ctx, &now)
		}
		if err == nil {
			err = b.unprotected(ctx, &now, &now.Again, !talkFirst)
		}
		if err != nil {
			return rs, fmt.Errorf("round %d: %w", i+1, err)
		}
		rs.rounds = append(rs.rounds, now)
		say("round %d of %d: %s", i+1, b.o.rounds, now.line())
	}
	return rs, nil
}

// unprotected measures the floor, with or without the network's.
func (b *bench) unprotected(ctx context.Context, now *round, to *speeds, talk bool) (err error) {
	if talk {
		if err = b.conversation(ctx, &now.Base, false); err != nil {
			return fmt.Errorf("unprotected: %w", err)
		}
	}
	if *to, err = b.speeds(ctx); err != nil {
		return fmt.Errorf("unprotected: %w", err)
	}
	if talk { // once in a round
		if now.Stopped, err = b.stopped(ctx); err != nil {
			return fmt.Errorf("bare stop and cont: %w", err)
		}
	}
	return b.command(ctx, "work off")
}

// protected protects the guest, measures it, and ends that.
func (b *bench) protected(ctx context.Context, to *round) error {
	if err := b.ctl(ctx, "protect", b.guest.Name, "--to", b.lab.B.Name); err != nil {
		return err
	}
	if err := b.conversation(ctx, &to.Protected, true); err != nil { // paced as by default
		return fmt.Errorf("protected: %w", err)
	}
	for i, hz := range rates() {
		p, err := b.paced(ctx, hz)
		if err != nil {
			return fmt.Errorf("protected, %d checkpoints a second: %w", hz, err)
		}
		to.Paced[i] = p
	}
	if err := b.idle(ctx, to); err != nil { // paced as the last one
		return fmt.Errorf("protected, idle: %w", err)
	}
	return b.ctl(ctx, "unprotect", b.guest.Name)
}

// conversation measures all that goes over the network.
func (b *bench) conversation(ctx context.Context, to *talk, protected bool) (err error) {
	if to.Latencies, err = b.latencies(ctx); err != nil {
		return fmt.Errorf("latency: %w", err)
	}
	if err = b.chatty(ctx, to, protected); err != nil {
		return fmt.Errorf("chatty: %w", err)
	}
	if to.OutMBps, err = b.receive(ctx); err != nil {
		return fmt.Errorf("bulk from the guest: %w", err)
	}
	if to.In, err = b.send(ctx); err != nil {
		return fmt.Errorf("bulk to the guest: %w", err)
	}
	return nil
}

// ctl has host A's daemon do something.
func (b *bench) ctl(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, stepMax)
	defer cancel()
	_, err := b.lab.A.Ctl(ctx, args...)
	return err
}

// command has the guest do something.
func (b *bench) command(ctx context.Context, line string) error {
	ctx, cancel := context.WithTimeout(ctx, stepMax)
	defer cancel()
	_, err := b.lab.Command(ctx, line)
	return err
}

// during lets time pass.
func during(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
