// Command pause measures how long a checkpoint stops a guest, as the guest
// sees it, beside two floors taken in turn on the same guest:
//
//	nothing        no operation: what the guest's own work, the machine's load
//	               and the sampling look like in the same figure
//	stop+cont      bare stop and cont, through libvirt
//	save, drained  xen-save-devices-state into a pipe that is drained at once,
//	               with no work on memory
//	checkpoint     capture.Session, preceded by the live passes that the daemon
//	               would make
//
// It does so for several sizes of memory, every page of which the guest has
// written to, at the same rate of dirtying; and, on the smallest, for several
// rates. So many different pages are written to in each epoch, scattered over a
// set of 64 MiB (the guest's command "sweep").
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
// The last line of output is JSON (test/tool). Ctrl-C ends it cleanly at any
// moment.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/internal/ptracer"
	"github.com/virt-ft/virt-ft/test/tool"
)

// Limits of the flags.
const (
	roundsMax = 10_000
	levelsMax = 16
	dirtyMax  = 16_000 // pages an epoch, of the 16,384 that the guest sweeps
	ramMinMiB = 128
	ramMaxMiB = 1 << 20
	epochMin  = 5 * time.Millisecond
	epochMax  = 10 * time.Second
	napMin    = 10 * time.Microsecond
	napMax    = time.Millisecond
)

// options are what the command line says.
type options struct {
	rounds    int
	dirty     []int // pages an epoch, one level after the other
	ramMiB    []int // sizes, the largest first
	ramDirty  int
	ramRounds int
	epoch     time.Duration
	nap       time.Duration
	nice      int
	blind     time.Duration
	passes    int // live passes before a checkpoint, at most
	samples   string
	boot      lab.GuestOptions
	timeout   time.Duration
}

func main() {
	ptracer.MaybeInject()
	lab.MaybeHost()
	maybeAgent()
	o, err := parseOptions()
	if err != nil {
		tool.Usage("pause", err)
	}
	tool.Main("pause", func() time.Duration { return o.timeout }, func(ctx context.Context, r *tool.Result) error {
		d := &result{EpochMs: tool.Ms(o.epoch.Nanoseconds()), Nice: o.nice}
		defer d.report(r)
		return run(ctx, o, d)
	})
}

