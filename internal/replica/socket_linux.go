package replica

import (
	"context"
	"errors"
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
