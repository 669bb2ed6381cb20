package nbd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// guarded is a server in a process of its own, which has a guard.
type guarded struct {
	*served
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	seen  []string // and not awaited yet
	guard int      // process id
}

func startGuarded(t *testing.T, limit time.Duration) *guarded {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "nbd")
	cmd := exec.Command("/proc/self/exe", socket, limit.String())
	cmd.Args[0] = testServer
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g := &guarded{t: t, cmd: cmd, lines: make(chan string, 1000), served: &served{socket: socket}}
	go func() {
		defer close(g.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			g.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGCONT) // a test that failed in between
		in.Close()
		for range g.lines {
		}
		_ = cmd.Wait() // killed, perhaps
	})
	fmt.Sscanf(g.await("ready"), "ready %d", &g.guard)
	return g
}

// await returns a line that contains what and was not awaited yet. Lines of
// different goroutines come in any order.
func (g *guarded) await(what string) string {
	g.t.Helper()
	for i := 0; ; i++ {
		if i == len(g.seen) {
			line, ok := <-g.lines
			if !ok {
				break
			}
			g.seen = append(g.seen, line)
		}
		if line := g.seen[i]; strings.Contains(line, what) {
			g.seen = slices.Delete(g.seen, i, i+1)
			return line
		}
	}
	g.t.Fatalf("the server ended without %q", what)
	return ""
}

func (g *guarded) signal(s os.Signal) {
	g.t.Helper()
	if err := g.cmd.Process.Signal(s); err != nil {
		g.t.Fatal(err)
	}
}

// freeze stops the server and returns when it is stopped.
func (g *guarded) freeze() {
	g.t.Helper()
	g.signal(unix.SIGSTOP)
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, g.cmd.Process.Pid, &info, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		g.t.Fatal(err)
	}
}

// endOf returns a channel that is closed when a process has ended, which need
// not be a child of ours.
func endOf(t *testing.T, pid int) <-chan struct{} {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	ended := make(chan struct{})
	if err != nil {
		close(ended)
		return ended
	}
	go func() {
		defer close(ended)
		defer unix.Close(fd)
		for {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != unix.EINTR {
				return
			}
		}
	}()
	return ended
}

// qemuIO is a qemu-io that takes one command after the other.
type qemuIO struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

func startQemuIO(t *testing.T, uri string) *qemuIO {
	t.Helper()
	cmd := exec.Command(need(t, "qemu-io", qemuUtils), "-f", "raw", "-t", "writeback", "-d", "unmap", uri)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	q := &qemuIO{t, in, bufio.NewReader(r)}
	t.Cleanup(func() {
		in.Close()
		go io.Copy(io.Discard, r)
		_ = cmd.Wait()
	})
	q.answer()
	return q
}

// answer returns what is printed before the next prompt.
func (q *qemuIO) answer() string {
	q.t.Helper()
	var b []byte
	for !bytes.HasSuffix(b, []byte("qemu-io> ")) {
		c, err := q.out.ReadByte()
		if err != nil {
			q.t.Fatalf("qemu-io: %v after %q", err, b)
		}
		b = append(b, c)
	}
	return string(b)
}

func (q *qemuIO) do(command string) string {
	q.t.Helper()
	if _, err := fmt.Fprintln(q.in, command); err != nil {
		q.t.Fatal(err)
	}
	return q.answer()
}

// TestGuardFrozen: a server that is stopped does not hang its clients, and is
// there again when it goes on.
func TestGuardFrozen(t *testing.T) {
	g := startGuarded(t, 500*time.Millisecond)
	// Connections that come and go are not what the guard has room for.
	for range guardConnsMax + 10 {
		c := g.dial(t).choose("vda", false)
		c.put(requestHead(request{kind: cmdDisc}))
		c.wantClosed()
	}
	q := startQemuIO(t, g.uri("vda"))
	if out := q.do("write 0 4k"); !strings.Contains(out, "wrote 4096/4096") {
		t.Fatal(out)
	}
	g.freeze()
	began := time.Now()
	out := q.do("write 4k 4k")
	t.Logf("qemu-io waited for %v, the limit is 500ms", time.Since(began))
	if !strings.Contains(out, "write failed: Input/output error") {
		t.Errorf("qemu-io said %q", out)
	}
	// Who connects now is not left waiting either.
	for range 3 {
		g.dial(t).wantClosed()
	}
	g.signal(unix.SIGCONT)
	g.await("did not run for too long")
	g.await("closed nbd: export vda: the client closed")
	c := g.dial(t).choose("vda", false)
	c.put(requestHead(request{kind: cmdFlush}))
	c.wantSimple(0, 0)
}

