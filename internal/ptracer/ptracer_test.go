package ptracer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// calls are the system calls virt-ft needs, with arguments valid in target pid.
func calls(t testing.TB, pid int) map[string]Call {
	maps, err := readMaps(pid)
	if err != nil || len(maps) == 0 {
		t.Fatalf("no maps: %v", err)
	}
	name := maps[0].start // the ELF header: a short string
	return map[string]Call{
		"getpid":       {Nr: unix.SYS_GETPID},
		"memfd_create": {Nr: unix.SYS_MEMFD_CREATE, Args: [6]uint64{name, unix.MFD_CLOEXEC}},
		"dupfd":        {Nr: unix.SYS_FCNTL, Args: [6]uint64{1, unix.F_DUPFD_CLOEXEC, 500}},
		"userfaultfd":  {Nr: unix.SYS_USERFAULTFD, Args: [6]uint64{unix.O_CLOEXEC | unix.O_NONBLOCK | 1}},
	}
}

func TestRemoteCalls(t *testing.T) {
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			tg := startTarget(t, mode)
			if pid := mustRemote(t, tg.pid, unix.SYS_GETPID); pid != int64(tg.pid) {
				t.Errorf("getpid returns %d in process %d", pid, tg.pid)
			}
			for name, c := range calls(t, tg.pid) {
				if name == "getpid" {
					continue
				}
				fd := mustRemote(t, tg.pid, c.Nr, c.Args[:]...)
				link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tg.pid, fd))
				t.Logf("%s: fd %d is %q", name, fd, link)
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				mustRemote(t, tg.pid, unix.SYS_CLOSE, uint64(fd))
			}
			ret, err := remote(t, tg.pid, unix.SYS_CLOSE, 9999)
			if ret != -int64(unix.EBADF) || !errors.Is(err, unix.EBADF) {
				t.Errorf("close(9999) = %d, %v", ret, err)
			}
			tg.mustRun()
			tg.finish()
		})
	}
}

// Hundreds of calls, or as many thousands as PTRACER_ROUNDS asks for, with signals arriving all the time, change nothing in the target.
func TestManyCalls(t *testing.T) {
	n := rounds(25)
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tg := startTarget(t, mode)
			for name, c := range calls(t, tg.pid) {
				o := as("loop", n)
				signalling := make(chan int, 1)
				done := make(chan struct{})
				o.started = func(int) { go func() { signalling <- signalUntil(tg.pid, done) }() }
				rep, err := spawn(context.Background(), tg.pid, c, o)
				close(done)
				tg.sent += <-signalling
				if err != nil {
					t.Fatalf("%s: %v (target: %s)", name, err, tg.lastWords())
				}
				t.Logf("%s: %d calls, stopped %v (median), %v (worst)", name, n,
					time.Duration(rep.StoppedNs), time.Duration(rep.Ret))
				tg.mustRun()
			}
			tg.finish()
		})
	}
}

// signalUntil sends SIGRTMIN every other millisecond and returns how often.
func signalUntil(pid int, done <-chan struct{}) (sent int) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return sent
		case <-tick.C:
			if unix.Kill(pid, unix.Signal(34)) == nil {
				sent++
			}
		}
	}
}

// An injector that dies after any of its steps leaves the target unharmed.
func TestKilledAtEveryStage(t *testing.T) {
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tg := startTarget(t, mode)
			for s := stageSeized; s < stageCount; s++ {
				if s == stageSignal {
					continue // TestSignalOutlivesInjector
				}
				for range rounds(1) {
					tg.signal()
					_, err := spawn(context.Background(), tg.pid, Call{Nr: unix.SYS_GETPID}, as("die", int(s)))
					if !errors.Is(err, ErrOutcomeUnknown) {
						t.Fatalf("stage %d: %v", s, err)
					}
					tg.mustRun()
				}
			}
			mustRemote(t, tg.pid, unix.SYS_GETPID)
			tg.finish()
		})
	}
}

// A signal that an injector was told of, and did not live to pass on, arrives.
func TestSignalOutlivesInjector(t *testing.T) {
	tg := startTarget(t, "spin")
	for range 20 {
		tg.sent++ // by the injector
		_, err := spawn(context.Background(), tg.pid, Call{Nr: unix.SYS_GETPID}, as("signalled", 0))
		if !errors.Is(err, ErrOutcomeUnknown) {
			t.Fatal(err)
		}
		tg.mustRun()
	}
	tg.finish()
}

