package ptracer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What testdata/trapped.c does and counts.
const (
	reqGet   = 0x5401 // TCGETS
	reqSet   = 0x5402 // TCSETS
	headSize = 24
	termSize = 36

	countKept      = 1
	countWritten   = 2
	countUntouched = 3
	countFd        = 4
	countPartial   = 5
	countCuts      = 6
)

// trapWait is how long a test waits for what comes at once.
const trapWait = 5 * time.Second

func trapModes() []string { return []string{"ioctl", "span", "pipe"} }

func (tg *target) counter(i int) uint64 { return binary.LittleEndian.Uint64(tg.rounds[8*i:]) }

// startTrapped starts testdata/trapped.c; what it writes in mode pipe is read
// from a small pipe, slowly enough for it to be full most of the time, and checked.
func startTrapped(t testing.TB, mode string) *target {
	t.Helper()
	if mode != "pipe" {
		return start(t, buildTrapped, mode)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	t.Cleanup(reading.Wait) // the target is dead by then, and its end closed
	tg := start(t, buildTrapped, mode, w)
	w.Close()
	reading.Go(func() {
		defer r.Close()
		checkNumbered(t, r)
	})
	return tg
}

func checkNumbered(t testing.TB, r *os.File) {
	var buf [3000]byte
	for pos := uint64(0); ; {
		n, err := r.Read(buf[:])
		for i, b := range buf[:n] {
			if want := byte(uint32(pos+uint64(i)) * 2654435761 >> 24); b != want {
				t.Errorf("byte %d of the pipe is %#x, want %#x: a write was lost or repeated", pos+uint64(i), b, want)
				return
			}
		}
		if err != nil {
			return
		}
		pos += uint64(n)
	}
}

func trapCatch(tg *target) Catch {
	return Catch{Nr: unix.SYS_IOCTL, Arg0: tg.counter(countFd), Arg1: reqSet, DataBytes: termSize}
}

func openTrap(t testing.TB, tg *target, o TrapOptions) *Trap {
	t.Helper()
	tp, err := OpenTrap(context.Background(), tg.pid, trapCatch(tg), o)
	if err != nil {
		t.Fatalf("%v (target: %s)", err, tg.lastWords())
	}
	t.Cleanup(func() { tp.Close() })
	return tp
}

// head is the beginning of a struct that trapped.c takes for a written one.
func head(low uint64) []byte {
	v := uint64(0xf00d)<<48 | low
	h := v * 0x9e3779b97f4a7c15
	b := binary.LittleEndian.AppendUint64(nil, v)
	b = binary.LittleEndian.AppendUint32(b, 0xbf)
	b = binary.LittleEndian.AppendUint32(b, uint32(h>>32))
	b = append(b, 0)
	for i := 0; len(b) < headSize; i++ {
		b = append(b, byte(h>>(i%8*8))^byte(i))
	}
	return b
}

func mustCatch(t testing.TB, tp *Trap, ch Change) Caught {
	t.Helper()
	if err := tp.Arm(ch); err != nil {
		t.Fatal(err)
	}
	if !tp.Armed(trapWait) {
		t.Fatal("not armed")
	}
	c, err := tp.Collect(trapWait)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// armSoon arms as soon as there is a tracer.
func armSoon(t testing.TB, tp *Trap, ch Change) {
	t.Helper()
	for deadline := time.Now().Add(2 * trapWait); ; time.Sleep(100 * time.Microsecond) {
		err := tp.Arm(ch)
		if err == nil {
			return
		}
		if !errors.Is(err, ErrTrapAway) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func mustBeFree(t testing.TB, pid int) {
	t.Helper()
	if st, err := readStatus(pid); err != nil || st.tracerPid != "0" {
		t.Fatalf("traced by %s, %v", st.tracerPid, err)
	}
}

func TestTrapChanges(t *testing.T) {
	for _, mode := range trapModes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tg := startTrapped(t, mode)
			tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
			want := map[int]uint64{}
			for range 4 {
				tg.signal()
				for _, withResult := range []bool{false, true} {
					c := mustCatch(t, tp, Change{WantResult: withResult})
					checkCaught(t, c, withResult, false)
					c = mustCatch(t, tp, Change{Arg1: reqGet, WantResult: withResult})
					checkCaught(t, c, withResult, true)
					if withResult && bytes.Equal(c.Before, c.After) {
						t.Error("the struct was not filled")
					}
					data := head(tg.counter(countWritten))
					c = mustCatch(t, tp, Change{Data: data, NotBelow: true, WantResult: withResult})
					checkCaught(t, c, withResult, true)
					if withResult && (!bytes.Equal(c.After[:headSize], data) || !bytes.Equal(c.After[headSize:], c.Before[headSize:])) {
						t.Errorf("written %x over %x gives %x", data, c.Before, c.After)
					}
					// Less than what is there, which is left alone as a whole.
					c = mustCatch(t, tp, Change{Arg1: reqGet, Data: make([]byte, 8), NotBelow: true, WantResult: withResult})
					checkCaught(t, c, withResult, false)
					want[countKept]++
					want[countWritten]++
				}
			}
			mustBeFree(t, tg.pid)
			tg.mustRun()
			tg.finish()
			for i, n := range want {
				if got := tg.counter(i); got != n {
					t.Errorf("the target counted %d of kind %d, want %d", got, i, n)
				}
			}
		})
	}
}

func checkCaught(t *testing.T, c Caught, withResult, changed bool) {
	t.Helper()
	switch {
	case len(c.Before) != termSize, c.Changed != changed, c.Ret != 0, c.Stops < 2, c.Attached <= 0:
		t.Errorf("caught %+v", c)
	case withResult != (len(c.After) == termSize):
		t.Errorf("%d bytes after", len(c.After))
	}
}

// A call that does not come leaves nothing attached, and the same tracer goes on.
func TestTrapNotCaught(t *testing.T) {
	for _, mode := range trapModes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tg := startTrapped(t, mode)
			c := trapCatch(tg)
			c.Arg1 = 0x5403 // TCSETSW
			tp, err := OpenTrap(context.Background(), tg.pid, c, TrapOptions{Bound: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			defer tp.Close()
			tracer := tp.life.cmd.Process.Pid
			for let := 0; let < 20; {
				tg.signal()
				armSoon(t, tp, Change{Arg1: reqGet})
				if let%2 == 0 && !tp.Armed(trapWait) {
					t.Fatal("not armed")
				}
				_, err := tp.Collect(0)
				if errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, ErrTrapAway) {
					continue // a busy host: it is let go a moment later
				}
				if !errors.Is(err, ErrNotCaught) {
					t.Fatal(err)
				}
				mustBeFree(t, tg.pid)
				let++
			}
			if tp.life.cmd.Process.Pid != tracer {
				t.Error("it took another tracer")
			}
			tg.mustRun()
			tg.finish()
			if tg.counter(countKept)+tg.counter(countWritten) != 0 {
				t.Error("something was changed")
			}
		})
	}
}

