// Command stream measures pkg/zcstream where it is real, and where it is not.
//
// Inside a guest: a virtio network card takes frames in pieces, so the guest's
// kernel sends the pages of a process without copying them. The guest sends to
// a receiver outside, round after round, plain and zero-copy in turn:
//
//	guest: init ── zcstream.Sender ── virtio-net ══ tap ─ bridge ─ veth ══ receiver
//
// and tells what that cost all of it, by its own clock; what the thread of its
// virtual CPU used is read from outside. The receiver throws the bytes away in
// its kernel, so that it does not compete for processors.
//
// On this machine, over loopback, where the kernel always copies: 4 KiB pages
// from anywhere in 64 MiB, gathered to messages of 4 MiB, by one, two and four
// connections at once. Taken in turn with it, in the same run: a memcpy of the
// same pages by one thread, iperf3 with as many connections, and the Pages
// messages of internal/replica, with their checksums.
//
// The guest is emulated (TCG): each of its instructions costs many of ours,
// those of a copy and those of a packet's way not equally many. The ratio of CPU
// is this emulator's; a real processor has another one. That nothing was copied
// is the kernel's own word, and true of any.
//
// The last line of output is JSON, see test/tool. Ctrl-C ends it cleanly.
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

const name = "stream"

// Limits of the flags.
const (
	roundsMax = 1000
	mibMax    = 16 << 10
	chunkMin  = 4 << 10
	chunkMax  = 4 << 20
)

// options are what the command line says.
type options struct {
	rounds  int // of the guest
	mib     int // for each measurement in the guest
	chunk   int // bytes the guest sends at a time
	sweep   int // rounds for each size of chunk
	host    int // rounds of the host's part
	hostMiB int // for each measurement on the host
	init    string
	timeout time.Duration
}

func main() {
	lab.MaybeHost()
	o, err := parseOptions()
	if err != nil {
		tool.Usage(name, err)
	}
	tool.Main(name, func() time.Duration { return o.timeout }, func(ctx context.Context, r *tool.Result) error {
		return run(ctx, o, r)
	})
}

func parseOptions() (options, error) {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 9, "times that the guest sends in each way; 0: leave the guest out")
	flag.IntVar(&o.mib, "mib", 192, "MiB that the guest sends each time")
	flag.IntVar(&o.chunk, "chunk", 1<<20, "bytes that the guest sends at a time, whole pages")
	flag.IntVar(&o.sweep, "sweep", 0, "rounds in which chunks of 4 KiB to 1 MiB are compared; 0: leave that out")
	flag.IntVar(&o.host, "host", 7, "rounds over loopback; 0: leave that out")
	flag.IntVar(&o.hostMiB, "host-mib", 1024, "MiB of each measurement over loopback")
	flag.StringVar(&o.init, "init", "", "the guest's program; empty: build/guest/init")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "give up after")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flag.Arg(0))
	case o.rounds < 0 || o.rounds > roundsMax || o.sweep < 0 || o.sweep > roundsMax || o.host < 0 || o.host > roundsMax:
		return o, fmt.Errorf("-rounds, -sweep, -host: not from 0 to %d", roundsMax)
	case o.mib < 1 || o.mib > mibMax || o.hostMiB < messageBytes>>20*streamsMax || o.hostMiB > mibMax:
		return o, fmt.Errorf("-mib, -host-mib: not from 1, %d to %d", messageBytes>>20*streamsMax, mibMax)
	case o.chunk < chunkMin || o.chunk > chunkMax || o.chunk%chunkMin != 0:
		return o, fmt.Errorf("-chunk: not a multiple of %d up to %d", chunkMin, chunkMax)
	}
	return o, nil
}

// details are what the closing line shows beside the metrics.
type details struct {
	Guest *guestResult `json:"guest,omitempty"`
	Sweep []sweepLine  `json:"sweep,omitempty"`
	Host  []hostLine   `json:"host,omitempty"`
}

func run(ctx context.Context, o options, r *tool.Result) error {
	d := &details{}
	r.Details = d
	if err := measureHost(ctx, o, r, d); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	if err := measureGuest(ctx, o, r, d); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	d.print(os.Stderr)
	return nil
}

func say(format string, args ...any) { tool.Say(name, format, args...) }
