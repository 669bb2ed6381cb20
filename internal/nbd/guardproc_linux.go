package nbd

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// guardName is argv[0] of a guard and what MaybeGuard looks for.
	guardName = "virt-ft-nbd-guard"
	// guardFd is the descriptor through which a guard is spoken to.
	guardFd = 3
)

// MaybeGuard turns a process started by StartGuard into the guard: it does its
// work and exits. In every other process it returns at once. It must be among
// the first calls of main and of TestMain.
func MaybeGuard() {
	if len(os.Args) != 2 || os.Args[0] != guardName {
		return
	}
	limit, err := strconv.ParseInt(os.Args[1], 10, 64)
	if err != nil || time.Duration(limit) < GuardLimitMin {
		os.Exit(2)
	}
	// A service manager that stops the whole unit tells us too. The daemon closes
	// its connections first, and we end with it.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	// What we need shall not be on a swap device when the host is short of
	// memory. A comfort: it takes a privilege, or a small process.
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	os.Exit(newGuardWork(guardFd, time.Duration(limit)).run())
}

// guardWork is the state of the guard's own process, which has one goroutine.
type guardWork struct {
	sock      int // towards the daemon
	limit     time.Duration
	conns     map[uint64]int // descriptors
	listeners map[uint64]int
	deadline  time.Time // when to act, unless something is heard
	silent    bool      // it was reached; nothing was heard since
}

func newGuardWork(sock int, limit time.Duration) *guardWork {
	return &guardWork{sock: sock, limit: limit, conns: map[uint64]int{}, listeners: map[uint64]int{}}
}

// run watches until the daemon is gone.
func (w *guardWork) run() int {
	w.heard()
	w.report(guardReport{kind: reportAlive})
	for {
		fds := []unix.PollFd{{Fd: int32(w.sock), Events: unix.POLLIN}}
		timeout := -1
		if w.silent {
			for _, fd := range w.listeners {
				fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			}
		} else {
			timeout = int(max(0, time.Until(w.deadline)).Milliseconds()) + 1
		}
		if _, err := unix.Poll(fds, timeout); err != nil && err != unix.EINTR {
			return 1
		}
		if fds[0].Revents != 0 && !w.receive() {
			w.cut() // the daemon is gone, and its sockets are open here alone
			return 0
		}
		if !w.silent && !time.Now().Before(w.deadline) {
			w.overdue()
		}
		if w.silent {
			w.turnAway()
		}
	}
}

func (w *guardWork) heard() {
	w.deadline = time.Now().Add(w.limit)
	w.silent = false
}

// overdue acts when the daemon was silent for the limit. If we come much too
// late ourselves, we were frozen too, as with the whole host: then the daemon
// has not had its chance yet, and gets some time.
func (w *guardWork) overdue() {
	late := time.Since(w.deadline)
	if late > w.limit/2 {
		w.deadline = time.Now().Add(w.limit / 2)
		return
	}
	w.silent = true
	w.report(guardReport{kind: reportFired, conns: w.cut(), silent: w.limit + late})
}

// cut shuts all connections down and returns their number.
func (w *guardWork) cut() int {
	n := len(w.conns)
	for id, fd := range w.conns {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // fails if it is shut down
		_ = unix.Close(fd)
		delete(w.conns, id)
	}
	return n
}

// turnAway closes what connects while nobody would answer.
func (w *guardWork) turnAway() {
	for _, ln := range w.listeners {
		for {
			fd, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
			if err != nil {
				break
			}
			_ = unix.Close(fd)
		}
	}
}

// report tells the daemon, if it listens.
func (w *guardWork) report(r guardReport) {
	_ = unix.Sendmsg(w.sock, r.append(nil), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// receive takes all messages there are; false when the daemon is gone.
func (w *guardWork) receive() bool {
	var b [messageBytes + 1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(w.sock, b[:], oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return true
		case err != nil || n == 0:
			return false
		}
		fd := descriptor(oob[:oobn])
		if n != messageBytes {
			_ = unix.Close(fd) // EBADF if there is none
			return false
		}
		w.heard()
		w.take(parseMessage(b[:n]), fd)
	}
}

// descriptor returns the one that came with a message, or -1.
func descriptor(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1
	}
	return fds[0]
}

func (w *guardWork) take(m guardMessage, fd int) {
	switch {
	case m.kind == messageBeat:
		w.report(guardReport{kind: reportAlive})
	case m.kind == messageConn && fd >= 0 && len(w.conns) < guardConnsMax:
		w.conns[m.id], fd = fd, -1
	case m.kind == messageListener && fd >= 0 && len(w.listeners) < guardListenersMax:
		w.listeners[m.id], fd = fd, -1
	case m.kind == messageForget:
		for _, held := range []map[uint64]int{w.conns, w.listeners} {
			if old, ok := held[m.id]; ok {
				_ = unix.Close(old)
				delete(held, m.id)
			}
		}
	}
	if fd >= 0 {
		_ = unix.Close(fd) // more than was agreed
	}
}
