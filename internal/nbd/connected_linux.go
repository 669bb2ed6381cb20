package nbd

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Connected returns nil if somebody uses an export and nobody's end of that
// connection is closed, at this instant and in the kernel: a goroutine that
// reads from it may not have come to notice yet. A client that saw the
// connection end before the call is an error here.
func (s *Server) Connected(export string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	users := 0
	for c := range s.conns {
		if c.export == nil || c.export.name != export {
			continue
		}
		if hungUp(c) {
			return fmt.Errorf("nbd: export %s: %w", export, ErrHungUp)
		}
		users++
	}
	if users == 0 {
		return fmt.Errorf("nbd: export %s: %w", export, ErrUnused)
	}
	return nil
}

// hungUp asks the kernel whether one of both sides closed the connection.
func hungUp(c *conn) bool {
	raw, ok := c.nc.(syscall.Conn)
	if !ok {
		return false
	}
	sc, err := raw.SyscallConn()
	if err != nil {
		return true
	}
	hung := true
	err = sc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		for err == unix.EINTR { // the runtime's own signals, to begin with
			n, err = unix.Poll(p, 0)
		}
		hung = err != nil || n > 0 // POLLHUP and POLLERR need not be asked for
	})
	return err != nil || hung
}