// Injectors killed from outside at random moments leave the target unharmed; so
// does a cancelled context.
func TestKilledAtRandom(t *testing.T) {
	killsPerMode := rounds(10)
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tg := startTarget(t, mode)
			all := calls(t, tg.pid)
			killed, finished := 0, 0
			for i := 0; killed < killsPerMode; i++ {
				if i > 20*killsPerMode {
					t.Fatal("hardly any injector is killed in time")
				}
				c := all[[]string{"getpid", "memfd_create", "dupfd", "userfaultfd"}[i%4]]
				tg.signal()
				err := killAfter(tg.pid, c, callTime(t, tg), i)
				switch {
				case errors.Is(err, ErrOutcomeUnknown):
					killed++
				case err == nil, errors.Is(err, ErrTimeout): // a busy host: nothing was changed
					finished++
				default:
					t.Fatal(err)
				}
				if killed%10 == 0 {
					tg.mustRun()
				}
			}
			t.Logf("%d killed, %d too late", killed, finished)
			tg.mustRun()
			mustRemote(t, tg.pid, unix.SYS_GETPID)
			tg.finish()
		})
	}
}

// callTime is about how long the start and work of an injector takes.
func callTime(t testing.TB, tg *target) time.Duration {
	begin := time.Now()
	mustRemote(t, tg.pid, unix.SYS_GETPID)
	return time.Since(begin)
}

// killAfter makes a call whose injector is killed at a random moment. The i-th
// uses an ordinary injector (even) or one that makes calls without end, which is
// most likely in the middle of one; it is killed by cancelling its context (0 and
// 1 of 4) or by a signal.
func killAfter(pid int, c Call, callTime time.Duration, i int) error {
	o, after := spawnOptions{}, time.Duration(rand.Int64N(int64(callTime)))
	if i%2 == 1 {
		o, after = as("loop", 1<<30), 2*callTime+after
	}
	cancelled := i%4 < 2
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	fired := make(chan struct{})
	o.started = func(injector int) {
		pidfd, err := unix.PidfdOpen(injector, 0) // not the number, which may be reused by then
		time.AfterFunc(after, func() {
			defer close(fired)
			if cancelled || err != nil {
				cancel()
				return
			}
			_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
			unix.Close(pidfd)
		})
	}
	_, err := spawn(ctx, pid, c, o)
	<-fired
	return err
}

// What the tests above would see if the injector had to restore the registers
// itself: the target breaks the first time it dies between setting and restoring.
func TestNaiveInjectorBreaksTheTarget(t *testing.T) {
	tg := startTarget(t, "spin")
	for i := range 20 { // it may survive one by luck, in a function that saves no registers
		_, _ = spawn(context.Background(), tg.pid, Call{Nr: unix.SYS_GETPID}, as("naive", 0))
		if !tg.progresses(time.Second) {
			t.Logf("target broken by naive injector %d: %q, %v", i+1, tg.lastWords(), tg.cmd.Wait())
			return
		}
	}
	t.Fatal("the target survived naive injectors: these tests prove nothing")
}

// Why PTRACE_SINGLESTEP is not used. Not a failure should a kernel improve on it.
func TestSinglestepOutlivesTracer(t *testing.T) {
	tg := startTarget(t, "spin")
	for i := range 50 {
		_, _ = spawn(context.Background(), tg.pid, Call{Nr: unix.SYS_GETPID}, as("singlestep", 0))
		if !tg.progresses(time.Second) {
			t.Logf("target gone after %d injectors killed while stepping: %q, %v", i+1, tg.lastWords(), tg.cmd.Wait())
			return
		}
	}
	t.Log("this kernel clears the trap flag of a dead tracer's target")
}

func TestGroupStopIsKept(t *testing.T) {
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tg := startTarget(t, mode)
			if err := unix.Kill(tg.pid, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			mustBeStopped(t, tg.pid)
			if pid := mustRemote(t, tg.pid, unix.SYS_GETPID); pid != int64(tg.pid) {
				t.Errorf("getpid returns %d", pid)
			}
			mustBeStopped(t, tg.pid)
			for s := stageSeized; s < stageCount; s++ {
				_, _ = spawn(context.Background(), tg.pid, Call{Nr: unix.SYS_GETPID}, as("die", int(s)))
				mustBeStopped(t, tg.pid)
			}
			if err := unix.Kill(tg.pid, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			for st, _ := readStatus(tg.pid); st.state == "T"; st, _ = readStatus(tg.pid) {
				time.Sleep(time.Millisecond)
			}
			tg.mustRun()
			tg.finish()
		})
	}
}

