package zcstream

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// detour waits for bytes on a connection while the runtime's poller refuses to.
//
// A report that arrives while the socket is neither readable nor writable is an
// event of EPOLLERR and nothing else. The runtime (netpoll_epoll.go, setEventErr)
// takes that for a descriptor it cannot poll, and fails whoever waits to read,
// and whoever comes after, until the next event that is more than that. The
// stream itself is in order.
//
// So the Receiver has an epoll of its own then, which is in turn a file that the
// runtime can wait for, as that of watch is; unlike that one it asks for bytes.
// It holds the connection neither by a second descriptor nor by a reference
// while it waits: Close would wait for it, or not end the stream.
//
// The runtime tells such an epoll nothing about deadlines and Close of the
// connection. Contexts and [Receiver.Close] ring by themselves; for others it
// looks each watchTick.
type detour struct {
	mu     sync.Mutex
	epoll  *os.File // nil until the runtime refused for the first time
	closed bool
	events [1]unix.EpollEvent // owned by the reader
}

// read runs step until it returns true, without the runtime's poller for as
// long as that refuses; look is step for RawConn.Control.
func (d *detour) read(raw syscall.RawConn, step func(uintptr) bool, look func() (bool, error)) error {
	err := raw.Read(step) // waits, and knows deadlines and Close
	for refusedToPoll(err) {
		var wait *os.File
		if wait, err = d.open(raw); err != nil {
			return err
		}
		// Everything is looked at after the deadline is set, so that who rings
		// from now on moves a deadline that stays moved. The runtime is asked
		// first: it knows Close and deadlines, and may be willing again.
		_ = wait.SetReadDeadline(time.Now().Add(watchTick)) // fails if Close came: as will raw
		if err = raw.Read(step); !refusedToPoll(err) {
			break
		}
		done, lookErr := look()
		if done || lookErr != nil {
			return lookErr
		}
		if waitErr := d.wait(wait); waitErr != nil {
			return waitErr
		}
	}
	if errors.Is(err, net.ErrClosed) {
		d.close() // also when it was not the Receiver who closed it
	}
	return err
}

// refusedToPoll says that RawConn.Read failed for another reason than Close and
// deadlines. There is one only, internal/poll.ErrNotPollable, which nobody can
// name; should there be more one day, the socket will tell.
func refusedToPoll(err error) bool {
	return err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// open returns the epoll, which it makes at the first call.
func (d *detour) open(raw syscall.RawConn) (*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, net.ErrClosed
	}
	if d.epoll != nil {
		return d.epoll, nil
	}
	var epollErr error
	err := raw.Control(func(fd uintptr) {
		d.epoll, epollErr = newEpoll(int(fd), unix.EPOLLIN|unix.EPOLLRDHUP)
	})
	if err == nil && epollErr != nil {
		err = fmt.Errorf("zcstream: cannot wait for bytes beside a Sender's reports: %w", epollErr)
	}
	return d.epoll, err
}

// wait returns when something happened to the socket since the last wait, or a
// watchTick has passed, or somebody rang.
func (d *detour) wait(epoll *os.File) error {
	var waitErr error
	raw, err := epoll.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(ep uintptr) bool {
		var n int
		n, waitErr = unix.EpollWait(int(ep), d.events[:], 0)
		if errors.Is(waitErr, unix.EINTR) {
			waitErr = nil
		}
		return n > 0 || waitErr != nil
	})
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return os.NewSyscallError("epoll_wait", waitErr)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return net.ErrClosed
	}
	return err
}

// ring interrupts a wait, so that it looks at the connection again.
func (d *detour) ring() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.epoll != nil {
		_ = d.epoll.SetReadDeadline(aLongTimeAgo())
	}
}

// close ends a wait. The connection was closed before.
func (d *detour) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.epoll != nil {
		_ = d.epoll.Close()
		d.epoll = nil
	}
}
