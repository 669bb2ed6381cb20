package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/hookd"
	"github.com/virt-ft/virt-ft/internal/marker"
)

// fakeDaemon, in the environment, makes of this test a daemon at that socket.
const fakeDaemon = "VIRT_FT_HOOKS_TEST_SOCKET"

func TestMain(m *testing.M) {
	path := os.Getenv(fakeDaemon)
	if path == "" {
		os.Exit(m.Run())
	}
	if _, err := hookd.Listen(path, answers{Allow: true}, nil); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test is gone
}

// build makes the program as it is installed.
func build(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "virt-ft")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// exec runs the program as libvirt does.
func (p *place) exec(program string, stdin io.Reader, args ...string) (result, string) {
	p.t.Helper()
	cmd := exec.Command(program, append([]string{"-config", p.config}, args...)...)
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stderr.String()}, stdout.String()
}

// startFake starts a daemon that is a process of its own.
func startFake(t *testing.T, sock string) *exec.Cmd {
	t.Helper()
	daemon := exec.Command("/proc/self/exe")
	daemon.Env = append(os.Environ(), fakeDaemon+"="+sock)
	life, err := daemon.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Kill() // it may have ended
		_ = daemon.Wait()         // by that
		life.Close()
	})
	if word, err := bufio.NewReader(out).ReadString('\n'); word != "ready\n" {
		t.Fatalf("%q, %v", word, err)
	}
	return daemon
}

// TestProgram: the program itself, beside a daemon that is a process which is
// stopped, goes on, and is killed.
func TestProgram(t *testing.T) {
	program := build(t)
	p := newPlace(t)
	p.mark(marker.RoleBackup, marker.PhaseStandby)
	daemon := startFake(t, p.sock)
	try := func(what string, refused string) {
		t.Helper()
		got, stdout := p.exec(program, strings.NewReader(domainXML), "web1", "prepare", "begin", "-")
		for tries := 0; refused == "" && got.late() && tries < 100; tries++ {
			t.Logf("late: %+v", got)
			got, stdout = p.exec(program, strings.NewReader(domainXML), "web1", "prepare", "begin", "-")
		}
		if (got.status != 0) != (refused != "") || !strings.Contains(got.stderr, refused) || stdout != "" {
			t.Errorf("%s: %+v %q", what, got, stdout)
		}
		got, stdout = p.exec(program, strings.NewReader(strings.ReplaceAll(domainXML, "aa<", "bb<")), "other", "prepare", "begin", "-")
		if got != (result{}) || stdout != "" {
			t.Errorf("%s: another guest: %+v %q", what, got, stdout)
		}
		for _, op := range otherOps() {
			if got, stdout = p.exec(program, strings.NewReader(domainXML), "web1", op[0], op[1], op[2]); got != (result{}) || stdout != "" {
				t.Errorf("%s: %v: %+v %q", what, op, got, stdout)
			}
		}
	}
	try("a daemon that says yes", "")
	if err := daemon.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var state syscall.WaitStatus
	if _, err := syscall.Wait4(daemon.Process.Pid, &state, syscall.WUNTRACED, nil); err != nil || !state.Stopped() {
		t.Fatalf("the daemon is not stopped: %v", err)
	}
	try("stopped", "does not answer")
	if err := daemon.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // killed
	try("killed", "does not run: start it")
	// A standard input that says nothing is waited for, and not for ever.
	silent, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	defer hold.Close()
	if got, _ := p.exec(program, silent, "web1", "prepare", "begin", "-"); got.status != 1 || !strings.Contains(got.stderr, "try again") {
		t.Errorf("no XML: %+v", got)
	}
	if got, _ := p.exec(program, silent, "web1", "reconnect", "begin", "-"); got != (result{}) {
		t.Errorf("no XML, reconnect: %+v", got)
	}
}

// BenchmarkProgram runs the program as libvirt does: for a guest that is not
// ours, and for one that the daemon is asked about. The floor is /bin/true.
func BenchmarkProgram(b *testing.B) {
	program := build(b)
	p := newPlace(b)
	p.mark(marker.RoleBackup, marker.PhaseStandby)
	s, err := hookd.Listen(p.sock, answers{Allow: true}, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	other := strings.ReplaceAll(domainXML, "aa<", "bb<")
	for _, x := range []struct{ name, xml string }{{"other", other}, {"asked", domainXML}} {
		b.Run(x.name, func(b *testing.B) {
			var floor, took int64
			for b.Loop() {
				floor += timed(func() { p.exec("/bin/true", strings.NewReader(x.xml), "web1", "prepare", "begin", "-") })
				took += timed(func() { p.exec(program, strings.NewReader(x.xml), "web1", "prepare", "begin", "-") })
			}
			b.ReportMetric(float64(took)/float64(b.N)/1e6, "ms/hook")
			b.ReportMetric(float64(took)/float64(floor), "x/true")
		})
	}
}

// timed returns nanoseconds.
func timed(f func()) int64 {
	begin := time.Now()
	f()
	return time.Since(begin).Nanoseconds()
}
