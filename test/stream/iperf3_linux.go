package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// missingError says which program this machine lacks.
type missingError struct{ program, remedy string }

func (e *missingError) Error() string { return e.program + " is missing (" + e.remedy + ")" }

// iperf3 is a server that listens on loopback.
type iperf3 struct {
	program string
	port    string
	server  *exec.Cmd
}

// startIperf3 starts the server and waits until it listens.
func startIperf3(ctx context.Context) (*iperf3, error) {
	program, err := exec.LookPath("iperf3")
	if err != nil {
		return nil, &missingError{"iperf3", "run make deps"}
	}
	// It cannot be asked which port it found, so we find one, and hope that
	// nobody else takes it in the meantime.
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(ln.Addr().String())
	ln.Close()
	if err != nil {
		return nil, err
	}
	p := &iperf3{program: program, port: port}
	p.server = exec.CommandContext(ctx, program, "-s", "-B", "127.0.0.1", "-p", port, "--forceflush")
	out, err := p.server.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.server.Start(); err != nil {
		return nil, fmt.Errorf("iperf3: %w", err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "listening") {
			go drain(lines)
			return p, nil
		}
	}
	p.close()
	return nil, errors.Join(errors.New("iperf3's server ended at once"), lines.Err())
}

func drain(lines *bufio.Scanner) {
	for lines.Scan() { // until it ends
	}
}

func (p *iperf3) close() {
	_ = p.server.Process.Kill() // it may have ended
	_ = p.server.Wait()         // killed, as it should be
}

// connectTries is how often, connectPause apart, the server is looked for.
const (
	connectTries = 100
	connectPause = 50 * time.Millisecond
)

// move sends bytes over so many connections, in iperf3's usual way: writes of
// 128 KiB from one buffer.
func (p *iperf3) move(ctx context.Context, streams int, bytes int64) (cost, error) {
	var out []byte
	for try := 1; ; try++ {
		var err error
		out, err = exec.CommandContext(ctx, p.program, "-c", "127.0.0.1", "-p", p.port, "-P", strconv.Itoa(streams),
			"-n", strconv.FormatInt(bytes, 10), "-J").Output()
		if err == nil {
			break
		}
		// Its server closes its port between two tests, for a moment.
		if why := iperf3Error(out); try == connectTries || !strings.Contains(why, "unable to connect") {
			return cost{}, fmt.Errorf("iperf3: %w: %s", err, why)
		}
		select {
		case <-time.After(connectPause):
		case <-ctx.Done():
			return cost{}, ctx.Err()
		}
	}
	c, err := parseIperf3(out)
	if err != nil {
		return c, fmt.Errorf("iperf3: %w", err)
	}
	return c, nil
}

// iperf3Report is what we read of its JSON.
type iperf3Report struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Seconds float64 `json:"seconds"`
			Bytes   int64   `json:"bytes"`
		} `json:"sum_received"`
	} `json:"end"`
}

func parseIperf3(out []byte) (cost, error) {
	var r iperf3Report
	if err := json.Unmarshal(out, &r); err != nil {
		return cost{}, err
	}
	switch got := r.End.Received; {
	case r.Error != "":
		return cost{}, errors.New(r.Error)
	case got.Seconds <= 0 || got.Bytes <= 0:
		return cost{}, fmt.Errorf("it received %d bytes in %v s", got.Bytes, got.Seconds)
	default:
		return cost{ns: int64(got.Seconds * 1e9), bytes: got.Bytes}, nil
	}
}

// iperf3Error is the reason that it gives, which it prints as JSON too.
func iperf3Error(out []byte) string {
	var r iperf3Report
	_ = json.Unmarshal(out, &r) // no reason then
	return r.Error
}
