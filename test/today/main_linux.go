// Command today measures what a user has today to keep a guest's state safe from
// the loss of its host, beside one protection, on the same guest in the same run:
//
//	save       virsh save, and restore of what that wrote; to memory and to disk
//	snapshot   virsh snapshot-create-as --live --memspec: an image of memory beside
//	           a guest that runs on
//	migrate    virsh migrate --live to the other host, and back
//	checkpoint what virt-ft does many times a second
//	failover   the loss of the protected guest's host, once, at the end
//
// What counts is for how long the guest stands still, each time. Where it stays
// in its process, that is taken from a counter in its memory, read from outside;
// where it leaves it, from the silence between two of its ticks in the network,
// one each 2 ms. The last line of output is JSON. Ctrl-C ends it cleanly at any
// moment.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// Limits of the flags.
const (
	roundsMax   = 1000
	watchMin    = 500 * time.Millisecond
	watchMax    = time.Minute
	memMinMiB   = 192
	memMaxMiB   = 64 << 10
	dirtyMax    = 100_000
	tickEveryMs = 2
)

// options are what the command line says.
type options struct {
	rounds  int
	only    []string // tools; empty: all
	watch   time.Duration
	dirty   int
	binary  string
	dir     string
	boot    lab.GuestOptions
	timeout time.Duration
}

func main() {
	lab.MaybeHost()
	o, err := parseOptions()
	if err != nil {
		tool.Usage("today", err)
	}
	tool.Main("today", func() time.Duration { return o.timeout }, func(ctx context.Context, r *tool.Result) error {
		return run(ctx, o, r)
	})
}

func parseOptions() (options, error) {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 3, "times that each tool is used")
	only := flag.String("only", "", "use these only, with commas between: "+strings.Join(toolNames(), ", "))
	flag.DurationVar(&o.watch, "watch", 3*time.Second, "for how long checkpoints are watched, each time")
	flag.IntVar(&o.dirty, "dirty", 2000, "pages a second that the guest writes to, anywhere in 64 MiB")
	flag.StringVar(&o.binary, "binary", "build/virt-ft", "the program under test")
	flag.StringVar(&o.dir, "dir", "", "keep the lab's files here, such as the daemons' logs; they are the disk that is saved to")
	flag.IntVar(&o.boot.VCPUs, "vcpus", 2, "of the guest; with one, counting and ticking wait for each other")
	flag.IntVar(&o.boot.MemMiB, "mem", 512, "of the guest, in MiB; it writes to all of it first")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "give up after")
	flag.Parse()
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	for _, name := range o.only {
		if !slices.Contains(toolNames(), name) {
			return o, fmt.Errorf("-only: %q is none", name)
		}
	}
	switch {
	case flag.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flag.Arg(0))
	case o.rounds < 1 || o.rounds > roundsMax:
		return o, fmt.Errorf("-rounds: not from 1 to %d", roundsMax)
	case o.watch < watchMin || o.watch > watchMax:
		return o, fmt.Errorf("-watch: not from %v to %v", watchMin, watchMax)
	case o.dirty < 0 || o.dirty > dirtyMax:
		return o, fmt.Errorf("-dirty: not from 0 to %d", dirtyMax)
	case o.boot.MemMiB < memMinMiB || o.boot.MemMiB > memMaxMiB:
		return o, fmt.Errorf("-mem: not from %d to %d", memMinMiB, memMaxMiB)
	}
	o.boot.NIC = true
	o.boot.Cmdline = fmt.Sprintf("ft.verify_pages_s=0 ft.dirty_pages_s=%d ft.tick_ms=%d", o.dirty, tickEveryMs)
	return o, nil
}

// toolNames are what -only chooses from.
func toolNames() []string { return []string{"save", "snapshot", "migrate", "checkpoint", "failover"} }

// wants tells whether a tool is to be used.
func (o options) wants(tool string) bool { return len(o.only) == 0 || slices.Contains(o.only, tool) }

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

func say(format string, args ...any) { tool.Say("today", format, args...) }
