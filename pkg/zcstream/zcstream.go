// Package zcstream moves bytes in one direction over a stream connection with
// as few copies as it can, and with an ownership rule that lets it get better
// without its callers changing.
//
// A [Sender] gathers many buffers into few system calls (writev). Today the
// kernel copies every byte once, from the buffers into socket memory; zero-copy
// sending (MSG_ZEROCOPY) comes later. The rule for callers is already the one
// zero-copy needs: the buffers given to [Sender.Send] belong to the stream
// until done has been called for them.
//
// A [Receiver] reads straight into memory of its caller: one copy, from socket
// memory, except for the few KiB around message heads, which pass through a
// small buffer so that a head does not cost a system call for each field.
//
// Contexts bound every call. A call that was interrupted part-way leaves the
// stream in the middle of something, so after any error the Sender stays
// broken; a Receiver says how many bytes it had read.
package zcstream

import (
	"context"
	"errors"
	"net"
	"os"
	"time"
)

// ErrClosed says that this end closed the stream.
var ErrClosed = errors.New("zcstream: stream is closed")

// aLongTimeAgo is a deadline that interrupts blocked I/O at once.
func aLongTimeAgo() time.Time { return time.Unix(1, 0) }

// interruptible runs op, and expires the deadline that set changes as soon as
// ctx ends, so that op returns. The deadline is cleared again before returning.
func interruptible(ctx context.Context, set func(time.Time) error, op func() (int, error)) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if ctx.Done() == nil {
		n, err := op()
		return n, closedError(err)
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = set(aLongTimeAgo()) // fails only on a closed connection, which interrupts too
	})
	n, err := op()
	if !stop() {
		<-fired
		_ = set(time.Time{})
		if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			return n, ctx.Err()
		}
	}
	return n, closedError(err)
}

// closedError makes a local close recognisable as [ErrClosed].
func closedError(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return ErrClosed
	}
	return err
}
