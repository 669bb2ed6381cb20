// Command diskbench measures what replication costs a guest's writes to its
// disk, as the guest sees it: how long a write of 4 KiB takes, anywhere on the
// disk and past the guest's page cache, and how many bytes a second it writes
// in pieces of 1 MiB. The same guest, with the same raw disk (virtio,
// cache=none), is measured in every mode, round after round:
//
//	unprotected   the floor
//	null mirror   libvirt's block copy with synchronous writes to a server of
//	              QEMU's (qemu-nbd, null-co) that forgets what it gets: what
//	              any replication that goes this way costs
//	nbd mirror    the same to our own server, which forgets too
//	memory        protected; the backup acknowledges what its kernel has
//	fsync         protected; the backup acknowledges what its disk has
//
// A ratio is that of a mode to the floor of the same round; the median over all
// rounds counts. The guest's clock stands still while a checkpoint has it
// paused, as under TCG its clocks do, so how much longer than its own time the
// benchmark took is told beside (stretch).
//
// Then another guest with a larger disk, half of it data, is protected twice:
// to a fresh image, and to the one that is left from that.
//
// The last line of output is JSON (test/tool). Ctrl-C ends it cleanly at any moment.
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
	roundsMax  = 1000
	secondsMax = 60 // as the guest's command
	diskMinMiB = 64
	diskMaxMiB = 64 << 10
)

// options are what the command line says.
type options struct {
	rounds  int
	seconds int
	diskMiB int
	syncMiB int
	ramMiB  int
	modes   []mode
	binary  string
	dir     string
	boot    lab.GuestOptions
	timeout time.Duration
}

func main() {
	lab.MaybeHost()
	maybeSink()
	o, err := parseOptions()
	if err != nil {
		tool.Usage("diskbench", err)
	}
	tool.Main("diskbench", func() time.Duration { return o.timeout }, func(ctx context.Context, r *tool.Result) error {
		d := &result{Seconds: o.seconds, DiskMiB: o.diskMiB}
		err := run(ctx, o, d)
		d.report(r)
		return err
	})
}

func parseOptions() (options, error) {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 5, "times that every mode is measured")
	flag.IntVar(&o.seconds, "seconds", 3, "for each of latency and throughput, in every mode of every round")
	flag.IntVar(&o.diskMiB, "disk", 128, "size of the disk that is written to, in MiB")
	flag.IntVar(&o.syncMiB, "sync", 1024, "size of the disk that is copied, half of it data, in MiB; 0: leave that out")
	flag.IntVar(&o.ramMiB, "backup-ram", 0, "keep the backup's images and journals in this many MiB of memory each: two hosts do not share a disk as those of the lab do; then fsync costs nothing")
	modes := flag.String("modes", "", "measure these only, with commas between: "+strings.Join(modeNames(), ", "))
	flag.StringVar(&o.binary, "binary", "build/virt-ft", "the program under test")
	flag.StringVar(&o.dir, "dir", "", "keep the lab's files here, such as the daemons' logs")
	flag.IntVar(&o.boot.VCPUs, "vcpus", 1, "of the guest")
	flag.IntVar(&o.boot.MemMiB, "mem", 192, "of the guest, in MiB")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "give up after")
	flag.Parse()
	o.modes = allModes()
	if *modes != "" {
		o.modes = []mode{unprotected} // without the floor there is no ratio
		for word := range strings.SplitSeq(*modes, ",") {
			i := slices.Index(modeNames(), strings.TrimSpace(word))
			if i < 0 {
				return o, fmt.Errorf("-modes: %q is none", word)
			}
			if m := mode(i); !slices.Contains(o.modes, m) {
				o.modes = append(o.modes, m)
			}
		}
	}
	switch {
	case flag.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flag.Arg(0))
	case o.rounds < 1 || o.rounds > roundsMax:
		return o, fmt.Errorf("-rounds: not from 1 to %d", roundsMax)
	case o.seconds < 1 || o.seconds > secondsMax:
		return o, fmt.Errorf("-seconds: not from 1 to %d", secondsMax)
	case o.diskMiB < diskMinMiB || o.diskMiB > diskMaxMiB:
		return o, fmt.Errorf("-disk: not from %d to %d", diskMinMiB, diskMaxMiB)
	case o.ramMiB < 0 || o.ramMiB > diskMaxMiB:
		return o, fmt.Errorf("-backup-ram: not from 0 to %d", diskMaxMiB)
	case o.syncMiB != 0 && (o.syncMiB < diskMinMiB || o.syncMiB > diskMaxMiB):
		return o, fmt.Errorf("-sync: neither 0 nor from %d to %d", diskMinMiB, diskMaxMiB)
	}
	o.boot.NIC = true
	// Nothing in the guest but the benchmark, and a sign of life now and then.
	o.boot.Cmdline = "ft.verify_pages_s=0 ft.dirty_pages_s=0 ft.tick_ms=100"
	return o, nil
}

func run(ctx context.Context, o options, r *result) error {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	err = b.measure(ctx, r)
	r.summarize()
	r.print(os.Stdout)
	if err == nil && o.syncMiB > 0 {
		r.Sync, err = b.copies(ctx)
		if err == nil {
			r.Sync.print(os.Stdout)
		}
	}
	if err != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return err
}

func say(format string, args ...any) { tool.Say("diskbench", format, args...) }
