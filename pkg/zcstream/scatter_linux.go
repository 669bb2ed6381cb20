package zcstream

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scatter reads into many buffers with one system call.
type scatter struct {
	raw    syscall.RawConn
	iov    []unix.Iovec
	stepFn func(fd uintptr) bool
	lookFn func() (bool, error)
	detour detour

	// Of the read that is running.
	cargo *cargo
	room  []byte
	ahead int
	err   error
}

// newScatter returns nil for connections whose bytes do not come from a socket
// as they are.
func newScatter(conn net.Conn) *scatter {
	var sock syscall.Conn
	switch c := conn.(type) {
	case *net.TCPConn:
		sock = c
	case *net.UnixConn:
		sock = c
	default:
		return nil
	}
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil // closed: reading will say so
	}
	s := &scatter{raw: raw}
	s.stepFn, s.lookFn = s.step, s.look
	return s
}

// read fills c, and then room as far as bytes have arrived in the same system
// call. It returns how many it put there.
func (s *scatter) read(c *cargo, room []byte) (int, error) {
	s.cargo, s.room, s.ahead, s.err = c, room, 0, nil
	err := s.detour.read(s.raw, s.stepFn, s.lookFn)
	if err == nil {
		err = s.err
	}
	s.cargo, s.room = nil, nil
	return s.ahead, err
}

// look is step without the runtime's poller: it never waits.
func (s *scatter) look() (done bool, err error) {
	err = s.raw.Control(func(fd uintptr) { done = s.step(fd) })
	return done, err
}

// interrupt makes a read look at the connection's deadline and Close.
func (s *scatter) interrupt() { s.detour.ring() }

// close gives back what reading took. The connection was closed before.
func (s *scatter) close() { s.detour.close() }

// step reads until nothing is there (false), the cargo is full, or it failed
// (true).
func (s *scatter) step(fd uintptr) bool {
	for s.cargo.left > 0 {
		s.iov = s.cargo.vector(s.iov[:0], s.cargo.left)
		if len(s.iov) < vectorMax {
			v := unix.Iovec{Base: unsafe.SliceData(s.room)}
			v.SetLen(len(s.room))
			s.iov = append(s.iov, v)
		}
		r, _, errno := unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.iov))), uintptr(len(s.iov)))
		clear(s.iov)
		n := int(r)
		switch {
		case errno == 0 && n == 0:
			s.err = io.EOF
			return true
		case errno == 0:
			s.ahead = max(0, n-s.cargo.vectorBytes)
			s.cargo.advance(n - s.ahead)
		case errors.Is(errno, unix.EAGAIN):
			return false
		case !errors.Is(errno, unix.EINTR):
			s.err = os.NewSyscallError("readv", errno)
			return true
		}
	}
	return true
}
