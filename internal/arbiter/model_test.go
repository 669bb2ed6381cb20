package arbiter

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// actor is one host. Its operation stops before every file system call until
// the scheduler lets it go on, fail or die there.
type actor struct {
	host    string
	file    *File
	busy    bool
	op      string
	claim   Claim
	reached chan string
	resume  chan error
	done    chan result
}

type result struct {
	verdict Verdict
	err     error
}

// world is the model: who believes to hold a generation, who runs it.
type world struct {
	t        *rapid.T
	believes map[uint64]string
	running  map[uint64]string
}

func (a *actor) start(t *testing.T, op string, c Claim) {
	a.busy, a.op, a.claim = true, op, c
	go func() {
		var r result
		switch op {
		case "claim":
			r.verdict, r.err = a.file.Claim(t.Context(), c)
		case "confirm":
			r.err = a.file.Confirm(t.Context(), c)
		case "withdraw":
			r.err = a.file.Withdraw(t.Context(), c)
		}
		a.done <- r
	}()
}

// settle waits until the actor stands before its next call or is done.
func (w *world) settle(a *actor) (label string) {
	select {
	case label = <-a.reached:
		return label
	case r := <-a.done:
		a.busy = false
		w.judge(a, r)
		return ""
	}
}

func (w *world) judge(a *actor, r result) {
	g, h := a.claim.Generation, a.host
	if r.err != nil {
		return
	}
	switch a.op {
	case "claim":
		if !r.verdict.Won {
			if r.verdict.Holder == "" {
				w.t.Fatalf("%s lost generation %d to nobody", h, g)
			}
			return
		}
		if other := w.believes[g]; other != "" && other != h {
			w.t.Fatalf("%s and %s both hold generation %d", h, other, g)
		}
		if other := w.running[g]; other != "" && other != h {
			w.t.Fatalf("%s won generation %d which %s runs", h, g, other)
		}
		w.believes[g] = h
	case "confirm":
		if w.believes[g] != h {
			w.t.Fatalf("%s confirmed generation %d, which %q holds", h, g, w.believes[g])
		}
		if other := w.running[g]; other != "" && other != h {
			w.t.Fatalf("%s and %s both run generation %d", h, other, g)
		}
		w.running[g] = h
	case "withdraw":
		if w.running[g] == h {
			w.t.Fatalf("%s withdrew generation %d while it runs", h, g)
		}
	}
}

// die ends the operation under way: every further call fails, its answer is lost.
func (a *actor) die() {
	if !a.busy {
		return
	}
	for {
		select {
		case a.resume <- errCrashed:
		case <-a.reached:
		case <-a.done:
			a.busy = false
			return
		}
	}
}

// crash kills a host's daemon: it forgets what it held, unless it already ran.
func (w *world) crash(a *actor) {
	a.die()
	for g, h := range w.believes {
		if h == a.host && w.running[g] != h {
			delete(w.believes, g)
		}
	}
}

// act starts an operation that the host may do by the rules of the interface:
// it confirms only what it holds, and gives up its right before it withdraws.
func (w *world) act(t *testing.T, a *actor) {
	c := claimOf(a.host, rapid.Uint64Range(1, 2).Draw(w.t, "generation"))
	op := rapid.SampledFrom([]string{"claim", "claim", "confirm", "withdraw"}).Draw(w.t, "op")
	switch {
	case op == "confirm" && w.believes[c.Generation] != a.host:
		return
	case op == "withdraw" && w.believes[c.Generation] == a.host:
		if w.running[c.Generation] == a.host {
			break // must be refused; the belief stays
		}
		delete(w.believes, c.Generation)
	}
	a.start(t, op, c)
	w.settle(a)
}

// Any interleaving of the calls of three hosts, with crashes, failures and lost
// replies between any two: at most one host holds, and runs, a generation.
func TestFileModel(t *testing.T) {
	root := memoryDir(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		dir := fmt.Sprintf("%s/%d", root, n)
		mustMkdir(t, dir)
		w := &world{t: rt, believes: map[uint64]string{}, running: map[uint64]string{}}
		actors := make([]*actor, 3)
		for i := range actors {
			a := &actor{
				host: string(rune('a' + i)), file: open(t, dir),
				reached: make(chan string), resume: make(chan error), done: make(chan result, 1),
			}
			a.file.fault = func(label string) error { a.reached <- label; return <-a.resume }
			actors[i] = a
		}
		defer func() { // let every operation end, whatever the test found
			for _, a := range actors {
				a.die()
			}
		}()
		for range rapid.IntRange(1, 120).Draw(rt, "steps") {
			a := actors[rapid.IntRange(0, len(actors)-1).Draw(rt, "actor")]
			if !a.busy {
				w.act(t, a)
				continue
			}
			fate := rapid.SampledFrom([]error{nil, nil, nil, nil, nil, nil, nil, nil, syscall.EIO, errCrashed}).Draw(rt, "fate")
			if fate == errCrashed {
				w.crash(a)
				continue
			}
			a.resume <- fate
			w.settle(a)
		}
	})
}

// memoryDir avoids thousands of syncs to a disk where the order of calls, not
// durability, is what the test is about.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "arbiter")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

const (
	workerEnv         = "VIRT_FT_TEST_ARBITER_WORKER"
	workerGenerations = 30
)

func TestMain(m *testing.M) {
	if v := os.Getenv(workerEnv); v != "" {
		os.Exit(worker(v))
	}
	os.Exit(m.Run())
}

// worker is one host of TestFileProcesses: it goes for every generation and
// runs or hands back what it wins, printing what it did.
func worker(arg string) int {
	host, dir, _ := strings.Cut(arg, "=")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	f, err := OpenFile(ctx, dir, FileOptions{Machine: "m", Timeout: time.Minute})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for g := uint64(1); g <= workerGenerations; g++ {
		c := claimOf(host, g)
		v, err := f.Claim(ctx, c)
		switch {
		case err != nil:
		case !v.Won:
			continue
		case rand.IntN(3) == 0:
			err = f.Withdraw(ctx, c)
		default:
			if err = f.Confirm(ctx, c); err == nil {
				fmt.Println(g, host)
			}
		}
		// A later generation held by another host makes an older claim void.
		if err != nil && !strings.Contains(err.Error(), ErrNotHolder.Error()) {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}

func TestFileProcesses(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	const hosts = 5
	cmds, outs := make([]*exec.Cmd, hosts), make([]bytes.Buffer, hosts)
	for i := range cmds {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), workerEnv+"="+fmt.Sprintf("host%d=%s", i, dir))
		cmd.Stdout, cmd.Stderr = &outs[i], os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds[i] = cmd
	}
	running := map[uint64]string{}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("host%d: %v", i, err)
		}
		for sc := bufio.NewScanner(&outs[i]); sc.Scan(); {
			g, host, _ := strings.Cut(sc.Text(), " ")
			n, err := strconv.ParseUint(g, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if other := running[n]; other != "" {
				t.Errorf("generation %d runs on %s and %s", n, other, host)
			}
			running[n] = host
		}
	}
	if len(running) == 0 {
		t.Fatal("nobody ran anything: the test proves nothing")
	}
	t.Logf("%d of %d generations ran, each once", len(running), workerGenerations)
	left, err := os.ReadDir(dir + "/" + domain)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			t.Errorf("temporary file left: %s", e.Name())
		}
	}
}
