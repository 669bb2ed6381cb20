// Command clock measures how true the clock of a KVM guest stays under
// checkpoints, with and without kvmclock.Keeper in the same run, and what is left
// of it after a failover and after kills.
//
// The guest (test/clock/guest) does nothing but read its kvmclock on every
// processor. What its clock says is computed from outside, from its pvclock page
// and the host's TSC, and held against CLOCK_MONOTONIC_RAW at every epoch; what
// the guest itself saw, such as a clock that went back, is read from its memory.
// Checkpoints are real ones, of capture.Session.
//
//	stretches   the guest alone, under checkpoints, and under checkpoints with a
//	            keeper, in turn, at several rates
//	cost        pauses with and without a keeper, in small groups in turn
//	repairs     a pause of which the keeper is not told: it must put it back
//	failover    the QEMU is killed, and its last checkpoint goes on in another
//	kills       a process with session and keeper is killed at random moments
//
// An error is the difference from the anchor at the beginning of a stretch. It
// contains the difference of rates between the two clocks (rate_ppb), some parts in
// 10^8, which a guest that nobody stops has as well.
//
// The last line of output is JSON: the figures at its top, one that was not
// measured null, and what test/tool has. Where there is no KVM the program says so
// and ends with 0 and "ok" false. Ctrl-C ends it cleanly at any moment.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/ptracer"
	"github.com/virt-ft/virt-ft/test/clock/guest"
	"github.com/virt-ft/virt-ft/test/tool"
)

// Limits of the flags.
const (
	hzMax        = 200
	secondsMax   = 24 * time.Hour
	roundsMax    = 10_000
	longStretch  = 10 * time.Minute
	levelsMax    = 16
	turns        = 2 // of the stretches at each rate
	repairsCount = 5
)

// options are what the command line says.
type options struct {
	hz        []int
	cpus      []int
	lasts     time.Duration // of each stretch
	long      bool
	groups    int
	failovers int // for each number of processors
	kills     int
	seed      uint64
	timeout   time.Duration
}

func main() {
	ptracer.MaybeInject()
	maybeVictim()
	runtime.LockOSThread() // QEMU ends with the thread that has started it
	o, err := parseOptions()
	if err != nil {
		tool.Usage("clock", err)
	}
	ctx, stop := tool.Context(o.timeout)
	d, r := &details{}, tool.Result{Tool: "clock"}
	lack := guest.Lacks()
	if lack == nil {
		err = run(ctx, o, d, os.Stdout)
	}
	stop()
	switch {
	case lack != nil:
		fmt.Printf("nothing is measured: %v\n", lack)
		for _, name := range names() {
			r.Skip(name, lack.Error())
		}
	case err != nil:
		r.Error = err.Error()
	default:
		r.OK = true
	}
	tool.End("clock", d.line(r), err == nil)
}

func parseOptions() (o options, err error) {
	hz := flag.String("hz", "20,50,100", "checkpoints a second: rates, measured one after the other")
	cpus := flag.String("cpus", "1,4", "of the guest: measured one after the other")
	flag.DurationVar(&o.lasts, "for", 2*time.Second, "length of each stretch")
	flag.BoolVar(&o.long, "long", false, "then 10 minutes of checkpoints with a keeper, at 50 Hz")
	flag.IntVar(&o.groups, "groups", 12, "groups of checkpoints with, and as many without a keeper, for the cost; 0: leave that out")
	flag.IntVar(&o.failovers, "failovers", 3, "for each number of processors")
	flag.IntVar(&o.kills, "kills", 20, "of a process that keeps a clock, for all numbers of processors together")
	flag.Uint64Var(&o.seed, "seed", 0, "of the moments of the kills; 0: another one each time")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "give up after")
	flag.Parse()
	var cerr error
	o.hz, err = numbers("-hz", *hz, hzMax)
	o.cpus, cerr = numbers("-cpus", *cpus, guest.CPUsMax)
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	switch {
	case err != nil || cerr != nil:
		return o, errors.Join(err, cerr)
	case flag.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flag.Arg(0))
	case o.lasts <= 0 || o.lasts > secondsMax:
		return o, fmt.Errorf("-for: not from 0 to %v", secondsMax)
	case min(o.groups, o.failovers, o.kills) < 0 || max(o.groups, o.failovers, o.kills) > roundsMax:
		return o, fmt.Errorf("-groups, -failovers, -kills: not from 0 to %d", roundsMax)
	}
	return o, nil
}

