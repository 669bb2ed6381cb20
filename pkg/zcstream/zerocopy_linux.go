package zcstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// averageMinBytes: buffers that are smaller on average are copied, because
	// lending costs a page reference and a fragment for each.
	averageMinBytes = 1024
	// probeBytes is how much is lent to find out whether it is worth it.
	probeBytes = 128 << 10
	// plainBytes is how much is copied before lending is considered again, when
	// it was right but for a moment.
	plainBytes = 256 << 10
)

// zeroCopy sends on one TCP connection with MSG_ZEROCOPY, as described in
// Documentation/networking/msg_zerocopy.rst of the kernel.
type zeroCopy struct {
	raw  syscall.RawConn
	opts Options
	// sendmsg is the system call; tests let it fail.
	sendmsg func(fd int, iov []unix.Iovec, flags int) (int, error)

	// Owned by the Send whose turn it is.
	cargo   cargo
	iov     []unix.Iovec
	loan    *loan // nil until this Send lends something
	sendErr error
	stepFn  func(fd uintptr) bool
	queue   errorQueue

	mu      sync.Mutex
	ledger  ledger
	policy  policy
	watch   *watch // nil while nothing was lent for a while
	broken  bool   // a Send failed: what it lent is worth nothing to the peer
	closed  bool
	kicked  bool // closed or broken changed, and watch did not look yet
	stats   Stats
	loans   int // whose done was not called yet
	drained chan struct{}
	spare   []*loan
}

// newZeroCopy returns nil, and why, where memory cannot be lent at all.
func newZeroCopy(conn net.Conn, opts Options) (*zeroCopy, string) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, fmt.Sprintf("%T is not a TCP socket", conn)
	}
	if opts.ZeroCopy == ModeOff {
		return nil, "switched off"
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err.Error()
	}
	var enableErr error
	if err := raw.Control(func(fd uintptr) { enableErr = enable(int(fd)) }); err != nil {
		return nil, err.Error()
	}
	if enableErr != nil {
		return nil, enableErr.Error()
	}
	z := &zeroCopy{
		raw: raw, opts: opts, sendmsg: sendmsg,
		policy: policy{mode: opts.ZeroCopy, reprobeAfter: opts.ReprobeAfter},
	}
	z.stepFn = z.step
	return z, ""
}

// enable switches SO_ZEROCOPY on. A socket that has it on already is left
// alone: somebody may have lent memory through it, and then the kernel's
// numbers do not begin with 0. MPTCP is refused, because older kernels take the
// flag of sendmsg and never report.
func enable(fd int) error {
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_PROTOCOL", err)
	}
	if proto != unix.IPPROTO_TCP {
		return fmt.Errorf("the socket speaks protocol %d, not TCP", proto)
	}
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_ZEROCOPY", err)
	}
	if on != 0 {
		return errors.New("somebody else switched SO_ZEROCOPY on")
	}
	return os.NewSyscallError("setsockopt SO_ZEROCOPY", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1))
}

