package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const socketMode = 0o660

// lockedListener is a Unix listener together with the lock that proves that no
// other daemon serves its path. The lock dies with the process; its file stays.
type lockedListener struct {
	*net.UnixListener
	path string
	lock *os.File
	once sync.Once
	log  *slog.Logger

	mu   sync.Mutex
	open map[uint32]int // connections, by user
}

// userConnsMax bounds the connections of one user, so that nobody, by accident or
// on purpose, takes the socket from the others: commands that follow events or
// epochs hold one for as long as they run.
const userConnsMax = 64

// Accept implements net.Listener. A connection that is one too many is closed.
func (l *lockedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := peerCred(conn)
		if err != nil {
			conn.Close() // it is gone already
			continue
		}
		l.mu.Lock()
		n := l.open[cred.Uid]
		if n < userConnsMax {
			l.open[cred.Uid]++
		}
		l.mu.Unlock()
		if n < userConnsMax {
			return &countedConn{UnixConn: conn, end: sync.OnceFunc(func() { l.ended(cred.Uid) })}, nil
		}
		l.log.Warn("control socket: a connection is refused: its user has too many", "uid", cred.Uid, "pid", cred.Pid, "max", userConnsMax)
		conn.Close()
	}
}

func (l *lockedListener) ended(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid]--; l.open[uid] <= 0 {
		delete(l.open, uid)
	}
}

// countedConn is a connection that its listener counts.
type countedConn struct {
	*net.UnixConn
	end func()
}

func (c *countedConn) Close() error {
	c.end()
	return c.UnixConn.Close()
}

// listen binds path for members of group (empty: root's). The socket appears
// under its name only when its mode and group are right. A file left there by a
// daemon that died is replaced; a living daemon is an Error with CodeConflict.
func listen(path, group string) (*lockedListener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, Errorf(CodeInternal, "create the directory or set `control.socket`", "control socket: %w", err)
	}
	lock, err := lockPath(path)
	if err != nil {
		return nil, err
	}
	l, err := bind(path, gid)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &lockedListener{UnixListener: l, path: path, lock: lock, log: slog.New(slog.DiscardHandler), open: map[uint32]int{}}, nil
}

// Close stops listening, removes the socket and gives up the lock. It acts only
// once: after that the path may belong to the next daemon.
func (l *lockedListener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		os.Remove(l.path) // first: whoever connects from now on is told that there is no daemon
		err = l.UnixListener.Close()
		l.lock.Close()
	})
	return err
}

func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, Errorf(CodeInternal, "create the group or correct `control.group` in the configuration",
			"control socket: group %q: %w", group, err)
	}
	return strconv.Atoi(g.Gid)
}

// lockPath takes the lock of a socket path and writes our process id into it.
func lockPath(path string) (*os.File, error) {
	name := path + ".lock"
	lock, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, Errorf(CodeInternal, "run the daemon as root", "control socket: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer lock.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("control socket: lock %s: %w", name, err)
		}
		pid := make([]byte, 16)
		n, _ := lock.ReadAt(pid, 0)
		return nil, Errorf(CodeConflict, "stop it first: systemctl stop virt-ft",
			"another virt-ft daemon (pid %s) already serves %s", strings.TrimSpace(string(pid[:n])), path)
	}
	if err := lock.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(lock, os.Getpid()) // only for the message above
	}
	return lock, nil
}

func bind(path string, gid int) (*net.UnixListener, error) {
	info, err := os.Lstat(path)
	if err == nil && info.Mode()&fs.ModeSocket == 0 {
		return nil, Errorf(CodeInternal, "move it away or set `control.socket`",
			"control socket: %s exists and is not a socket", path)
	}
	// A name of the same length, so that it fits where path fits.
	tmp := filepath.Join(filepath.Dir(path), temporaryName(filepath.Base(path)))
	os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(tmp, socketMode)
	if err == nil && gid >= 0 {
		err = os.Lchown(tmp, -1, gid)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		l.Close()
		os.Remove(tmp)
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

func temporaryName(base string) string {
	if base[0] == '~' {
		return "_" + base[1:]
	}
	return "~" + base[1:]
}

// peerKey is the context key of a connection's *unix.Ucred.
type peerKey struct{}

func withPeer(ctx context.Context, conn net.Conn) context.Context {
	uc, ok := conn.(syscall.Conn)
	if !ok {
		return ctx
	}
	cred, err := peerCred(uc)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

// peerCred asks the kernel who connected.
func peerCred(conn syscall.Conn) (cred *unix.Ucred, err error) {
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

// peerOf returns who is at the other end; nil when the kernel did not say.
func peerOf(ctx context.Context) *unix.Ucred {
	cred, _ := ctx.Value(peerKey{}).(*unix.Ucred)
	return cred
}

// Notify tells the service manager about a change of state, such as "READY=1"
// or "STOPPING=1" (sd_notify(3)). Without NOTIFY_SOCKET it does nothing.
func Notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
