// Command many protects many guests of one host at once, by one daemon on each
// side, lets them work, and cuts the power of their host: all must go on, with
// their memory right, and none may have forgotten what it told.
//
//	protect    from the first command to the last guest that is protected, and of
//	           each command; all are given at once, or -at-once of them
//	epochs     acknowledged a second, of each guest, over -window; a guest tells the
//	           world a tick now and then, and each asks for a checkpoint
//	pause      of each guest, as its daemon says: the median of all medians, and of
//	           all 99th percentiles, and the worst of those
//	cpu        of a processor and for each guest, over -window, unprotected and protected:
//	           QEMU, the daemons, A's libvirtd
//	restart    from the kill of the primaries' daemon until the next one has taken
//	           all of them up and they are protected again
//	failover   from the power cut to each guest's next tick from the other host; the
//	           detection of the loss is in it, and the time between two ticks
//
// Daemons are looked at while all are protected and, on B, after the failover.
// How many goroutines a daemon has it tells nobody; its threads are counted.
// The last line of output is JSON. Ctrl-C ends it cleanly at any moment.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// defaultConfig is for many guests on few cores. Each epoch costs all processes of
// both hosts some milliseconds, and a session that is given up because an answer
// came late only makes more work.
const defaultConfig = `reprotect = false
heartbeat.limit = "3s"
heartbeat.daemon_grace = "30s"
epoch.idle = "1s"
`

// Limits of the flags.
const (
	guestsMax = 150
	memMinMiB = 64
	memMaxMiB = 4096
)

// options are what the command line says.
type options struct {
	guests, bootAtOnce, atOnce int
	dirty, verify              int
	window, tick               time.Duration
	binary, dir, extra         string
	restart                    bool
	boot                       lab.GuestOptions
	timeout                    time.Duration
}

func main() {
	lab.MaybeHost()
	o, err := parseOptions()
	if err != nil {
		tool.Usage("many", err)
	}
	tool.Main("many", func() time.Duration { return o.timeout }, func(ctx context.Context, r *tool.Result) error {
		return run(ctx, o, r)
	})
}

func parseOptions() (options, error) {
	o := options{}
	flag.IntVar(&o.guests, "guests", 20, "how many; emulated guests take a core each while they boot")
	flag.IntVar(&o.boot.MemMiB, "mem", 112, "of each guest, in MiB")
	flag.IntVar(&o.bootAtOnce, "boot-at-once", 3, "guests that boot at the same time")
	flag.IntVar(&o.atOnce, "at-once", 0, "protect commands at the same time (0: all)")
	flag.DurationVar(&o.window, "window", 10*time.Second, "for how long all work under protection")
	flag.IntVar(&o.dirty, "dirty", 10, "pages that each guest writes a second")
	flag.IntVar(&o.verify, "verify", 100, "pages that each guest checks a second")
	flag.DurationVar(&o.tick, "tick", time.Second, "how often each guest tells where it is")
	flag.BoolVar(&o.restart, "restart", true, "kill and start the primaries' daemon before the power cut")
	flag.StringVar(&o.binary, "binary", "build/virt-ft", "the program under test")
	flag.StringVar(&o.dir, "dir", "", "keep the lab's files here, such as the daemons' logs")
	flag.StringVar(&o.extra, "config", defaultConfig, "TOML for both daemons' configurations")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "give up after")
	flag.Parse()
	if o.atOnce == 0 {
		o.atOnce = o.guests
	}
	switch {
	case flag.NArg() > 0:
		return o, fmt.Errorf("unexpected %q", flag.Arg(0))
	case o.guests < 1 || o.guests > guestsMax:
		return o, fmt.Errorf("%d guests: 1 to %d", o.guests, guestsMax)
	case o.boot.MemMiB < memMinMiB || o.boot.MemMiB > memMaxMiB:
		return o, fmt.Errorf("%d MiB of memory: %d to %d", o.boot.MemMiB, memMinMiB, memMaxMiB)
	case o.bootAtOnce < 1 || o.atOnce < 1:
		return o, errors.New("at least one at once")
	case o.dirty < 0 || o.verify < 1:
		return o, errors.New("guests write no fewer than 0 pages a second, and check at least one")
	case o.window <= 0 || o.tick < time.Millisecond || o.timeout < 0:
		return o, errors.New("times must be positive, and a tick at least 1ms")
	}
	return o, nil
}

// crowd is one run.
type crowd struct {
	options
	lab    *lab.Lab
	out    *lab.Observer
	guests []*lab.Guest
	result *tool.Result
}

func run(ctx context.Context, o options, r *tool.Result) error {
	c := &crowd{options: o, result: r}
	defer c.close()
	if err := c.build(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{c.protect, c.work, c.restartDaemon, c.powerLoss} {
		if err := step(ctx); err != nil {
			c.showLogs()
			return errors.Join(context.Cause(ctx), err)
		}
	}
	return nil
}

// guestCmdline keeps the guests' own work small: they share the machine.
const guestCmdline = "ft.mem_mb=1 ft.dirty_pages_s=%d ft.verify_pages_s=%d ft.tick_ms=%d"

func (c *crowd) build(ctx context.Context) error {
	assets, err := lab.FindAssets()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if c.lab, err = lab.New(ctx, lab.Options{Dir: c.dir, Log: log}); err != nil {
		return err
	}
	if err := c.lab.InstallDaemons(c.binary, lab.PlainTransport+c.extra); err != nil {
		return err
	}
	if err := c.lab.StartDaemons(ctx); err != nil {
		return err
	}
	if c.out, err = lab.NewObserver(c.lab, time.Second); err != nil {
		return err
	}
	shape, err := c.lab.InstallBoot(assets)
	if err != nil {
		return err
	}
	shape.NIC, shape.MemMiB, shape.Name = true, c.boot.MemMiB, "many"
	shape.Cmdline = fmt.Sprintf(guestCmdline, c.dirty, c.verify, c.tick.Milliseconds())
	begin := time.Now()
	if c.guests, err = c.lab.A.StartGuests(ctx, shape, c.options.guests, c.bootAtOnce); err != nil {
		return err
	}
	say("%d guests of %d MiB booted in %.1f s", len(c.guests), c.boot.MemMiB, time.Since(begin).Seconds())
	if err := c.look("unprotected", c.lab.Hosts()...); err != nil {
		return err
	}
	return c.shares(ctx, "unprotected")
}

func (c *crowd) close() {
	if c.out != nil {
		c.out.Close()
	}
	if c.lab != nil {
		c.lab.Close()
	}
}

// showLogs prints what goes away with the lab.
func (c *crowd) showLogs() {
	const tail = 6000
	for _, h := range c.lab.Hosts() {
		if b, err := os.ReadFile(h.Daemon.LogPath()); err == nil {
			fmt.Fprintf(os.Stderr, "--- %s, end of the daemon's log\n%s", h.Name, b[max(0, len(b)-tail):])
		}
	}
}

func say(format string, args ...any) { tool.Say("many", format, args...) }
