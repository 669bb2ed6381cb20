package zcstream

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync"
)

// headBytes is read ahead at most: enough that heads and small messages cost
// one system call, little enough that copying it again does not matter.
const headBytes = 16 << 10

// Receiver reads from a connection. Only one goroutine may read; Close may be
// called from any.
type Receiver struct {
	conn net.Conn
	head *bufio.Reader

	closeOnce sync.Once
	closeErr  error
}

// NewReceiver returns a Receiver that owns conn's read direction. It allocates
// one buffer of 16 KiB and nothing later.
func NewReceiver(conn net.Conn) *Receiver {
	return &Receiver{conn: conn, head: bufio.NewReaderSize(conn, headBytes)}
}

// ReadFull fills p: no less, and of what it reads for later never more than
// 16 KiB. Bytes that had not been read ahead go straight into p in reads as
// large as the kernel allows. It returns how much of p it filled, which is
// len(p) exactly when err is nil. err is io.EOF when the peer ended the stream
// before the first byte, io.ErrUnexpectedEOF when it did so in between,
// ctx.Err() when ctx ended first, and [ErrClosed] after Close. When nothing was
// read and ctx ended, the stream is intact and may be read again.
func (r *Receiver) ReadFull(ctx context.Context, p []byte) (int, error) {
	if len(p) <= r.head.Buffered() {
		return io.ReadFull(r.head, p) // cannot block
	}
	return interruptible(ctx, r.conn.SetReadDeadline, func() (int, error) { return io.ReadFull(r.head, p) })
}

// Close closes the connection and interrupts a blocked ReadFull. It is
// idempotent.
func (r *Receiver) Close() error {
	r.closeOnce.Do(func() { r.closeErr = r.conn.Close() })
	return r.closeErr
}
