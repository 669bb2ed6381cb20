package zcstream

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// headBytes is read ahead at most: enough that heads and small messages cost
// one system call, little enough that copying it again does not matter.
const headBytes = 16 << 10

// Receiver reads from a connection. Only one goroutine may read; Close may be
// called from any.
//
// It may share a *net.TCPConn with a Sender that lends memory, which plain reads
// may not (see the package documentation). While the socket's state would fail
// those, it waits by other means: with one more descriptor, taken the first time
// and kept until the Receiver is closed or finds the connection closed. Meanwhile
// a deadline set on the connection itself, or a Close of it, is noticed up to
// 100 ms late. Contexts and the Receiver's own Close always interrupt at once.
type Receiver struct {
	conn    net.Conn
	scatter *scatter // nil where conn reads into one buffer at a time only
	ahead   []byte   // read ahead, and not asked for yet; a part of room
	room    [headBytes]byte
	cargo   cargo
	one     [1][]byte // for ReadFull

	closeOnce sync.Once
	closeErr  error
}

// NewReceiver returns a Receiver that owns conn's read direction. It allocates
// one buffer of 16 KiB and, but for large vectors, nothing later.
func NewReceiver(conn net.Conn) *Receiver {
	return &Receiver{conn: conn, scatter: newScatter(conn)}
}

// ReadFull fills p: no less, and of what it reads for later never more than
// 16 KiB. Bytes that had not been read ahead go straight into p in reads as
// large as the kernel allows. It returns how much of p it filled, which is
// len(p) exactly when err is nil. err is io.EOF when the peer ended the stream
// before the first byte, io.ErrUnexpectedEOF when it did so in between,
// ctx.Err() when ctx ended first, and [ErrClosed] after Close. When nothing was
// read and ctx ended, the stream is intact and may be read again.
func (r *Receiver) ReadFull(ctx context.Context, p []byte) (int, error) {
	r.one[0] = p
	n, err := r.ReadVec(ctx, r.one[:])
	r.one[0] = nil
	return n, err
}

// ReadVec fills bufs, one after the other, as ReadFull fills p. On a
// *net.TCPConn or *net.UnixConn each system call fills as many of them as have
// arrived (readv), so that pages go straight to where they belong, however
// scattered that is. bufs itself is not changed.
func (r *Receiver) ReadVec(ctx context.Context, bufs [][]byte) (int, error) {
	c := &r.cargo
	total := c.load(bufs)
	defer func() { *c = cargo{} }()
	if total > len(r.ahead) { // it may block
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	r.takeAhead(c)
	if c.left == 0 {
		return total, nil
	}
	_, err := interruptible(ctx, r.setReadDeadline, func() (int, error) { return 0, r.fill(c) })
	if errors.Is(err, io.EOF) && c.left < total {
		err = io.ErrUnexpectedEOF
	}
	return total - c.left, err
}

// setReadDeadline is how a context interrupts a read.
func (r *Receiver) setReadDeadline(t time.Time) error {
	err := r.conn.SetReadDeadline(t)
	if r.scatter != nil {
		r.scatter.interrupt()
	}
	return err
}

// takeAhead moves what was read ahead to where it was meant to go.
func (r *Receiver) takeAhead(c *cargo) {
	for len(r.ahead) > 0 && c.left > 0 {
		n := copy(c.bufs[c.next][c.off:], r.ahead)
		r.ahead = r.ahead[n:]
		c.advance(n)
	}
}

// fill reads until c is full. Nothing is left of what was read ahead.
func (r *Receiver) fill(c *cargo) error {
	if r.scatter != nil {
		n, err := r.scatter.read(c, r.room[:])
		r.ahead = r.room[:n]
		return err
	}
	for c.left > 0 {
		c.advance(0) // past empty ones
		into := c.bufs[c.next][c.off:]
		if len(into) >= headBytes {
			n, err := r.conn.Read(into)
			c.advance(n)
			if err != nil && c.left > 0 {
				return err
			}
			continue
		}
		n, err := r.conn.Read(r.room[:])
		r.ahead = r.room[:n]
		r.takeAhead(c)
		if err != nil && c.left > 0 { // or the next call finds it
			return err
		}
	}
	return nil
}

// Close closes the connection and interrupts a blocked read. It is idempotent.
func (r *Receiver) Close() error {
	r.closeOnce.Do(func() {
		r.closeErr = r.conn.Close()
		if r.scatter != nil {
			r.scatter.close()
		}
	})
	return r.closeErr
}