func parseOptions() (options, error) {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 100, "samples of each kind, per dirty level")
	dirty := flag.String("dirty", "10,500,2000,8000", "pages that the guest dirties per epoch: levels, measured one after the other")
	ram := flag.String("ram", "256,1024,4096,8192", "sizes of populated memory, in MiB, all measured at -ram-dirty pages; empty: leave that out")
	flag.IntVar(&o.ramDirty, "ram-dirty", 500, "pages that the guest dirties per epoch, whatever its memory")
	flag.IntVar(&o.ramRounds, "ram-rounds", 60, "samples of each kind, per size of memory")
	flag.DurationVar(&o.epoch, "epoch", 50*time.Millisecond, "for how long the guest runs before each operation")
	flag.DurationVar(&o.nap, "nap", 100*time.Microsecond, "between two looks at the guest's counter")
	flag.DurationVar(&o.blind, "blind", time.Millisecond, "repeat an operation in which the sampler, too, could not run for longer than this")
	flag.IntVar(&o.passes, "passes", capture.PassesMax, "live passes before a checkpoint, at most")
	flag.IntVar(&o.nice, "nice", 0, "nice value of all that runs on host A, for a machine that has other work too")
	flag.IntVar(&o.boot.VCPUs, "vcpus", 2, "of the guest; with one, dirtying interrupts the counting")
	flag.IntVar(&o.boot.MemMiB, "mem", 256, "of the guest that is measured at all dirty levels, in MiB")
	flag.StringVar(&o.boot.Machine, "machine", "q35", "q35 or pc")
	flag.StringVar(&o.boot.Memory, "memory", "anonymous", "anonymous or memfd")
	flag.BoolVar(&o.boot.Rich, "rich", false, "a guest with many devices")
	flag.StringVar(&o.samples, "samples", "", "write every sample that counts to this file, as JSON lines with times of CLOCK_MONOTONIC")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "give up after")
	flag.Parse()
	var err, rerr error
	o.dirty, err = numbers("-dirty", *dirty, 0, dirtyMax)
	o.ramMiB, rerr = numbers("-ram", *ram, ramMinMiB, ramMaxMiB)
	slices.Sort(o.ramMiB)
	slices.Reverse(o.ramMiB)
	switch {
	case err != nil || rerr != nil:
		return o, errors.Join(err, rerr)
	case flag.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flag.Arg(0))
	case o.rounds < 1 || o.rounds > roundsMax || o.ramRounds < 1 || o.ramRounds > roundsMax:
		return o, fmt.Errorf("-rounds, -ram-rounds: not from 1 to %d", roundsMax)
	case o.ramDirty < 0 || o.ramDirty > dirtyMax:
		return o, fmt.Errorf("-ram-dirty: not a number of pages up to %d", dirtyMax)
	case o.epoch < epochMin || o.epoch > epochMax:
		return o, fmt.Errorf("-epoch: not from %v to %v", epochMin, epochMax)
	case o.nice < -20 || o.nice > 19:
		return o, errors.New("-nice: not from -20 to 19")
	case o.passes < 0:
		return o, errors.New("-passes: a number")
	case o.boot.MemMiB < ramMinMiB || o.boot.MemMiB > ramMaxMiB:
		return o, fmt.Errorf("-mem: not from %d to %d", ramMinMiB, ramMaxMiB)
	case o.nap < napMin || o.nap > napMax:
		return o, fmt.Errorf("-nap: not from %v to %v", napMin, napMax)
	}
	o.boot.NIC = true
	// Nothing in the guest but counting and sweeping.
	o.boot.Cmdline = "ft.mem_mb=1 ft.verify_pages_s=0 ft.dirty_pages_s=0 ft.tick_ms=100"
	return o, nil
}

// numbers reads a flag's numbers, with commas between; no text is none.
func numbers(name, text string, from, to int) (v []int, err error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < from || n > to {
			return nil, fmt.Errorf("%s: %q is not a number from %d to %d", name, word, from, to)
		}
		v = append(v, n)
	}
	if len(v) > levelsMax {
		return nil, fmt.Errorf("%s: more than %d numbers", name, levelsMax)
	}
	return v, nil
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
	if err := m.sizes(ctx, r, samples); err != nil {
		return err
	}
	if len(o.dirty) == 0 {
		return nil
	}
	if err := m.seat(ctx, o.boot.MemMiB); err != nil {
		return err
	}
	r.Sampler = m.mode
	for _, pages := range o.dirty {
		l, err := m.level(ctx, pages, o.rounds)
		if err != nil {
			return err
		}
		r.Levels = append(r.Levels, l)
		l.print(os.Stdout)
		if err := l.dump(samples); err != nil {
			return err
		}
	}
	return nil
}

// sizes measures guests of all sizes at one rate. The last one is left running.
func (m *meter) sizes(ctx context.Context, r *result, samples io.Writer) error {
	for _, mib := range m.o.ramMiB {
		if why := lacksMemory(mib); why != "" {
			say("%d MiB of memory are not measured: %s", mib, why)
			r.skip(mib, why)
			continue
		}
		if err := m.seat(ctx, mib); err != nil {
			return fmt.Errorf("guest of %d MiB: %w", mib, err)
		}
		r.Sampler = m.mode
		l, err := m.level(ctx, m.o.ramDirty, m.o.ramRounds)
		if err != nil {
			return fmt.Errorf("guest of %d MiB: %w", mib, err)
		}
		r.RAM = append(r.RAM, l)
		l.print(os.Stdout)
		if err := l.dump(samples); err != nil {
			return err
		}
	}
	return nil
}

func say(format string, args ...any) { tool.Say("pause", format, args...) }
