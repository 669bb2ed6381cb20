package nbd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"
)

// testServer is argv[0] of a process that serves a disk with a guard:
// SOCKET LIMIT. What happens goes to its standard output, a line each: "ready
// PID" with the guard's, "closed ERROR", and the log.
const testServer = "nbd-test-server"

func maybeServe() {
	if os.Args[0] != testServer {
		return
	}
	if err := serveGuarded(os.Args[1], os.Args[2]); err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveGuarded(socket, limit string) error {
	d, err := time.ParseDuration(limit)
	if err != nil {
		return err
	}
	g, err := StartGuard(context.Background(), d, slog.New(slog.NewTextHandler(os.Stdout, nil)))
	if err != nil {
		return err
	}
	s := NewServer(Options{Guard: g, Closed: func(_ string, err error) {
		fmt.Println("closed", strings.ReplaceAll(fmt.Sprint(err), "\n", " "))
	}})
	if err := s.Add("vda", &fuzzDisk{data: make([]byte, fuzzSize)}); err != nil {
		return err
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ln) }()
	fmt.Println("ready", g.Pid())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test goes
	s.Close()
	g.Close()
	return <-ended
}
