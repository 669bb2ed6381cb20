package replica

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unsentBytes is how much the kernel takes of a connection beyond what it has
// sent: enough to keep a fast link busy until we run again. More would only hide
// from us how fast the link is, and delay what comes behind.
const unsentBytes = 1 << 20

// tune sets the options of a replication socket: no delay, no keepalive (the
// heartbeats are our own), a bound on how long the kernel retransmits
// before it reports the peer silent, and one on what waits in it unsent.
func tune(conn *net.TCPConn, userTimeout time.Duration) error {
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var errs [4]error
	err = rc.Control(func(fd uintptr) {
		errs[0] = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		errs[1] = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
		errs[2] = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
		errs[3] = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
	})
	return errors.Join(append(errs[:], err)...)
}

// peek returns the first byte that came on raw, a TCP connection, and leaves it there.
func peek(ctx context.Context, raw net.Conn) (byte, error) {
	conn, ok := raw.(*net.TCPConn)
	if !ok {
		return 0, errors.New("not a TCP connection")
	}
	rc, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	// It is not undone: ctx ends a handshake, and the connection with it.
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	var b [1]byte
	var n int
	var failed error
	err = rc.Read(func(fd uintptr) bool {
		n, _, failed = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil:
		return 0, err
	case failed != nil:
		return 0, failed
	case n == 0:
		return 0, io.EOF
	}
	return b[0], nil
}

// tcpDialer makes plain TCP: Multipath TCP, Go's default for listeners, has
// neither TCP_USER_TIMEOUT as we mean it nor zero-copy sending.
func tcpDialer() *net.Dialer {
	d := &net.Dialer{KeepAlive: -1}
	d.SetMultipathTCP(false)
	return d
}

func tcpListen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: -1}
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", addr)
}

// Probe tells whether the kernel at addr (host:port) answers a TCP connect: an
// accepted or refused connection means that it is alive, whatever became of its
// daemon; no answer before ctx ends means silence. Give ctx a deadline. A
// firewall on the way that rejects with a RST or port-unreachable looks alive; one that drops
// looks silent; an answer proves life, silence proves nothing.
func Probe(ctx context.Context, addr string) (alive bool) {
	conn, err := tcpDialer().DialContext(ctx, "tcp", addr)
	if err == nil {
		_ = conn.Close()
		return true
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}

// Boottime returns CLOCK_BOOTTIME as an instant since 1970, for [MonitorOptions].Now.
// Unlike time.Now's monotonic reading it goes on while the host is suspended, so
// that a lease cannot survive a suspend. Compare it only with itself.
func Boottime() time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("replica: CLOCK_BOOTTIME: " + err.Error()) // Linux >= 2.6.39 has it
	}
	return time.Unix(ts.Unix())
}