// TestGuardOutlived: a server that is killed leaves neither waiting clients nor
// a guard.
func TestGuardOutlived(t *testing.T) {
	g := startGuarded(t, time.Hour) // not by the limit
	c := g.dial(t).choose("vda", false)
	ended := endOf(t, g.guard)
	g.signal(unix.SIGKILL)
	c.wantClosed()
	<-ended
}

// TestGuardAgain: a guard that is killed, or stopped, is replaced by one that
// has the same connections.
func TestGuardAgain(t *testing.T) {
	for _, how := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP} {
		t.Run(how.String(), func(t *testing.T) {
			g := startGuarded(t, 200*time.Millisecond)
			c := g.dial(t).choose("vda", false)
			first := endOf(t, g.guard)
			if err := unix.Kill(g.guard, how); err != nil {
				t.Fatal(err)
			}
			g.await("is started again")
			<-first
			g.await("watches again")
			c.put(requestHead(request{kind: cmdFlush}))
			c.wantSimple(0, 0)
			g.freeze()
			c.wantClosed()
			g.signal(unix.SIGCONT)
			g.await("closed")
		})
	}
}

// TestGuardProcess: what kind of process a guard is.
func TestGuardProcess(t *testing.T) {
	g, err := StartGuard(context.Background(), time.Minute, nil)
	if err != nil {
		t.Fatal(err)
	}
	pid := g.Pid()
	defer g.Close()
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d (%v), want one of its own, %d", sid, err, pid)
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	// It has a duplicate of each socket; a client whose connection we drop is told
	// even while the guard does nothing.
	s := serve(t, Options{Guard: g}, map[string]Backend{"vda": newMemory(t, 4096)})
	c := s.dial(t).choose("vda", false)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.Drop()
	c.wantClosed()
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-s.closed; !errors.Is(err, ErrDropped) {
		t.Error(err)
	}
	ended := endOf(t, pid)
	s.Close()
	g.Close()
	<-ended
	if _, err := StartGuard(context.Background(), GuardLimitMin-1, nil); err == nil {
		t.Error("a guard that would fire at anything was started")
	}
	after := serveError(t, Options{Guard: g})
	if after == nil || !strings.Contains(after.Error(), "closed") {
		t.Errorf("a server with a closed guard: %v", after)
	}
}

// serveError returns what Serve says at once.
func serveError(t *testing.T, o Options) error {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "nbd"))
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(o)
	defer s.Close()
	return s.Serve(ln)
}

// TestGuardStuck: a backend that hangs costs its connection, and no other.
func TestGuardStuck(t *testing.T) {
	g, err := StartGuard(context.Background(), GuardLimitMin, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	b := &blocking{newMemory(t, 4096), make(chan struct{}, 1), nil}
	s := serve(t, Options{Guard: g}, map[string]Backend{"vda": b, "vdb": newMemory(t, 4096)})
	defer s.Close()
	c, other := s.dial(t).choose("vda", false), s.dial(t).choose("vdb", false)
	c.put(requestHead(request{kind: cmdWrite, length: 512}), make([]byte, 512))
	c.wantClosed()
	if err := <-s.closed; !errors.Is(err, ErrStuck) || !strings.Contains(err.Error(), "vda") {
		t.Errorf("closed with %v", err)
	}
	other.put(requestHead(request{kind: cmdFlush}))
	other.wantSimple(0, 0)
}

// TestGuardLate: a guard that was frozen itself, with the whole host, gives the
// daemon time to be heard before it acts.
func TestGuardLate(t *testing.T) {
	const limit = time.Hour
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	w := newGuardWork(-1, limit)
	w.conns[1] = pair[0]
	w.deadline = time.Now().Add(-limit)
	w.overdue()
	if w.silent || len(w.conns) != 1 || time.Until(w.deadline) <= 0 {
		t.Fatalf("it acted although it was late: %+v", w)
	}
	w.deadline = time.Now().Add(-time.Second)
	w.overdue()
	if !w.silent || len(w.conns) != 0 {
		t.Fatalf("it did not act: %+v", w)
	}
	if n, err := unix.Read(pair[1], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the other end reads %d, %v", n, err)
	}
}