// sendmsg sends iov, and does not wait.
func sendmsg(fd int, iov []unix.Iovec, flags int) (int, error) {
	msg := unix.Msghdr{Iov: unsafe.SliceData(iov)}
	msg.SetIovlen(len(iov))
	n, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags|unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// write sends bufs. It returns the loan that it took for them, if it took one,
// which the caller passes to settle. The caller has the turn.
func (z *zeroCopy) write(bufs [][]byte) (int, *loan, error) {
	total := z.cargo.load(bufs)
	z.loan, z.sendErr = nil, nil
	err := z.raw.Write(z.stepFn) // waits, and knows deadlines and Close
	if err == nil {
		err = z.sendErr
	}
	n, lo := total-z.cargo.left, z.loan
	z.cargo, z.loan = cargo{}, nil
	return n, lo, err
}

// step sends until the socket's buffer is full (false), all is sent, or it
// failed (true).
func (z *zeroCopy) step(fd uintptr) bool {
	for z.cargo.left > 0 {
		n, err := z.piece(int(fd))
		switch {
		case err == nil:
			z.cargo.advance(n)
		case errors.Is(err, unix.EAGAIN):
			return false
		case !errors.Is(err, unix.EINTR):
			z.sendErr = os.NewSyscallError("sendmsg", err)
			return true
		}
	}
	return true
}

// piece makes one system call that moves bytes, and perhaps one before it that
// was refused: what the kernel does not want to borrow it copies.
func (z *zeroCopy) piece(fd int) (int, error) {
	how, limit := z.plan(time.Now())
	z.iov = z.cargo.vector(z.iov[:0], limit)
	defer clear(z.iov)
	if how != plain && z.cargo.vectorBytes >= averageMinBytes*len(z.iov) && z.cargo.vectorBytes >= z.opts.MinZeroCopyBytes {
		if id, ok := z.borrow(fd, how); ok {
			n, err := z.sendmsg(fd, z.iov, unix.MSG_ZEROCOPY)
			z.borrowed(id, n, err)
			if !refused(err) {
				return n, err
			}
			// Option memory comes back with the reports: without reading them, the
			// next call would be refused as well.
			z.reap(fd, &z.queue)
			clear(z.iov)
			z.iov = z.cargo.vector(z.iov[:0], plainBytes)
		}
	}
	n, err := z.sendmsg(fd, z.iov, 0)
	return n, err
}

// plan decides about the next piece, and how many bytes it may have.
func (z *zeroCopy) plan(now time.Time) (verdict, int) {
	const unlimited = int(^uint(0) >> 1)
	if z.cargo.left < z.opts.MinZeroCopyBytes {
		return plain, unlimited
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	room := z.opts.PendingMaxBytes - int(z.ledger.bytes)
	switch how := z.policy.want(now); {
	case how == plain && z.policy.state == asked, how != plain && (z.ledger.full() || room < z.opts.MinZeroCopyBytes):
		return plain, plainBytes
	case how == plain:
		return plain, unlimited
	case how == probe:
		return probe, min(room, max(probeBytes, z.opts.MinZeroCopyBytes))
	default:
		return lend, room
	}
}

// borrow registers the next system call, before it is made.
func (z *zeroCopy) borrow(fd int, how verdict) (id uint32, ok bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.watch == nil {
		w, err := newWatch(fd)
		if err != nil {
			z.policy.rest(fmt.Sprintf("cannot watch for the kernel's reports: %v", err), time.Now())
			return 0, false
		}
		z.watch = w
		go z.look(w)
	}
	z.watch.used = time.Now()
	if z.loan == nil {
		z.loan = z.newLoan()
		z.loan.bufs = append(z.loan.bufs[:0], z.cargo.bufs...)
		z.loans++
	}
	id = z.ledger.lend(z.loan)
	if how == probe {
		z.policy.probed(id)
	}
	return id, true
}

// borrowed notes what came of the system call that borrow registered.
func (z *zeroCopy) borrowed(id uint32, n int, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.ledger.took(id, uint64(n))
	z.stats.ZeroCopyBytes += uint64(n)
	if err == nil {
		return
	}
	if z.policy.state == asked && z.policy.question == id {
		z.policy.state = probing // it was not asked after all
	}
	switch {
	case errors.Is(err, unix.ENOBUFS):
		z.stats.NoBuffers++
	case refused(err):
		z.policy.stop(fmt.Sprintf("the socket does not take MSG_ZEROCOPY: %v", err))
	}
}

// refused says that the kernel did not want to borrow, and that a plain send of
// the same bytes may well succeed.
func refused(err error) bool {
	return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// settle ends the Send that took lo. It returns true when the kernel has
// nothing of it any more: then the caller calls done, and then repaid.
func (z *zeroCopy) settle(lo *loan, done func(error), err error) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	lo.over, lo.done, lo.err = true, done, err
	return lo.open == 0
}

// repaid notes that done was called for lo.
func (z *zeroCopy) repaid(lo *loan) {
	z.mu.Lock()
	defer z.mu.Unlock()
	clear(lo.bufs)
	*lo = loan{bufs: lo.bufs[:0]}
	if len(z.spare) < 16 {
		z.spare = append(z.spare, lo)
	}
	if z.loans--; z.loans == 0 && z.drained != nil {
		close(z.drained)
		z.drained = nil
	}
}

// newLoan returns one that was used before, or a new one. The caller holds mu.
func (z *zeroCopy) newLoan() *loan {
	n := len(z.spare)
	if n == 0 {
		return new(loan)
	}
	lo := z.spare[n-1]
	z.spare = z.spare[:n-1]
	return lo
}

// drain waits until done was called for all loans.
func (z *zeroCopy) drain(ctx context.Context) error {
	z.mu.Lock()
	if z.loans == 0 {
		z.mu.Unlock()
		return nil
	}
	if z.drained == nil {
		z.drained = make(chan struct{})
	}
	drained := z.drained
	z.mu.Unlock()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// snapshot adds what only zeroCopy knows to st.
func (z *zeroCopy) snapshot(st Stats) Stats {
	z.mu.Lock()
	defer z.mu.Unlock()
	st.ZeroCopyBytes, st.Completions, st.CopiedCompletions = z.stats.ZeroCopyBytes, z.stats.Completions, z.stats.CopiedCompletions
	st.NoBuffers, st.PendingBytes = z.stats.NoBuffers, z.ledger.bytes
	st.Mode = z.policy.String()
	return st
}
