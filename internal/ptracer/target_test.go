package ptracer

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testInjector is argv[0] of injectors only tests use: "NAME:HOW:NUMBER".
const testInjector = "ptracer-test-injector"

func TestMain(m *testing.M) {
	MaybeInject()
	if name, how, ok := strings.Cut(os.Args[0], ":"); ok && name == testInjector {
		os.Exit(runTestInjector(how))
	}
	code := m.Run()
	if dir, err := buildDir(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// runTestInjector is an injector that ends early, is wrong, or works in a loop.
func runTestInjector(how string) int {
	kind, arg, _ := strings.Cut(how, ":")
	n, _ := strconv.Atoi(arg)
	switch kind {
	case "tracer": // dies when it reaches stage n for the (n/100)th time
		return dyingTracer(trapStage(n%100), n/100)
	case "driver":
		return driveTraps(n)
	case "die": // at stage n
		return runInjector(func(s stage) {
			if s == stage(n) {
				die()
			}
		})
	case "signalled": // while attached; dies with the signal in its hands
		pid, _, _ := decodeArgs(os.Args[1:])
		return runInjector(func(s stage) {
			if s == stageSignal {
				die()
			}
			if s != stageSeized || unix.Kill(pid, unix.Signal(34)) != nil {
				return
			}
			for st, _ := readStatus(pid); st.state != "t"; st, _ = readStatus(pid) {
			}
		})
	case "naive", "singlestep":
		return wrongInjector(kind)
	case "loop":
		return loopInjector(n)
	}
	return 2
}

func die() { _ = unix.Kill(os.Getpid(), unix.SIGKILL) }

// as makes spawn start a test injector.
func as(how string, n int) spawnOptions {
	return spawnOptions{prepare: func(cmd *exec.Cmd) {
		cmd.Args[0] = fmt.Sprintf("%s:%s:%d", testInjector, how, n)
	}}
}

var (
	buildDir     = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "ptracer") })
	buildTarget  = sync.OnceValues(func() (string, error) { return build("target", "testdata/target.c", "testdata/check.S") })
	buildTrapped = sync.OnceValues(func() (string, error) { return build("trapped", "testdata/trapped.c") })
)

// build compiles a program and returns its path, nothing without a compiler. It
// is run where the compiler wrote it: a file that we had written ourselves would
// be busy as long as any process that another test starts has not called exec.
func build(name string, sources ...string) (string, error) {
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	for _, cc := range []string{"cc", "gcc"} {
		if _, err := exec.LookPath(cc); err != nil {
			continue
		}
		bin := filepath.Join(dir, name)
		out, err := exec.Command(cc, append([]string{"-O1", "-o", bin}, sources...)...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		return bin, nil
	}
	return "", nil
}

// target is a running testdata/target.c, or testdata/trapped.c.
type target struct {
	t      testing.TB
	pid    int
	cmd    *exec.Cmd
	out    *bufio.Reader
	rounds []byte // shared memory: number of rounds done
	ended  chan struct{}
	sent   int // SIGRTMIN
}

func startTarget(t testing.TB, mode string) *target {
	t.Helper()
	return start(t, buildTarget, mode)
}

// start runs a program that speaks target.c's protocol; files become its
// descriptors from 3 on.
func start(t testing.TB, image func() (string, error), mode string, files ...*os.File) *target {
	t.Helper()
	bin, err := image()
	if err != nil {
		t.Fatal(err)
	}
	if bin == "" {
		t.Skip("no C compiler (cc or gcc) to build the programs of testdata")
	}
	counter := filepath.Join(t.TempDir(), "rounds")
	if err := os.WriteFile(counter, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(counter, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rounds, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	tg := &target{t: t, rounds: rounds, cmd: exec.Command(bin, mode, counter), ended: make(chan struct{})}
	tg.cmd.ExtraFiles = files
	stdin, err := tg.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := tg.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	tg.out = bufio.NewReader(stdout)
	if err := tg.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tg.pid = tg.cmd.Process.Pid
	var feeding sync.WaitGroup
	t.Cleanup(func() {
		_ = tg.cmd.Process.Kill()
		_ = tg.cmd.Wait()
		close(tg.ended)
		feeding.Wait()
		_ = unix.Munmap(rounds)
	})
	line, _ := tg.out.ReadString('\n')
	if line == "noavx\n" {
		t.Skip("the CPU has no AVX, which testdata/target.c checks")
	}
	if line != "ok\n" {
		t.Fatalf("target says %q", line)
	}
	if mode == "read" {
		feeding.Go(func() { tg.feed(stdin) })
	}
	return tg
}

// feed gives the target a byte to read now and then.
func (tg *target) feed(w io.Writer) {
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tg.ended:
			return
		case <-tick.C:
			if _, err := w.Write([]byte("x")); err != nil {
				return
			}
		}
	}
}

func (tg *target) count() uint64 { return binary.LittleEndian.Uint64(tg.rounds) }

// signal sends a queued signal the target counts.
func (tg *target) signal() {
	if err := unix.Kill(tg.pid, unix.Signal(34)); err != nil {
		tg.t.Fatal(err)
	}
	tg.sent++
}

// mustRun fails the test unless the target is neither stopped nor traced and
// does a few more rounds, all of them right.
func (tg *target) mustRun() {
	tg.t.Helper()
	st, err := readStatus(tg.pid)
	if err != nil {
		tg.t.Fatal(err)
	}
	if strings.ContainsAny(st.state, "tTZX") || st.tracerPid != "0" {
		tg.t.Fatalf("target is in state %s, traced by %s: %s", st.state, st.tracerPid, tg.lastWords())
	}
	if !tg.progresses(5 * time.Second) {
		st, _ := readStatus(tg.pid)
		tg.t.Fatalf("target makes no progress, state %s: %s", st.state, tg.lastWords())
	}
}

func (tg *target) progresses(within time.Duration) bool {
	start := tg.count()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(200 * time.Microsecond) {
		if tg.count() >= start+2 {
			return true
		}
	}
	return false
}

// lastWords is what a target that ended has printed.
func (tg *target) lastWords() string {
	if st, err := readStatus(tg.pid); err == nil && !strings.ContainsAny(st.state, "ZX") {
		return "(still there)"
	}
	all, _ := io.ReadAll(tg.out)
	return string(all)
}

// finish ends the target in good order and checks that it lost no signal.
func (tg *target) finish() {
	tg.t.Helper()
	if err := unix.Kill(tg.pid, unix.SIGTERM); err != nil {
		tg.t.Fatal(err)
	}
	line, _ := tg.out.ReadString('\n')
	if want := fmt.Sprintf("handled %d\n", tg.sent); line != want {
		tg.t.Fatalf("target says %q, want %q", line, want)
	}
}

// remote is Remote with a deadline.
func remote(t testing.TB, pid int, nr uint64, args ...uint64) (int64, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c := Call{Nr: nr}
	copy(c.Args[:], args)
	return Remote(ctx, pid, c)
}

func mustRemote(t testing.TB, pid int, nr uint64, args ...uint64) int64 {
	t.Helper()
	ret, err := remote(t, pid, nr, args...)
	if err != nil {
		t.Fatal(err)
	}
	return ret
}

func modes() []string { return []string{"spin", "read", "ppoll", "nanosleep", "poll"} }
