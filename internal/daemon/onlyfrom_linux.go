package daemon

import (
	"log/slog"
	"net"

	"golang.org/x/sys/unix"
)

// onlyFrom is a listener for one process. The socket's mode keeps other users out;
// but all guests' QEMUs may run as one user, and one that was broken into is to
// find no other guest's disks here.
type onlyFrom struct {
	*net.UnixListener
	pid int
	log *slog.Logger
}

// Accept implements net.Listener. What is of another process is closed.
func (l onlyFrom) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := credentials(conn)
		if err == nil && int(cred.Pid) == l.pid {
			return conn, nil
		}
		conn.Close()
		if err == nil {
			l.log.Warn("a process that is not the guest's QEMU is refused at the server of its disks", "pid", cred.Pid, "uid", cred.Uid)
		}
	}
}

func credentials(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return nil, cerr
	}
	return cred, err
}
