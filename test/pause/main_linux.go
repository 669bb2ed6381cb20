// Command pause measures how long a checkpoint stops a guest, as the guest
// sees it, beside two floors taken in turn on the same guest:
//
//	nothing        no operation: what the guest's own work, the machine's load
//	               and the sampling look like in the same figure
//	stop+cont      bare stop and cont, through libvirt
//	save, drained  xen-save-devices-state into a pipe that is drained at once,
//	               with no work on memory
//	checkpoint     capture.Session, preceded by a live pass when the daemon
//	               would make one
//
// The figure is the longest time for which a loop in the guest, which reads the
// clock and counts as fast as it can (the guest's command "spin"), makes no
// progress. Under TCG the guest's own clocks stand still while it is paused, so
// the counter is read from outside, in QEMU's memory, against the monotonic
// clock of this machine, as lab.Beacon.Stalls does; but between short naps and
// not in a loop of its own, which would take one of two cores away.
//
// Two processes share the work: this one, with lab, guest and sampler, and an
// agent inside host A, next to its libvirtd, that carries the operations out:
//
//	pause ── sampler ── reads ──► QEMU's memory
//	  └─ requests ──► agent in host A ── libvirt ──► QEMU
//
// The last line of output is JSON. Ctrl-C ends it cleanly at any moment.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/internal/ptracer"
)

// Limits of the flags.
const (
	roundsMax = 10_000
	levelsMax = 16
	dirtyMax  = 100_000 // pages an epoch
	epochMin  = 5 * time.Millisecond
	epochMax  = 10 * time.Second
	napMin    = 10 * time.Microsecond
	napMax    = time.Millisecond
)

// options are what the command line says.
type options struct {
	rounds  int
	dirty   []int // pages an epoch, one level after the other
	epoch   time.Duration
	nap     time.Duration
	nice    int
	blind   time.Duration
	live    int // pages; see livePagesFew
	samples string
	boot    lab.GuestOptions
	timeout time.Duration
}

func main() {
	ptracer.MaybeInject()
	lab.MaybeHost()
	maybeAgent()
	o, err := parseOptions()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pause:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	r := result{Pause: "ok", Rounds: o.rounds, EpochMs: ms(o.epoch.Nanoseconds()), Nice: o.nice}
	if err := run(ctx, o, &r); err != nil {
		r.Pause, r.Error = "failed", err.Error()
	}
	line, err := json.Marshal(r)
	if err != nil {
		panic(err) // plain fields always marshal
	}
	fmt.Println(string(line))
	if r.Error != "" {
		os.Exit(1)
	}
}

func parseOptions() (options, error) {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 100, "samples of each kind, per dirty level")
	dirty := flag.String("dirty", "0,400,2000", "pages that the guest dirties per epoch: levels, measured one after the other")
	flag.DurationVar(&o.epoch, "epoch", 50*time.Millisecond, "for how long the guest runs before each operation")
	flag.DurationVar(&o.nap, "nap", 100*time.Microsecond, "between two looks at the guest's counter")
	flag.DurationVar(&o.blind, "blind", time.Millisecond, "repeat an operation in which the sampler, too, could not run for longer than this")
	flag.IntVar(&o.live, "live", livePagesFew, "dirty pages of the last epoch from which a live pass precedes a checkpoint")
	flag.IntVar(&o.nice, "nice", 0, "nice value of all that runs on host A, for a machine that has other work too")
	flag.IntVar(&o.boot.VCPUs, "vcpus", 2, "of the guest; with one, dirtying interrupts the counting")
	flag.IntVar(&o.boot.MemMiB, "mem", 256, "of the guest, in MiB")
	flag.StringVar(&o.boot.Machine, "machine", "q35", "q35 or pc")
	flag.StringVar(&o.boot.Memory, "memory", "anonymous", "anonymous or memfd")
	flag.BoolVar(&o.boot.Rich, "rich", false, "a guest with many devices")
	flag.StringVar(&o.samples, "samples", "", "write every sample that counts to this file, as JSON lines with times of CLOCK_MONOTONIC")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "give up after")
	flag.Parse()
	for word := range strings.SplitSeq(*dirty, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < 0 || n > dirtyMax {
			return o, fmt.Errorf("-dirty: %q is not a number of pages up to %d", word, dirtyMax)
		}
		o.dirty = append(o.dirty, n)
	}
	switch {
	case flag.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flag.Arg(0))
	case len(o.dirty) > levelsMax:
		return o, fmt.Errorf("-dirty: more than %d levels", levelsMax)
	case o.rounds < 1 || o.rounds > roundsMax:
		return o, fmt.Errorf("-rounds: not from 1 to %d", roundsMax)
	case o.epoch < epochMin || o.epoch > epochMax:
		return o, fmt.Errorf("-epoch: not from %v to %v", epochMin, epochMax)
	case o.nice < -20 || o.nice > 19:
		return o, errors.New("-nice: not from -20 to 19")
	case o.live < 0:
		return o, errors.New("-live: a number of pages")
	case o.nap < napMin || o.nap > napMax:
		return o, fmt.Errorf("-nap: not from %v to %v", napMin, napMax)
	}
	o.boot.NIC = true
	// Nothing in the guest but counting and dirtying.
	o.boot.Cmdline = "ft.verify_pages_s=0 ft.dirty_pages_s=0 ft.tick_ms=100"
	return o, nil
}

