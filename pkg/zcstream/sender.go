package zcstream

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
)

// coalesceBytes is the buffer of senders whose connection cannot gather (TLS):
// small buffers share a record, larger ones are written from where they are.
const coalesceBytes = 16 << 10

// Sender writes to a connection. Send may be called from several goroutines:
// each call's bytes stay together, in the order in which calls got their turn.
type Sender struct {
	conn   net.Conn
	turn   chan struct{} // holds one token while nobody sends
	vec    net.Buffers   // scratch for writev; owned by the holder of the turn
	buf    *bufio.Writer // nil when conn gathers by itself
	broken error         // first write error; owned by the holder of the turn

	closeOnce sync.Once
	closeErr  error
	closed    chan struct{}
}

// NewSender returns a Sender that owns conn's write direction. On a
// *net.TCPConn or *net.UnixConn buffers are gathered with writev; on other
// connections, TLS for instance, buffers below 16 KiB are copied together first.
func NewSender(conn net.Conn) *Sender {
	s := &Sender{conn: conn, turn: make(chan struct{}, 1), closed: make(chan struct{})}
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		s.buf = bufio.NewWriterSize(conn, coalesceBytes)
	}
	s.turn <- struct{}{}
	return s
}

// Send writes bufs, one after the other. It returns when they have been handed
// to the kernel or have failed: nil does not mean that the peer has them.
//
// The buffers, not the slice bufs itself, belong to the stream from the call
// until done is called, which happens exactly once, also when Send fails, and
// with the error Send returns if it fails. done may run before Send returns or
// after it, on any goroutine; it must not block and must not call Send. Nobody
// may write to the buffers before. done may be nil when nobody ever will.
// (Today done always runs before Send returns. Do not rely on it: with
// zero-copy sending it runs when the peer's acknowledgement freed the pages.)
//
// After an error that may have left part of bufs on the wire, every later Send
// fails with that error: there is no way to tell where the next message begins.
// Only a ctx that ended before the first byte leaves the Sender usable.
func (s *Sender) Send(ctx context.Context, done func(error), bufs ...[]byte) error {
	err := s.send(ctx, bufs)
	if done != nil {
		done(err)
	}
	return err
}

func (s *Sender) send(ctx context.Context, bufs [][]byte) error {
	select {
	case <-s.closed:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	case <-s.turn:
	}
	defer func() { s.turn <- struct{}{} }()
	if s.broken != nil {
		return fmt.Errorf("zcstream: stream broken earlier: %w", s.broken)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := interruptible(ctx, s.conn.SetWriteDeadline, func() (int, error) { return s.write(bufs) })
	if err != nil {
		s.broken = err
	}
	return err
}

// write hands bufs to the connection. The caller holds the turn.
func (s *Sender) write(bufs [][]byte) (int, error) {
	if s.buf == nil {
		// WriteTo consumes its receiver, hence the copy of the slice headers.
		s.vec = append(s.vec[:0], bufs...)
		pending := s.vec
		n, err := pending.WriteTo(s.conn)
		clear(s.vec)
		return int(n), err
	}
	total := 0
	for _, b := range bufs {
		n, err := s.buf.Write(b)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, s.buf.Flush()
}

// Close closes the connection and interrupts a blocked Send, whose done is
// called with an error. It is idempotent.
func (s *Sender) Close() error {
	s.closeOnce.Do(func() {
		close(s.closed)
		s.closeErr = s.conn.Close()
	})
	return s.closeErr
}
