package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// bulkChunkBytes is how much is read and written at once.
const bulkChunkBytes = 128 << 10

// dialBulk connects to the guest's bulk service and says what it shall do. The
// connection ends with ctx, and after a time in any case.
func (b *bench) dialBulk(ctx context.Context, what byte) (*net.TCPConn, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, stepMax)
	conn, err := b.lab.Dial(ctx, "tcp4", b.bulk)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	end := func() { stop(); cancel(); conn.Close() }
	if _, err = conn.Write([]byte{what}); err != nil {
		end()
		return nil, nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		end()
		return nil, nil, fmt.Errorf("%T is no TCP connection", conn)
	}
	return tcp, end, nil
}

// bulkWarmUp is for how long a connection carries data before it is measured:
// its window grows with each round trip, which output commit makes longer.
const bulkWarmUp = time.Second

// receive is how many MB the guest sends a second, when nothing else is to do.
func (b *bench) receive(ctx context.Context) (float64, error) {
	conn, end, err := b.dialBulk(ctx, 'g')
	if err != nil {
		return 0, err
	}
	defer end()
	chunk := make([]byte, bulkChunkBytes)
	take := func(d time.Duration) (bytes uint64, took time.Duration, err error) {
		for began := time.Now(); took < d && err == nil; took = time.Since(began) {
			var n int
			n, err = conn.Read(chunk)
			bytes += uint64(n)
		}
		return bytes, took, err
	}
	if _, _, err := take(bulkWarmUp); err != nil {
		return 0, err
	}
	bytes, took, err := take(b.o.window)
	return mbps(bytes, took), err
}

// sending is bulk to the guest, and what the kernel thinks of the way there.
type sending struct {
	MBps          float64
	RTT           time.Duration // smoothed, at the end
	WindowSegment uint32        // congestion window, in segments
}

// send is how many MB the guest takes a second: what it has acknowledged, not
// what waits in buffers on this side.
func (b *bench) send(ctx context.Context) (s sending, err error) {
	conn, end, err := b.dialBulk(ctx, 'p')
	if err != nil {
		return s, err
	}
	defer end()
	chunk := make([]byte, bulkChunkBytes)
	sent := uint64(1) // the word that said what to do
	push := func(d time.Duration) (info *unix.TCPInfo, at time.Time, err error) {
		for began := time.Now(); time.Since(began) < d && err == nil; {
			var n int
			n, err = conn.Write(chunk)
			sent += uint64(n)
		}
		if err == nil {
			info, err = tcpInfo(conn)
		}
		return info, time.Now(), err
	}
	before, began, err := push(bulkWarmUp)
	if err != nil {
		return s, err
	}
	after, ended, err := push(b.o.window)
	if err != nil {
		return s, err
	}
	s = sending{mbps(after.Bytes_acked-before.Bytes_acked, ended.Sub(began)), time.Duration(after.Rtt) * time.Microsecond, after.Snd_cwnd}
	if err := conn.CloseWrite(); err != nil {
		return s, err
	}
	var answer [8]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return s, err
	}
	if got := binary.BigEndian.Uint64(answer[:]) + 1; got != sent {
		return s, fmt.Errorf("the guest got %d bytes of %d", got, sent)
	}
	return s, nil
}

// tcpInfo asks the kernel about a connection, and so how much of what was sent
// is known to have arrived.
func tcpInfo(conn *net.TCPConn) (info *unix.TCPInfo, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err = errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("TCP_INFO: %w", err)
	}
	return info, nil
}

func mbps(bytes uint64, took time.Duration) float64 { return float64(bytes) / 1e6 / took.Seconds() }
