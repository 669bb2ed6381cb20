package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"github.com/virt-ft/virt-ft/internal/nbd"
)

// sinkArg0 is the name under which this program starts itself inside host A, as
// an NBD server that forgets.
const sinkArg0 = "virt-ft-disk-sink"

// sink takes writes and forgets them.
type sink struct{ size int64 }

func (s sink) SizeBytes() int64                                     { return s.size }
func (s sink) Read(_ context.Context, p []byte, _ int64) error      { clear(p); return nil }
func (s sink) Zero(context.Context, int64, int64, bool, bool) error { return nil }
func (s sink) Trim(context.Context, int64, int64, bool) error       { return nil }
func (s sink) Flush(context.Context) error                          { return nil }
func (s sink) Write(_ context.Context, _ int64, _ []byte, release func(), _ bool) error {
	release()
	return nil
}

// maybeSink turns this process into the server if it was started as one, and
// then never returns.
func maybeSink() {
	if os.Args[0] != sinkArg0 {
		return
	}
	if err := sinkMain(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, sinkArg0+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func sinkMain(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%s is not for you to run", sinkArg0)
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	s := nbd.NewServer(nbd.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err := s.Add(diskName, sink{size}); err != nil {
		return err
	}
	ln, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	return s.Serve(ln)
}
