package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/control"
)

// patience bounds each wait of these tests; nothing is asserted about time.
const patience = 60 * time.Second

// console is a terminal on which virt-ft runs, and all that it ever showed.
type console struct {
	t     *testing.T
	pty   *os.File
	tty   *os.File // our own end of what the program has, for its settings
	cmd   *exec.Cmd
	ended chan struct{}

	mu    sync.Mutex
	shown bytes.Buffer
	more  chan struct{} // closed and replaced when something is shown
}

// onConsole runs virt-ft on a terminal of that size.
func onConsole(t *testing.T, socket string, rows, cols uint16, args ...string) *console {
	t.Helper()
	p, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo terminal: %v", err)
	}
	c := &console{t: t, pty: p, tty: tty, ended: make(chan struct{}), more: make(chan struct{})}
	c.resize(rows, cols)
	c.cmd = exec.Command(os.Args[0], args...)
	c.cmd.Env = append(os.Environ(), "VIRT_FT_TEST_RUN=1", "VIRT_FT_SOCKET="+socket, "TERM=xterm", "LC_ALL=C.UTF-8", "TZ=UTC", "NO_COLOR=", "CLICOLOR_FORCE=")
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = tty, tty, tty
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go c.collect()
	go func() {
		defer close(c.ended)
		_ = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.ended
		tty.Close()
		p.Close()
	})
	return c
}

func (c *console) collect() {
	buf := make([]byte, 4096)
	for {
		n, err := c.pty.Read(buf)
		c.mu.Lock()
		c.shown.Write(buf[:n])
		close(c.more)
		c.more = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *console) resize(rows, cols uint16) {
	c.t.Helper()
	if err := pty.Setsize(c.pty, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *console) press(keys string) {
	c.t.Helper()
	if _, err := io.WriteString(c.pty, keys); err != nil {
		c.t.Fatal(err)
	}
}

// mark is how much was shown so far.
func (c *console) mark() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown.Len()
}

// await waits until the text is shown, behind mark, and returns all behind it.
func (c *console) await(mark int, text string) string {
	c.t.Helper()
	timeout := time.After(patience)
	for {
		c.mu.Lock()
		shown, more := c.shown.String()[mark:], c.more
		c.mu.Unlock()
		if strings.Contains(shown, text) {
			return shown
		}
		select {
		case <-more:
		case <-timeout:
			c.t.Fatalf("%q is not shown, but %q", text, shown[max(0, len(shown)-4000):])
		}
	}
}

func (c *console) settings() unix.Termios {
	c.t.Helper()
	s, err := unix.IoctlGetTermios(int(c.tty.Fd()), unix.TCGETS)
	if err != nil {
		c.t.Fatal(err)
	}
	return *s
}

// restored checks that the program ended, by itself, and left the terminal as it was.
func (c *console) restored(before unix.Termios) {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(patience):
		c.t.Fatal("it does not end")
	}
	c.await(0, leaveScreen)
	if after := c.settings(); after != before {
		c.t.Errorf("the terminal is %+v, and was %+v", after, before)
	}
}