func run(ctx context.Context, o options, r *result) (err error) {
	samples := io.Discard
	if o.samples != "" {
		f, err := os.Create(o.samples)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		samples = f
	}
	ctx, cancel := context.WithCancel(ctx)
	m, err := newMeter(ctx, o)
	if err != nil {
		cancel()
		return err
	}
	defer func() {
		cancel() // the guest's last command
		m.close()
	}()
	r.Sampler = m.mode
	for _, pages := range o.dirty {
		l, err := m.level(ctx, pages)
		if err != nil {
			return err
		}
		r.add(l)
		l.print(os.Stdout)
		if err := l.dump(samples); err != nil {
			return err
		}
	}
	return nil
}

// meter is one guest on host A, with all that measures it.
type meter struct {
	o       options
	lab     *lab.Lab
	guest   *lab.Guest
	beacon  *lab.Beacon
	sampler *sampler
	mode    string // how this process is scheduled
	agent   *agent
	spinner spinner
}

// newMeter builds the lab and boots the guest.
func newMeter(ctx context.Context, o options) (_ *meter, err error) {
	start := time.Now()
	assets, err := lab.FindAssets()
	if err != nil {
		return nil, err
	}
	m := &meter{o: o}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if m.lab, err = lab.New(ctx, lab.Options{Log: log}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	boot, err := m.lab.InstallBoot(assets)
	if err != nil {
		return nil, err
	}
	o.boot.Kernel, o.boot.Initrd = boot.Kernel, boot.Initrd
	if m.guest, err = m.lab.A.StartGuest(ctx, o.boot); err != nil {
		return nil, err
	}
	if m.beacon, err = m.lab.A.OpenBeacon(ctx, m.guest.Name, m.guest.Ready.BeaconGPA); err != nil {
		return nil, err
	}
	m.sampler = newSampler(m.beacon, o.nap)
	m.spinner = spinner{lab: m.lab, beacon: m.beacon}
	if m.agent, err = startAgent(ctx, m.lab.A, m.guest.Name, o.live); err != nil {
		return nil, err
	}
	if o.nice != 0 {
		if err = prefer(m.lab.A, o.nice); err != nil {
			return nil, err
		}
	}
	m.mode = elevate(true) // nothing is started from here on
	say("guest %s runs on host A and is tracked (%d ms); the sampler is a %s process, its nap is %v",
		m.guest.Name, time.Since(start).Milliseconds(), m.mode, o.nap)
	return m, nil
}

// close ends all; the lab takes guest and agent with it.
func (m *meter) close() {
	elevate(false)
	if m.agent != nil {
		m.agent.close()
	}
	if m.sampler != nil {
		m.sampler.close()
	}
	m.lab.Close()
	m.spinner.wait()
}

// triesMax bounds how many rounds are gone through for one that counts.
const triesMax = 5

// level measures all kinds in turn while the guest dirties pages every epoch.
func (m *meter) level(ctx context.Context, pages int) (*level, error) {
	l := &level{DirtyPages: pages}
	if err := m.spinner.ensure(ctx); err != nil {
		return nil, err
	}
	rate := int(float64(pages) / m.o.epoch.Seconds())
	if _, err := m.lab.Command(ctx, "dirty "+strconv.Itoa(rate)); err != nil {
		return nil, err
	}
	// The first round finds caches cold, and its checkpoint all of memory.
	for i := 0; !l.complete(m.o.rounds); i++ {
		if i > m.o.rounds*triesMax {
			return nil, fmt.Errorf("%d pages an epoch: the machine is too busy: in %d rounds the sampler was kept from running for more than %v too often", pages, i, m.o.blind)
		}
		for _, k := range kinds() {
			s, err := m.sample(ctx, k)
			if err != nil {
				return nil, fmt.Errorf("%d pages an epoch, round %d: %s: %w", pages, i, k, err)
			}
			if i > 0 {
				l.take(k, s, m.o.blind, m.o.rounds)
			}
		}
	}
	l.summarize()
	return l, nil
}

// leadIn is for how long the counter is watched before an operation.
const leadIn = 2 * time.Millisecond

// sample carries one operation out and finds the longest stall in it.
func (m *meter) sample(ctx context.Context, k kind) (sample, error) {
	if err := m.spinner.ensure(ctx); err != nil {
		return sample{}, err
	}
	if k == checkpoint { // the epoch begins
		if _, err := m.agent.do(ctx, request{Op: "collect"}); err != nil {
			return sample{}, err
		}
	}
	if err := pauseFor(ctx, m.o.epoch); err != nil {
		return sample{}, err
	}
	m.sampler.start()
	err := pauseFor(ctx, leadIn)
	var a answer
	if err == nil {
		a, err = m.agent.do(ctx, request{Op: k.String()})
	}
	looks, serr := m.sampler.stop(ctx)
	if err = errors.Join(err, serr); err != nil {
		return sample{}, err
	}
	return newSample(a, looks)
}

func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "pause: "+format+"\n", args...) }
