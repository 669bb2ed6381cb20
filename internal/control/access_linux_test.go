package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	nobodyUID = 65534
	groupGID  = 1 // "daemon" on Debian; whichever it is, some user is in it for this test
)

// asUser connects to a Unix socket as a user of no groups but gid, as the kernel
// sees it: on a thread that gives root's rights up, and ends.
func asUser(uid, gid int, path string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			groups := [1]uint32{uint32(gid)}
			for _, c := range [][4]uintptr{
				{unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&groups)), 0},
				{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
				{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
			} {
				if _, _, errno := unix.RawSyscall(c[0], c[1], c[2], c[3]); errno != 0 {
					return errno
				}
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}()
	}()
	return <-done
}

// served serves s for the test, in a directory that all users can enter.
func served(t *testing.T, group string, log *slog.Logger) (path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the socket is given to a group, and tried as other users")
	}
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(dir, "s")
	s := NewServer(&scripted{status: func(string) ([]Status, error) { return nil, nil }}, ServerOptions{Socket: path, Group: group, Log: log})
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(t.Context()) }()
	t.Cleanup(func() {
		s.Close()
		<-ended
	})
	return path
}

// TestWhoMayConnect: root and the group's members, and nobody else.
func TestWhoMayConnect(t *testing.T) {
	g, err := user.LookupGroupId("1")
	if err != nil {
		t.Skipf("needs a group with id %d: %v", groupGID, err)
	}
	open, closed := served(t, g.Name, nil), served(t, "", nil)
	for _, c := range []struct {
		path     string
		uid, gid int
		refused  bool
	}{
		{open, 0, 0, false}, {open, nobodyUID, groupGID, false}, {open, nobodyUID, nobodyUID, true},
		{closed, 0, 0, false}, {closed, nobodyUID, groupGID, true}, {closed, nobodyUID, nobodyUID, true},
	} {
		err := asUser(c.uid, c.gid, c.path)
		if c.refused && !errors.Is(err, unix.EACCES) || !c.refused && err != nil {
			t.Errorf("user %d of group %d: %v", c.uid, c.gid, err)
		}
	}
}

// TestOneUserTakesNotAll: a user who holds all connections that one may have is
// refused another, and hears so at once; others are served, and so is that user
// when one ended.
func TestOneUserTakesNotAll(t *testing.T) {
	var log syncBuffer
	path := served(t, "", slog.New(slog.NewTextHandler(&log, nil)))
	held := make([]net.Conn, userConnsMax)
	for i := range held {
		var err error
		if held[i], err = net.Dial("unix", path); err != nil {
			t.Fatal(err)
		}
		defer held[i].Close()
	}
	over, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	if n, err := over.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	if !strings.Contains(log.String(), "its user has too many") {
		t.Error(log.String())
	}
	held[0].Close()
	c := NewClient(path)
	defer c.Close()
	for start := time.Now(); ; {
		if _, err := c.Status(context.Background(), ""); err == nil {
			break
		} else if time.Since(start) > 10*time.Second {
			t.Fatal(err)
		}
	}
}

// TestHalfRequests: who begins a request and does not end it is closed on; who sends
// garbage is told.
func TestHalfRequests(t *testing.T) {
	path := served(t, "", nil)
	for name, c := range map[string]struct{ says, answer string }{
		"garbage":           {"\x00\x01\x02\r\n\r\n", "400"},
		"endless header":    {"GET /v1/status HTTP/1.1\r\nX: " + strings.Repeat("x", 64<<10), "431"},
		"half of a request": {"GET /v1/status HTTP/1.1\r\n", ""},
		"half of a body":    {"POST /v1/unprotect HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte(c.says)); err != nil && !errors.Is(err, unix.EPIPE) {
				t.Fatal(err)
			}
			b, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(string(b), c.answer) {
				t.Errorf("%q %v", b, err)
			}
		})
	}
}
