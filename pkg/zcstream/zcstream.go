// Package zcstream moves bytes in one direction over a stream connection with
// as few copies as it can: a [Sender] lends its caller's memory to the kernel
// (MSG_ZEROCOPY) where that saves work, and a [Receiver] reads straight into
// memory of its caller, as scattered as that may be (readv).
//
// # The ownership rule
//
// Buffers given to [Sender.Send] belong to the stream until done has been called
// for them, exactly once, whatever happens. Until then nobody writes to them:
// the network card reads them when it sends, and again when the peer lost
// something, so that a page changed too early is sent as a mixture, with a
// correct checksum. The rule is the same when the bytes are copied in the end;
// done then comes before Send returns. Reading is free at any time.
//
// done says that the kernel is through, not that the peer's program has read
// anything. It does not wait for the next Send: each Sender that has memory lent
// watches the socket's error queue with one parked goroutine, and two
// descriptors, both gone 100 ms after the last page came back. See [Sender.Close]
// for what becomes of memory that is lent when a stream ends.
//
// # When lending helps
//
// Lending costs a page reference for each page, a report, and its reading; a
// copy costs its bytes. The kernel's documentation puts the break-even at about
// 10 KB for each system call. Sends below Options.MinZeroCopyBytes, and those
// whose buffers are below 1 KiB on average, are copied always.
//
// It helps when the path takes fragments (scatter-gather and checksum offload:
// nearly every network card, and virtio-net in a guest). It does not on
// loopback, veth, taps and bridges to them, and while a packet capture runs: the
// kernel then borrows first and copies later, which is the worst of both. It
// says so in its report. So [ModeAuto] lends one piece of 128 KiB, and copies
// until the report is there; goes on lending if the piece was not copied, and
// otherwise copies for ReprobeAfter, and asks again. Nor does it help with TLS,
// Unix sockets, Multipath TCP and kernels before 4.14: these are sent to
// plainly. [Sender.Stats] says what is done, and why.
//
// The kernel bounds what it borrows, by the socket's send buffer, by
// net.core.optmem_max for each socket, and by RLIMIT_MEMLOCK for each user
// without CAP_IPC_LOCK. What it refuses (ENOBUFS) is copied, in its place in the
// stream.
//
// # Contexts and errors
//
// Contexts bound every call, and deadlines of the connection hold too. A call
// that was interrupted part-way leaves the stream in the middle of something, so
// after any error the Sender stays broken; a Receiver says how many bytes it had
// read. A Sender and a Receiver may share a connection.
//
// # Reading beside a Sender that lends
//
// A connection on which a Sender lends memory should be read through a
// [Receiver]. Plain reads of it, by Read, io.Copy or the Read of its SyscallConn,
// can fail with "not pollable" although nothing is wrong: a report that arrives
// while the socket is neither readable nor writable is EPOLLERR alone, which Go's
// runtime takes for a descriptor that it cannot poll. It goes on failing readers
// until bytes arrive or the socket becomes writable. A Receiver waits by other
// means then. Writes, deadlines and Close are not affected.
//
// A Sender reads the error queue of its socket, and throws away what is not
// about zero-copy: time stamps (SO_TIMESTAMPING) of the same socket are lost.
// Nobody else may send with MSG_ZEROCOPY on it.
//
// # Sources
//
// Documentation/networking/msg_zerocopy.rst of the kernel; W. de Bruijn and
// E. Dumazet, "sendmsg copy avoidance with MSG_ZEROCOPY", netdev 2.1, 2017;
// msg_zerocopy_realloc and tcp_sendmsg_locked in the kernel's net/ for how system
// calls are numbered; net/ipv4/tcp.c, tcp_disconnect, for taking memory back;
// netpoll and netpollcheckerr in Go's runtime for what EPOLLERR alone does.
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