// numbers reads a flag's numbers, from 1 on, with commas between.
func numbers(name, text string, most int) (v []int, err error) {
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < 1 || n > most {
			return nil, fmt.Errorf("%s: %q is not a number from 1 to %d", name, word, most)
		}
		v = append(v, n)
	}
	if len(v) > levelsMax {
		return nil, fmt.Errorf("%s: more than %d numbers", name, levelsMax)
	}
	return v, nil
}

func run(ctx context.Context, o options, d *details, w io.Writer) error {
	for _, cpus := range o.cpus {
		if err := d.measure(ctx, o, cpus, w); err != nil {
			return fmt.Errorf("guest with %d processors: %w", cpus, err)
		}
	}
	var err error
	if d.Failovers, err = failovers(ctx, o, w); err != nil {
		return err
	}
	if o.kills == 0 {
		return nil
	}
	fmt.Fprintf(w, "kills of a process that keeps the clock, at random moments (seed %d)\n", o.seed)
	rng := rand.New(rand.NewPCG(o.seed, 0))
	for i, cpus := range o.cpus {
		n := o.kills / len(o.cpus)
		if i == 0 {
			n += o.kills % len(o.cpus)
		}
		k, err := campaign(ctx, cpus, n, rng)
		k.summarize()
		d.Kills = append(d.Kills, k)
		k.print(w)
		if err != nil {
			return err
		}
	}
	return nil
}

// measure does all that is measured on one guest.
func (d *details) measure(ctx context.Context, o options, cpus int, w io.Writer) (err error) {
	s, err := newSubject(ctx, cpus)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	fmt.Fprintf(w, "a guest with %d vCPU\n", cpus)
	note := func(m mode, hz int, lasts time.Duration) error {
		st, err := s.stretch(ctx, m, hz, lasts)
		if err != nil {
			return fmt.Errorf("%v, %d Hz: %w", m, hz, err)
		}
		d.add(cpus, st)
		st.print(w)
		return nil
	}
	for _, hz := range o.hz {
		for range turns {
			for _, m := range []mode{uncorrected, corrected, alone} {
				if err := note(m, hz, o.lasts/turns); err != nil {
					return err
				}
			}
		}
	}
	if o.long {
		if err := errors.Join(note(alone, 50, time.Minute), note(corrected, 50, longStretch)); err != nil {
			return err
		}
	}
	if o.groups > 0 {
		c, err := costs(ctx, s, o.groups)
		if err != nil {
			return fmt.Errorf("cost: %w", err)
		}
		d.Costs = append(d.Costs, c)
		fmt.Fprintf(w, "  cost in the pause: p50 %+.0f, p99 %+.0f µs; as the guest sees it p50 %+.0f, p99 %+.0f µs (%d pauses of each kind, %.0f µs without); tracer waited for %.0f µs, attached %.0f µs\n",
			c.P50Us, c.P99Us, c.GuestP50Us, c.GuestP99Us, c.Samples, c.BareP50Us, c.WaitP50Us, c.AttachedP50Us)
	}
	rs, err := repairs(ctx, s, repairsCount)
	for _, r := range rs {
		fmt.Fprintf(w, "  a pause that was missed: %.1f µs behind, and %.3f µs when it was put back\n", r.MissedUs, r.LeftUs)
	}
	d.Repairs = append(d.Repairs, rs...)
	return err
}