// server is a daemon with a scripted answer, which can be stopped and started.
func server(t *testing.T, socket string, s *scenario) (stop func()) {
	t.Helper()
	s.called = make(chan struct{})
	srv := control.NewServer(s, control.ServerOptions{Socket: socket})
	if err := srv.Open(); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background()) }()
	stop = sync.OnceFunc(func() {
		if err := errors.Join(srv.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func topScenario() *scenario {
	return &scenario{Answers: []control.Status{
		{Domain: "db1", UUID: "u2", Role: control.RoleBackup, State: control.StateStandby, Peer: "hostB"},
		{Domain: "web1", UUID: "u1", Role: control.RolePrimary, State: control.StateProtected, Peer: "hostB", Pause: control.PauseStatus{P50Ms: 4, P99Ms: 8, LastMs: 5, Phases: control.Phases{StopMs: 3, DeviceMs: 1}}},
		{Domain: "web2", UUID: "u3", Role: control.RolePrimary, State: "undecided", Error: "nobody knows"},
	}, Taken: []control.Epoch{{Epoch: 1, PausedMs: 5, AckMs: 9}, {Epoch: 2, PausedMs: 6, AckMs: 8}},
		Happened: []control.Event{{Domain: "web1", Kind: control.EventState, Text: "primary protected"}}}
}

func TestTopOnTerminal(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	server(t, socket, topScenario())
	c := onConsole(t, socket, 24, 80, "top", "-d", "0.1")
	before := c.settings()
	c.await(0, "error:")
	c.await(c.mark(), "\x1b[J") // that frame's end, or a later one's
	shown := c.await(0, "error:")
	if !strings.HasPrefix(shown, enterScreen) {
		t.Errorf("the program's own screen is not entered first: %q", shown[:min(40, len(shown))])
	}
	if c.settings() == before {
		t.Error("the terminal is not in raw mode")
	}
	for _, want := range []string{"domains: 3, safe: 2", "at risk: 1", "\x1b[32mprotected", "nobody knows"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is not shown in %q", want, shown)
		}
	}
	t.Logf("at 80 columns:\n%s", strings.Join(lastFrame(shown), "\n"))
	for _, line := range lastFrame(shown) {
		if n := visibleWidth(line); n > 80 {
			t.Errorf("%d columns: %q", n, line)
		}
	}

	m := c.mark()
	c.press("j")
	c.await(m, ">web1")
	m = c.mark()
	c.press("\x1b[A")
	c.await(m, ">db1")
	m = c.mark()
	c.press("j\r")
	c.await(m, "primary protected")
	c.await(m, "device")
	c.await(m, "█")
	c.await(c.mark(), "\x1b[J")
	t.Logf("one domain:\n%s", strings.Join(lastFrame(c.await(m, "█")), "\n"))
	m = c.mark()
	c.press("\x1b")
	c.await(m, "s sort by: name")
	m = c.mark()
	c.press("s")
	c.await(m, "s sort by: state")
	m = c.mark()
	c.press("?")
	c.await(m, "any key: back")
	c.press("x")

	topFollowsSize(t, c)
	c.press("q")
	c.restored(before)
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func topFollowsSize(t *testing.T, c *console) {
	t.Helper()
	m := c.mark()
	c.resize(10, 132)
	c.await(m, "DRIFT") // there is room for it now
	m = c.mark()
	c.resize(8, 40)
	c.await(m, "COMMIT\x1b[0m\x1b[K\r\n")
	c.await(c.mark(), "\x1b[J") // of that frame, or a later one
	frame := lastFrame(c.await(m, "COMMIT"))
	if len(frame) > 8 {
		t.Errorf("%d lines", len(frame))
	}
	for _, line := range frame {
		if n := visibleWidth(line); n > 40 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}

// lastFrame is what was drawn last, and whole, by line.
func lastFrame(shown string) []string {
	shown = shown[:strings.LastIndex(shown, "\x1b[J")]
	return strings.Split(shown[strings.LastIndex(shown, "\x1b[H")+3:], "\r\n")
}

// visibleWidth is how many columns a line takes, without its colours.
func visibleWidth(line string) int {
	n := 0
	for len(line) > 0 {
		if strings.HasPrefix(line, "\x1b[") {
			if i := strings.IndexAny(line, "mKJHhl"); i >= 0 {
				line = line[i+1:]
				continue
			}
		}
		r := []rune(line)[0]
		line = line[len(string(r)):]
		n++
	}
	return n
}

func TestTopLeavesTerminal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		t.Run(sig.String(), func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "c.sock")
			server(t, socket, topScenario())
			c := onConsole(t, socket, 24, 80, "top")
			before := c.settings()
			c.await(0, "web1")
			if err := c.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			c.restored(before)
		})
	}
}

// Ctrl-Z gives the terminal back while the program is stopped.
func TestTopSuspended(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	server(t, socket, topScenario())
	c := onConsole(t, socket, 24, 80, "top")
	before := c.settings()
	c.await(0, "web1")
	for _, stop := range []func() error{
		func() error { c.press("\x1a"); return nil },
		func() error { return c.cmd.Process.Signal(syscall.SIGTSTP) },
	} {
		m := c.mark()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		c.await(m, leaveScreen)
		c.awaitStopped()
		if c.settings() != before {
			t.Error("a stopped program keeps the terminal in raw mode")
		}
		m = c.mark()
		if err := c.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		c.await(m, enterScreen)
		c.await(m, "web1")
	}
	c.press("q")
	c.restored(before)
}

// awaitStopped waits until the kernel says that the program is stopped, without
// taking its end from who waits for that.
func (c *console) awaitStopped() {
	c.t.Helper()
	end := time.Now().Add(patience)
	for time.Now().Before(end) {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.cmd.Process.Pid), "stat"))
		if err != nil {
			c.t.Fatal(err)
		}
		if _, rest, ok := strings.Cut(string(b), ") "); ok && rest[0] == 'T' {
			return
		}
		time.Sleep(time.Millisecond)
	}
	c.t.Fatal("it is not stopped")
}

// A daemon that goes away is said to be away, and found again.
func TestTopWithoutDaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	stop := server(t, socket, topScenario())
	c := onConsole(t, socket, 24, 80, "top", "-d", "0.1")
	before := c.settings()
	c.await(0, "web1")
	m := c.mark()
	stop()
	c.await(m, " old: the daemon does not answer")
	m = c.mark()
	server(t, socket, topScenario())
	c.await(m, "virt-ft top  ")
	m = c.mark()
	c.await(m, "safe: 2")
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.restored(before)
}
