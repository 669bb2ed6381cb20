// Package hookd is the way from libvirt's hook to the daemon: one line of JSON
// each way on a Unix socket.
//
//	libvirtd ── runs, waits ──▶ hook ── Call ──▶ daemon
//	         ◀── exit status ──      ◀─ Answer ─   (to OpPrepare only)
//
// libvirtd waits for its hook in the middle of what it does, often with the
// domain locked. So everything here is bounded, and short: who is told something
// answers at once or not at all, and never asks libvirt first.
package hookd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// SocketName is the socket's file in run_dir.
const SocketName = "hook.sock"

// OpPrepare is the operation which asks; everything else is told. Its names are
// libvirt's: https://libvirt.org/hooks.html.
const OpPrepare = "prepare"

// version is the protocol's. Zero is invalid.
const version = 1

const (
	// lineBytesMax bounds a line, fieldBytesMax what is in it, of which JSON may
	// make six times as much.
	lineBytesMax  = 16 << 10
	fieldBytesMax = 512
	// AnswerMax is how long a hook waits for an answer, thinkMax how long the
	// daemon may look for it: the rest is for the way.
	AnswerMax = 80 * time.Millisecond
	thinkMax  = AnswerMax * 3 / 4
)

// Call is what libvirt says to its hook.
type Call struct {
	Version int    `json:"version"`
	Op      string `json:"op"`    // "prepare", "started", "release", ...
	Subop   string `json:"subop"` // "begin", "end" or "-"
	Extra   string `json:"extra"` // a reason, of a few operations; else "-"
	Name    string `json:"name"`  // of the domain
	UUID    string `json:"uuid"`  // as libvirt writes it; empty when the hook could not find it
}

// Answer tells whether the domain may be started.
type Answer struct {
	Version int  `json:"version"`
	Allow   bool `json:"allow"`
	// Reason, of a refusal, is shown to who wanted to start it: what speaks
	// against it, and what to do.
	Reason string `json:"reason,omitempty"`
}

// ErrNoDaemon: nobody listens.
var ErrNoDaemon = errors.New("no daemon listens")

// Ask returns the daemon's answer to a call; ErrNoDaemon at once when none runs,
// os.ErrDeadlineExceeded when ctx ends or AnswerMax is over before it answers.
func Ask(ctx context.Context, path string, c Call) (Answer, error) {
	var a Answer
	conn, err := send(ctx, path, c)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	line, err := readLine(conn)
	if err != nil {
		return a, fmt.Errorf("the daemon's answer: %w", err)
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, fmt.Errorf("the daemon's answer: %w", err)
	}
	if a.Version != version {
		return Answer{}, fmt.Errorf("the daemon answers in version %d, the hook speaks %d", a.Version, version)
	}
	a.Reason = oneLine(a.Reason)
	return a, nil
}

// Tell hands a call to the daemon, and waits for nothing.
func Tell(ctx context.Context, path string, c Call) error {
	conn, err := send(ctx, path, c)
	if err != nil {
		return err
	}
	return conn.Close()
}

// send connects and writes the call. The kernel takes both from us even if the
// daemon is stopped.
func send(ctx context.Context, path string, c Call) (net.Conn, error) {
	c.Version = version
	c.Op, c.Subop, c.Extra, c.Name, c.UUID = cut(c.Op), cut(c.Subop), cut(c.Extra), cut(c.Name), cut(c.UUID)
	line, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, AnswerMax)
	defer cancel()
	end, _ := ctx.Deadline()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		if isAbsent(err) {
			err = fmt.Errorf("%w at %s", ErrNoDaemon, path)
		}
		return nil, err
	}
	if err := conn.SetDeadline(end); err != nil {
		conn.Close()
		return nil, err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// cut makes a string fit into a line that a Server takes.
func cut(s string) string { return s[:min(len(s), fieldBytesMax)] }

// IsUUID tells whether s is a UUID as libvirt writes it, and so fit to be a part
// of a file's name.
func IsUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range []byte(s) {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if r != '-' {
				return false
			}
		case (r < '0' || r > '9') && (r < 'a' || r > 'f'):
			return false
		}
	}
	return true
}

// readLine returns one line without its end.
func readLine(r io.Reader) ([]byte, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 512), lineBytesMax)
	switch {
	case lines.Scan():
		return lines.Bytes(), nil
	case lines.Err() != nil:
		return nil, lines.Err()
	}
	return nil, io.ErrUnexpectedEOF
}

// oneLine makes what a peer wrote fit for one line on a terminal.
func oneLine(s string) string {
	s = s[:min(len(s), 2*fieldBytesMax)]
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?")))
}

// isAbsent is true when no process serves the socket.
func isAbsent(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
