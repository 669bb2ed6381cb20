package zcstream

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
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

	zc    *zeroCopy // nil when memory cannot be lent
	plain string    // why it cannot

	sends, bytes atomic.Uint64

	closeOnce sync.Once
	closeErr  error
	closed    chan struct{}
}

// NewSender returns a Sender that owns conn's write direction, with the usual
// [Options]: on a *net.TCPConn, memory is lent to the kernel where that saves a
// copy. On other connections, and where it does not, a *net.TCPConn or
// *net.UnixConn gathers buffers in one system call; elsewhere, on TLS for
// instance, buffers below 16 KiB are copied together first.
//
// Close the Sender, and not the connection under it: while memory is lent, a
// connection that was closed behind the Sender's back is noticed up to 100 ms
// late, and by the peer not before.
func NewSender(conn net.Conn) *Sender { return NewSenderOptions(conn, Options{}) }

// NewSenderOptions is NewSender with other options than the usual ones. A
// connection that cannot do what they ask for is sent to plainly; Stats says
// why.
func NewSenderOptions(conn net.Conn, opts Options) *Sender {
	s := &Sender{conn: conn, turn: make(chan struct{}, 1), closed: make(chan struct{})}
	s.zc, s.plain = newZeroCopy(conn, opts.withDefaults())
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
// after it, on any goroutine, and for several Sends in another order than
// theirs; it must not block and must not call Send. Nobody may write to the
// buffers before: what is lent to the kernel goes onto the wire as it is at that
// moment, and again at every retransmission. done may be nil when nobody ever
// will.
//
// After an error that may have left part of bufs on the wire, every later Send
// fails with that error: there is no way to tell where the next message begins.
// Only a ctx that ended before the first byte leaves the Sender usable. What a
// failed Send had lent comes back when the peer has it, or after Close.
func (s *Sender) Send(ctx context.Context, done func(error), bufs ...[]byte) error {
	lo, err := s.send(ctx, bufs)
	if lo != nil && !s.zc.settle(lo, done, err) {
		return err // the kernel has some of bufs; who learns that it is through calls done
	}
	if done != nil {
		done(err)
	}
	if lo != nil {
		s.zc.repaid(lo)
	}
	return err
}

func (s *Sender) send(ctx context.Context, bufs [][]byte) (lo *loan, err error) {
	select {
	case <-s.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.turn:
	}
	defer func() { s.turn <- struct{}{} }()
	if s.broken != nil {
		return nil, fmt.Errorf("zcstream: stream broken earlier: %w", s.broken)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n, err := interruptible(ctx, s.conn.SetWriteDeadline, func() (n int, err error) {
		n, lo, err = s.write(bufs)
		return n, err
	})
	if n > 0 {
		s.sends.Add(1)
		s.bytes.Add(uint64(n))
	}
	if err != nil {
		s.broken = err
		if s.zc != nil {
			s.zc.kick(false, true)
		}
	}
	return lo, err
}

// write hands bufs to the connection. The caller holds the turn.
func (s *Sender) write(bufs [][]byte) (int, *loan, error) {
	if s.zc != nil {
		return s.zc.write(bufs)
	}
	if s.buf == nil {
		// WriteTo consumes its receiver, hence the copy of the slice headers.
		s.vec = append(s.vec[:0], bufs...)
		pending := s.vec
		n, err := pending.WriteTo(s.conn)
		clear(s.vec)
		return int(n), nil, err
	}
	total := 0
	for _, b := range bufs {
		n, err := s.buf.Write(b)
		total += n
		if err != nil {
			return total, nil, err
		}
	}
	return total, nil, s.buf.Flush()
}

// Stats returns what the Sender did so far. It may be called at any time.
func (s *Sender) Stats() Stats {
	st := Stats{Sends: s.sends.Load(), Bytes: s.bytes.Load(), Mode: "plain: " + s.plain}
	if s.zc != nil {
		st = s.zc.snapshot(st)
	}
	return st
}

// Drain waits until done has been called for every Send that had lent memory
// when Drain was called, and has returned; also for those that came since. It
// may be called at any time, also after Close. It returns ctx.Err() if ctx ends
// first.
func (s *Sender) Drain(ctx context.Context) error {
	if s.zc == nil {
		return ctx.Err()
	}
	return s.zc.drain(ctx)
}

// Close closes the connection and interrupts a blocked Send, whose done is
// called with an error. It does not wait, and is idempotent.
//
// Memory that is lent stays lent until the kernel has said that it is through
// with it: the peer has it all, or Options.LingerMax has passed, or a Send was
// cut off. In the last two cases the connection is reset, so that nothing is
// sent any more. done is called then, and [Sender.Drain] waits for it.
func (s *Sender) Close() error {
	s.closeOnce.Do(func() {
		close(s.closed)
		s.closeErr = s.conn.Close()
		if s.zc != nil {
			s.zc.kick(true, false)
		}
	})
	return s.closeErr
}
