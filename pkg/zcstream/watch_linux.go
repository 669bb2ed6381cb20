package zcstream

import (
	"errors"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watchTick is how often a watch looks whether it is still needed, and whether
// somebody closed the connection without telling the Sender.
const watchTick = 100 * time.Millisecond

// watch waits for the kernel's reports about one connection, also while nobody
// sends. The reports are in the socket's error queue, and arrive as EPOLLERR.
//
// RawConn.Read of the connection itself would wait for them too, but with the
// connection's read lock, so that a Receiver on it would starve; RawConn.Write
// would stop the Sender in the same way. So the socket gets a second descriptor,
// which is in an epoll of its own that asks for nothing: EPOLLERR and EPOLLHUP
// are always reported, and bytes that come in wake nobody. That epoll in turn is
// a file the runtime's poller can wait for: a parked goroutine, no thread.
//
// The second descriptor has another purpose: it keeps the socket alive when the
// connection is closed, and with it the only place where the kernel says when it
// is through with our memory. A socket without descriptor goes on sending in the
// background, and tells nobody.
//
// For as long as it exists, though, closing the connection itself does not end
// the stream for the peer. So it exists only while memory is lent, and a little
// longer, and looks for such a close by itself.
type watch struct {
	fd    int // the socket
	epoll *os.File
	wait  syscall.RawConn // of epoll
	queue errorQueue
	used  time.Time // when memory was last lent; under the lock of zeroCopy

	// Owned by look.
	lingers time.Time // until when a closed stream may go on
	reset   bool
}

func newWatch(socket int) (*watch, error) {
	fd, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	w := &watch{fd: fd}
	if w.epoll, err = newEpoll(fd, 0); err == nil {
		w.wait, err = w.epoll.SyscallConn()
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// newEpoll returns an epoll that becomes readable with each report of fd, and
// with each of the events.
func newEpoll(fd int, events uint32) (*os.File, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events | unix.EPOLLET}); err != nil {
		_ = unix.Close(ep)
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // or os does not poll it
		_ = unix.Close(ep)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(ep), "epoll"), nil
}

func (w *watch) close() {
	if w.epoll != nil {
		_ = w.epoll.Close()
	}
	_ = unix.Close(w.fd)
}

// kick interrupts the watch's waiting.
func (w *watch) kick() { _ = w.epoll.SetReadDeadline(aLongTimeAgo()) }

// sleep waits until something is in the error queue, and not beyond until.
func (w *watch) sleep(until time.Time, kicked func() bool) {
	_ = w.epoll.SetReadDeadline(until)
	if kicked() { // asked after the deadline is set: a later kick overrides it
		return
	}
	var events [1]unix.EpollEvent
	_ = w.wait.Read(func(ep uintptr) bool { // fails with the deadline only
		n, err := unix.EpollWait(int(ep), events[:], 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// look runs a watch until it is not needed any more.
func (z *zeroCopy) look(w *watch) {
	until := time.Now().Add(watchTick)
	for again := true; again; {
		w.sleep(until, z.takeKick)
		z.reap(w.fd, &w.queue)
		until, again = z.review(w, time.Now())
	}
	w.close()
}

// kick tells the watch, if there is one, that the stream was closed or broken.
func (z *zeroCopy) kick(closed, broken bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.closed, z.broken = z.closed || closed, z.broken || broken
	if z.watch != nil {
		z.kicked = true
		z.watch.kick()
	}
}

func (z *zeroCopy) takeKick() bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	was := z.kicked
	z.kicked = false
	return was
}

// review decides whether w is still needed, and when it should look again at
// the latest. A stream that was closed with memory still lent lives on for
// LingerMax, because what was sent before Close is worth delivering; then, or at
// once if a Send was cut off in the middle, the connection is reset, upon which
// the kernel forgets what it has queued and gives back the memory. What a device
// is sending at that very moment comes back when it is through: nobody can hurry
// that, and nobody may assume it.
func (z *zeroCopy) review(w *watch, now time.Time) (until time.Time, again bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	closed := z.closed || z.raw.Control(func(uintptr) {}) != nil
	tick := now.Add(watchTick)
	if z.ledger.n == 0 {
		if closed || now.Sub(w.used) >= watchTick {
			z.watch, z.kicked = nil, false
			return now, false
		}
		return tick, true
	}
	if !closed {
		return tick, true
	}
	if w.lingers.IsZero() {
		w.lingers = now.Add(z.opts.LingerMax)
		_ = unix.Shutdown(w.fd, unix.SHUT_RDWR) // fails if the peer was faster
	}
	switch {
	case w.reset:
		return tick, true
	case z.broken || !now.Before(w.lingers):
		w.reset = true
		disconnect(w.fd)
		return now, true
	default:
		return w.lingers, true
	}
}

// disconnect resets the connection of fd, as a close with SO_LINGER 0 would, but
// keeps the socket: connect(2), "dissolve the association by AF_UNSPEC". Its
// error does not matter: a connection that is gone needs none.
func disconnect(fd int) {
	addr := unix.RawSockaddrInet6{Family: unix.AF_UNSPEC}
	_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&addr)), unsafe.Sizeof(addr))
}

// reap reads the error queue until it is empty, and calls done for all loans
// that are whole again.
func (z *zeroCopy) reap(fd int, q *errorQueue) {
	for {
		q.settled = q.settled[:0]
		more := z.collect(fd, q)
		for i, lo := range q.settled {
			q.settled[i] = nil
			if lo.done != nil {
				lo.done(lo.err)
			}
			z.repaid(lo)
		}
		if !more {
			return
		}
	}
}

// reportsMax is how many reports are read before their done are called.
const reportsMax = 64

// errorQueue is what it takes to read reports.
type errorQueue struct {
	control [controlBytes]byte
	settled []*loan
}

// collect reads up to reportsMax reports into the ledger. It returns false when
// there are no more.
func (z *zeroCopy) collect(fd int, q *errorQueue) bool {
	for range reportsMax {
		msg := unix.Msghdr{Control: &q.control[0]}
		msg.SetControllen(len(q.control))
		_, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return false // EAGAIN: it is empty
		}
		r, err := parseReport(q.control[:min(uint64(msg.Controllen), controlBytes)])
		if errors.Is(err, errNoReport) {
			continue
		}
		z.returned(q, r, err)
	}
	return true
}

// returned enters a report, or the failure to read it.
func (z *zeroCopy) returned(q *errorQueue, r report, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err == nil {
		q.settled, err = z.ledger.giveBack(q.settled, r.lo, r.hi)
	}
	if err != nil {
		z.policy.stop("a report of the socket makes no sense; does somebody else use MSG_ZEROCOPY on it? " + err.Error())
		return
	}
	n := uint64(r.hi-r.lo) + 1
	z.stats.Completions += n
	if r.copied {
		z.stats.CopiedCompletions += n
	}
	z.policy.answered(r.lo, r.hi, r.copied, time.Now())
}