// A blocking write that is stopped goes on, and returns what it has written.
func TestTrapPartialWrites(t *testing.T) {
	t.Parallel()
	tg := startTrapped(t, "pipe")
	tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
	for i := 0; i < 100 || tg.counter(countPartial) == 0; i++ {
		if i == 5000 {
			t.Fatal("no write was ever stopped in the middle")
		}
		mustCatch(t, tp, Change{Arg1: reqGet})
	}
	tg.mustRun()
	tg.finish()
	t.Logf("%d writes stopped in the middle", tg.counter(countPartial))
}

// Nobody collects: the kernel ends the tracer, and the next Arm finds another.
func TestTrapBound(t *testing.T) {
	t.Parallel()
	tg := startTrapped(t, "ioctl")
	c := trapCatch(tg)
	c.Arg0 = 9999
	tp, err := OpenTrap(context.Background(), tg.pid, c, TrapOptions{Bound: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer tp.Close()
	for range 3 {
		armSoon(t, tp, Change{Arg1: reqGet})
		if !tp.Armed(trapWait) {
			t.Fatal("not armed")
		}
		tracer := tp.life.cmd
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, tracer.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			t.Fatal(err)
		}
		mustBeFree(t, tg.pid)
		_, err := tp.Collect(0)
		if !errors.Is(err, ErrTrapAway) || !errors.Is(err, ErrOutcomeUnknown) {
			t.Fatal(err)
		}
		if !strings.Contains(tracer.ProcessState.String(), "killed") {
			t.Errorf("it ended otherwise: %s", tracer.ProcessState)
		}
	}
	tg.mustRun()
	tg.finish()
}

func TestTrapGroupStop(t *testing.T) {
	t.Parallel()
	tg := startTrapped(t, "ioctl")
	tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
	if err := unix.Kill(tg.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	mustBeStopped(t, tg.pid)
	for range 5 {
		if err := tp.Arm(Change{Arg1: reqGet}); err != nil {
			t.Fatal(err)
		}
		if !tp.Armed(trapWait) {
			t.Fatal("not armed")
		}
		before := tg.count()
		if _, err := tp.Collect(time.Millisecond); !errors.Is(err, ErrNotCaught) {
			t.Fatal(err)
		}
		if tg.count() != before {
			t.Error("a stopped process ran")
		}
		mustBeStopped(t, tg.pid)
	}
	if err := tp.Arm(Change{Arg1: reqGet}); err != nil {
		t.Fatal(err)
	}
	if !tp.Armed(trapWait) || unix.Kill(tg.pid, unix.SIGCONT) != nil {
		t.Fatal("not armed, or not continued")
	}
	if _, err := tp.Collect(trapWait); err != nil {
		t.Fatalf("continued under the tracer: %v", err)
	}
	tg.mustRun()
	tg.finish()
}

// Remote calls and a trap have one process, in turns.
func TestTrapBesideRemote(t *testing.T) {
	t.Parallel()
	tg := startTrapped(t, "pipe")
	tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
	var calling sync.WaitGroup
	defer calling.Wait()
	calling.Go(func() {
		for range 10 {
			if _, err := remote(t, tg.pid, unix.SYS_GETPID); err != nil {
				t.Error(err)
			}
		}
	})
	for range 50 {
		mustCatch(t, tp, Change{Arg1: reqGet, WantResult: true})
		tg.progresses(trapWait) // a call finds it untraced now and then
	}
	calling.Wait()
	tg.mustRun()
	tg.finish()
}

func TestTrapErrors(t *testing.T) {
	t.Parallel()
	tg := startTrapped(t, "ioctl")
	t.Run("arguments", func(t *testing.T) {
		_, err := OpenTrap(context.Background(), tg.pid, Catch{DataBytes: TrapDataMax + 1}, TrapOptions{})
		if !errors.Is(err, ErrUnsupported) {
			t.Error(err)
		}
		tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
		wantErr(t, tp.Arm(Change{Data: make([]byte, termSize+1)}), ErrUnsupported)
		wantErr(t, tp.Arm(Change{Data: make([]byte, 7), NotBelow: true}), ErrUnsupported)
		_, err = tp.Collect(0)
		wantErr(t, err, ErrTrapAway)
		if tp.Armed(0) {
			t.Error("armed by nobody")
		}
	})
	t.Run("closed", func(t *testing.T) {
		tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
		tracer := tp.life.cmd.Process
		if err := tp.Arm(Change{}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := tp.Close(); err != nil {
				t.Error(err)
			}
		}
		mustBeFree(t, tg.pid)
		if err := tracer.Signal(unix.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("the tracer: %v", err)
		}
		wantErr(t, tp.Arm(Change{}), ErrTrapAway)
	})
	t.Run("traced by a stranger", func(t *testing.T) {
		tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.PtraceSeize(tg.pid); err != nil {
			t.Fatal(err)
		}
		_, err := OpenTrap(context.Background(), tg.pid, trapCatch(tg), TrapOptions{})
		wantErr(t, err, ErrTraced)
		armSoon(t, tp, Change{})
		_, err = tp.Collect(trapWait)
		wantErr(t, err, ErrTraced)
		var ws unix.WaitStatus
		if err := errors.Join(unix.PtraceInterrupt(tg.pid), func() error {
			_, err := unix.Wait4(tg.pid, &ws, unix.WALL, nil)
			return err
		}(), unix.PtraceDetach(tg.pid)); err != nil {
			t.Fatal(err)
		}
		mustCatch(t, tp, Change{})
	})
	t.Run("gone", func(t *testing.T) {
		tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
		tg.mustRun()
		tg.finish()
		_ = tg.cmd.Wait() // its state is of no interest
		armSoon(t, tp, Change{})
		_, err := tp.Collect(trapWait)
		wantErr(t, err, ErrGone)
		_, err = OpenTrap(context.Background(), tg.pid, trapCatch(tg), TrapOptions{})
		wantErr(t, err, ErrGone)
	})
}

// The target is killed while a trap waits in it: whoever started it can reap it.
func TestTrapTargetKilled(t *testing.T) {
	t.Parallel()
	for range 5 {
		tg := startTrapped(t, "pipe")
		c := trapCatch(tg)
		c.Arg0 = 9999
		tp, err := OpenTrap(context.Background(), tg.pid, c, TrapOptions{Bound: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if err := tp.Arm(Change{}); err != nil || !tp.Armed(trapWait) {
			t.Fatal("not armed", err)
		}
		_ = tg.cmd.Process.Kill()
		_ = tg.cmd.Wait()
		_, err = tp.Collect(trapWait)
		wantErr(t, err, ErrGone)
		tp.Close()
	}
}

// From the pause to the resume nothing is allocated; nor does the tracer grow.
func TestTrapAllocatesNothing(t *testing.T) {
	tg := startTrapped(t, "ioctl")
	tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
	once := func() {
		if tp.Arm(Change{Arg1: reqGet, WantResult: true}) != nil || !tp.Armed(trapWait) {
			t.Error("not armed")
		}
		for tp.await(time.Now().Add(trapWait), tp.isOver); !tp.isOver(); {
			t.Fatal("not caught")
		}
	}
	resident := func() int64 {
		data, _ := os.ReadFile("/proc/" + itoa(tp.life.cmd.Process.Pid) + "/statm")
		return statmResident(string(data))
	}
	testing.AllocsPerRun(50, once)
	before := resident()
	if n := testing.AllocsPerRun(300, once); n != 0 {
		t.Errorf("%v allocations for each arming", n)
	}
	if grown := resident() - before; grown > 64 {
		t.Errorf("the tracer grew by %d pages in 300 armings", grown)
	}
}
