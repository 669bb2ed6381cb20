// Command load measures what protection costs a guest that works: how much of
// its speed is left to it, what its answers wait, what its bulk connections
// carry, and what the daemons take of the hosts for that.
//
// One guest is measured unprotected and protected by the daemons, in every
// round, in turn first and second. A ratio is that of both within one round; the
// median over all rounds counts. The guest's figures are by this machine's
// clock: under TCG a guest's own stands still in its pauses.
//
//	cpu         pieces of work a second: a generator in registers, reading through
//	            8 MiB, writing through 8 MiB; forced to 10, 40 and 100 checkpoints
//	            a second. A ratio without a kind is the geometric mean of all three;
//	            one at a rate that was not reached does not count
//	stop+cont   the generator, unprotected, while the guest is stopped and started 40
//	            times a second through libvirt: what any checkpoint like ours leaves
//	chatty      the generator, while the guest sends a datagram each millisecond:
//	            every output asks for a checkpoint
//	tcp         bulk over one connection, from the guest and to it; the lower
//	            ratio of the two counts
//	latency     requests over TCP, one at a time; protected minus unprotected
//	idle        checkpoints a second of a guest that does nothing, asked for 100
//
// Pieces of work are counted in a page of the guest's memory, which is read from
// outside. The last line of output is JSON. Ctrl-C ends it cleanly at any moment.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// Limits of the flags.
const (
	roundsMax = 1000
	windowMin = 100 * time.Millisecond
	windowMax = time.Minute
	memMinMiB = 192
	memMaxMiB = 64 << 10
)

// options are what the command line says.
type options struct {
	rounds  int
	window  time.Duration
	binary  string
	dir     string
	boot    lab.GuestOptions
	timeout time.Duration
}

func main() {
	lab.MaybeHost()
	o, err := parseOptions()
	if err != nil {
		tool.Usage("load", err)
	}
	tool.Main("load", func() time.Duration { return o.timeout }, func(ctx context.Context, r *tool.Result) error {
		return run(ctx, o, r)
	})
}

func parseOptions() (options, error) {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 3, "times that all is measured, unprotected and protected")
	flag.DurationVar(&o.window, "window", 1500*time.Millisecond, "for how long each figure is taken, each time")
	flag.StringVar(&o.binary, "binary", "build/virt-ft", "the program under test")
	flag.StringVar(&o.dir, "dir", "", "keep the lab's files here, such as the daemons' logs")
	flag.IntVar(&o.boot.VCPUs, "vcpus", 1, "of the guest; as many as the machine has leave nothing to the daemons")
	flag.IntVar(&o.boot.MemMiB, "mem", 512, "of the guest, in MiB; it writes to all of it first")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "give up after")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flag.Arg(0))
	case o.rounds < 1 || o.rounds > roundsMax:
		return o, fmt.Errorf("-rounds: not from 1 to %d", roundsMax)
	case o.window < windowMin || o.window > windowMax:
		return o, fmt.Errorf("-window: not from %v to %v", windowMin, windowMax)
	case o.boot.MemMiB < memMinMiB || o.boot.MemMiB > memMaxMiB:
		return o, fmt.Errorf("-mem: not from %d to %d", memMinMiB, memMaxMiB)
	}
	o.boot.NIC = true
	// Nothing in the guest but what is measured.
	o.boot.Cmdline = "ft.verify_pages_s=0 ft.dirty_pages_s=0 ft.tick_ms=0"
	return o, nil
}

func run(ctx context.Context, o options, r *tool.Result) error {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	rs, err := b.measure(ctx)
	rs.report(r)
	rs.print(os.Stdout)
	if err != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return err
}

func say(format string, args ...any) { tool.Say("load", format, args...) }
