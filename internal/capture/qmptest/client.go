// Package qmptest starts QEMU for tests and speaks QMP with it, without libvirt.
package qmptest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine bounds one answer of QEMU, in bytes.
const maxLine = 16 << 20

// Client is a QMP connection. It has the methods of capture.Monitor, which may
// be called concurrently and take turns.
type Client struct {
	mu   sync.Mutex
	conn *net.UnixConn
	in   *bufio.Scanner
	id   uint64
}

// Error is an error QEMU answered with.
type Error struct{ Class, Desc string }

func (e *Error) Error() string { return e.Class + ": " + e.Desc }

// Dial connects to a QMP socket and negotiates.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, in: bufio.NewScanner(conn)}
	c.in.Buffer(nil, maxLine)
	if _, err := c.QMP(ctx, "qmp_capabilities", nil); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// HMP runs a human monitor command.
func (c *Client) HMP(ctx context.Context, cmd string) (string, error) {
	raw, err := c.QMP(ctx, "human-monitor-command", map[string]any{"command-line": cmd})
	if err != nil {
		return "", err
	}
	var s string
	return s, json.Unmarshal(raw, &s)
}

// QMP runs a command and returns what it returned.
func (c *Client) QMP(ctx context.Context, execute string, args any) (json.RawMessage, error) {
	return c.QMPWithFiles(ctx, execute, args)
}

// QMPWithFiles passes descriptors along with a command.
func (c *Client) QMPWithFiles(ctx context.Context, execute string, args any, files ...*os.File) (json.RawMessage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		c.conn.SetDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-done
		}
	}()
	c.id++
	cmd := map[string]any{"execute": execute, "id": c.id}
	if args != nil {
		cmd["arguments"] = args
	}
	line, err := json.Marshal(cmd)
	if err != nil {
		return nil, err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return nil, err
	}
	return c.answer()
}

// answer reads up to the answer to the last command; late answers to commands
// that were given up, and events, are skipped.
func (c *Client) answer() (json.RawMessage, error) {
	for c.in.Scan() {
		var m struct {
			ID     uint64          `json:"id"`
			Return json.RawMessage `json:"return"`
			Error  *Error          `json:"error"`
		}
		if err := json.Unmarshal(c.in.Bytes(), &m); err != nil {
			return nil, err
		}
		if m.ID != c.id || m.Return == nil && m.Error == nil {
			continue
		}
		if m.Error != nil {
			return nil, m.Error
		}
		return m.Return, nil
	}
	if err := c.in.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("QMP connection: %w", net.ErrClosed)
}