func mustBeStopped(t *testing.T, pid int) {
	t.Helper()
	var st status
	for range 2000 {
		if st, _ = readStatus(pid); st.state == "T" && st.tracerPid == "0" {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("state %s, traced by %s; want it stopped by its signal", st.state, st.tracerPid)
}

func TestSeccomp(t *testing.T) {
	t.Parallel()
	tg := startTarget(t, "sandbox")
	for range rounds(5) {
		if _, err := remote(t, tg.pid, unix.SYS_GETPPID); !errors.Is(err, ErrSeccomp) {
			t.Fatalf("trapped call: %v", err)
		}
		tg.mustRun() // the SIGSYS never reached it
	}
	if _, err := remote(t, tg.pid, unix.SYS_GETSID); !errors.Is(err, unix.EPERM) {
		t.Errorf("denied call: %v", err)
	}
	tg.mustRun()
	_, err := remote(t, tg.pid, unix.SYS_GETPGRP)
	if !errors.Is(err, ErrSeccomp) {
		t.Errorf("deadly call: %v", err)
	}
	t.Log(err)
}

func TestErrors(t *testing.T) {
	t.Parallel()
	t.Run("gone", func(t *testing.T) {
		cmd := exec.Command("true")
		if err := cmd.Run(); err != nil {
			t.Skip("no program named true")
		}
		_, err := remote(t, cmd.Process.Pid, unix.SYS_GETPID)
		wantErr(t, err, ErrGone)
		_, err = remote(t, -1, unix.SYS_GETPID)
		wantErr(t, err, ErrGone)
	})
	t.Run("traced", func(t *testing.T) {
		tg := startTarget(t, "spin")
		// An injector that sits in a call of 1 s is a tracer as well.
		started := make(chan struct{})
		ended := make(chan error)
		go func() {
			_, err := spawn(context.Background(), tg.pid, Call{Nr: unix.SYS_POLL, Args: [6]uint64{0, 0, 1000}},
				spawnOptions{started: func(int) { close(started) }})
			ended <- err
		}()
		<-started
		for st, _ := readStatus(tg.pid); st.tracerPid == "0"; st, _ = readStatus(tg.pid) {
			time.Sleep(time.Millisecond)
		}
		if ret, err := remote(t, tg.pid, unix.SYS_GETPID); err != nil || ret != int64(tg.pid) {
			t.Errorf("a call behind another one returned %d, %v", ret, err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		tg.mustRun()
	})
	t.Run("traced by a stranger", func(t *testing.T) {
		tg := startTarget(t, "spin")
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.PtraceSeize(tg.pid); err != nil {
			t.Fatal(err)
		}
		_, err := remote(t, tg.pid, unix.SYS_GETPID)
		wantErr(t, err, ErrTraced)
		var ws unix.WaitStatus
		if err := unix.PtraceInterrupt(tg.pid); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Wait4(tg.pid, &ws, unix.WALL, nil); err != nil {
			t.Fatal(err)
		}
		if err := unix.PtraceDetach(tg.pid); err != nil {
			t.Fatal(err)
		}
		tg.mustRun()
	})
	t.Run("permission", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("not root: cannot start an injector as another user")
		}
		tg := startTarget(t, "spin")
		_, err := spawn(context.Background(), tg.pid, Call{Nr: unix.SYS_GETPID}, spawnOptions{prepare: func(cmd *exec.Cmd) {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		}})
		wantErr(t, err, ErrPermission)
		tg.mustRun()
	})
}

func TestBounds(t *testing.T) {
	t.Parallel()
	t.Run("endless call", func(t *testing.T) {
		tg := startTarget(t, "spin")
		begin := time.Now()
		_, err := spawn(context.Background(), tg.pid, Call{Nr: unix.SYS_POLL, Args: [6]uint64{0, 0, 3000}}, spawnOptions{})
		wantErr(t, err, ErrOutcomeUnknown)
		if took := time.Since(begin); took > injectorBound+2*time.Second {
			t.Errorf("took %v", took)
		}
		tg.mustRun() // within 5 s: when the poll ends
	})
	t.Run("cancelled", func(t *testing.T) {
		tg := startTarget(t, "spin")
		ctx, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
		defer cancel()
		_, err := Remote(ctx, tg.pid, Call{Nr: unix.SYS_GETPID})
		wantErr(t, err, context.DeadlineExceeded)
		tg.mustRun()
	})
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	var typed *Error
	if !errors.Is(err, want) || !errors.As(err, &typed) {
		t.Errorf("error %v, want %v", err, want)
	}
	t.Log(err)
}

// BenchmarkRemote measures the whole call and, as stopped-us, the time the
// target stands still in it.
func BenchmarkRemote(b *testing.B) {
	for _, mode := range []string{"spin", "ppoll"} {
		b.Run(mode, func(b *testing.B) {
			tg := startTarget(b, mode)
			var stopped []int64
			for b.Loop() {
				rep, err := spawn(context.Background(), tg.pid, Call{Nr: unix.SYS_GETPID}, spawnOptions{})
				if err != nil {
					b.Fatal(err)
				}
				stopped = append(stopped, rep.StoppedNs)
			}
			slices.Sort(stopped)
			b.ReportMetric(float64(stopped[0])/1e3, "stopped-min-us")
			b.ReportMetric(float64(stopped[len(stopped)/2])/1e3, "stopped-p50-us")
			b.ReportMetric(float64(stopped[len(stopped)*99/100])/1e3, "stopped-p99-us")
			if strings.Contains(b.Name(), "spin") {
				tg.mustRun()
			}
		})
	}
}
