package ptracer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

// statmResident is the second field of /proc/PID/statm, in pages.
func statmResident(text string) int64 {
	fields := strings.Fields(text)
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[1], 10, 64)
	return n
}

// dyingTracer is a tracer that ends when it is somewhere for the nth time; the
// first is at most that of the trial attach.
func dyingTracer(at trapStage, nth int) int {
	return runTracer(func(s trapStage) {
		if s != at {
			return
		}
		if nth--; nth <= 0 {
			die()
		}
	})
}

// changes are those whose traces trapped.c can tell apart. What is written is
// something else each time.
func changes() map[string]Change {
	return map[string]Change{
		"keep":        {Arg1: reqGet},
		"keep+result": {Arg1: reqGet, WantResult: true},
		"set":         {Data: head(rand.Uint64() >> 16), NotBelow: true},
		"set+result":  {Data: head(rand.Uint64() >> 16), WantResult: true},
	}
}

// A tracer that dies at any of its steps leaves the target unharmed: no struct
// is torn within a page, no result is wrong, no signal lost, no byte of a pipe.
func TestTrapKilledAtEveryStage(t *testing.T) {
	for _, mode := range trapModes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tg := startTrapped(t, mode)
			killed := map[trapStage]int{}
			for round := range rounds(1) {
				for s := trapSeized; s < trapStages; s++ {
					for name := range changes() {
						if killTraced(t, tg, name, s, round) {
							killed[s]++
						} else {
							t.Logf("%s: a tracer did not come to stage %d", name, s)
						}
						tg.mustRun()
					}
				}
			}
			t.Logf("killed at stages: %v; %d structs cut between two pages", killed, tg.counter(countCuts))
			for s := trapSeized; s < trapStages; s++ {
				if killed[s] == 0 && s != trapSignal && (s != trapSecondPage || mode == "span") {
					t.Errorf("no tracer died at stage %d", s)
				}
			}
			tg.finish()
		})
	}
}

// killTraced arms until the tracer dies at a stage; false if it does not come
// there by this change.
func killTraced(t *testing.T, tg *target, change string, s trapStage, round int) bool {
	// All stages up to the first stop, and the last, come in OpenTrap too.
	nth := 1 + round%2
	if s <= trapStopped || s == trapDetached {
		nth++
	}
	tp, err := OpenTrap(context.Background(), tg.pid, trapCatch(tg), TrapOptions{Bound: time.Minute, spawn: as("tracer", 100*nth+int(s))})
	if errors.Is(err, ErrTrapAway) { // two signals, of which each stops it
		return true
	}
	if err != nil {
		t.Fatalf("stage %d, %d: %v", s, nth, err)
	}
	defer tp.Close()
	for range 2 * nth {
		tg.signal()
		if err := tp.Arm(changes()[change]); err != nil {
			return errors.Is(err, ErrTrapAway)
		}
		switch _, err := tp.Collect(trapWait); {
		case errors.Is(err, ErrTrapAway):
			return true
		case err != nil:
			t.Fatal(err)
		}
	}
	return false
}

// Tracers killed from outside at random moments, many times for each second that
// a real one would take to be started again.
func TestTrapKilledAtRandom(t *testing.T) {
	for _, mode := range trapModes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tg := startTrapped(t, mode)
			killed, caught := 0, 0
			for killed < rounds(25) {
				tp := openTrap(t, tg, TrapOptions{Bound: time.Minute})
				pidfd, err := unix.PidfdOpen(tp.life.cmd.Process.Pid, 0)
				if err != nil {
					t.Fatal(err)
				}
				fired := make(chan struct{})
				time.AfterFunc(time.Duration(rand.Int64N(int64(3*time.Millisecond))), func() {
					defer close(fired)
					_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
					unix.Close(pidfd)
				})
				for {
					tg.signal()
					if tp.Arm(randomChange()) != nil {
						break
					}
					if _, err := tp.Collect(trapWait); err != nil {
						break
					}
					caught++
				}
				<-fired
				tp.Close()
				mustBeFree(t, tg.pid)
				killed++
			}
			tg.mustRun()
			tg.finish()
			t.Logf("%d tracers killed, %d calls caught, %d structs cut between two pages", killed, caught, tg.counter(countCuts))
		})
	}
}

func randomChange() Change {
	all := changes()
	i := rand.IntN(len(all))
	for _, ch := range all {
		if i--; i < 0 {
			return ch
		}
	}
	return Change{}
}

// driveTraps is a daemon: it sets traps in process pid without end.
func driveTraps(pid int) int {
	fd, _ := strconv.Atoi(os.Getenv("PTRACER_FD"))
	tp, err := OpenTrap(context.Background(), pid, Catch{Nr: unix.SYS_IOCTL, Arg0: uint64(fd), Arg1: reqSet, DataBytes: termSize}, TrapOptions{Bound: time.Minute})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(tp.life.cmd.Process.Pid)
	for {
		if tp.Arm(randomChange()) == nil {
			_, _ = tp.Collect(trapWait)
		}
	}
}

// A daemon that is killed, at any moment, takes its tracer with it, and the
// target goes on.
func TestTrapDaemonKilled(t *testing.T) {
	for _, mode := range trapModes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tg := startTrapped(t, mode)
			for range rounds(6) {
				tg.signal()
				cmd := exec.Command("/proc/self/exe")
				cmd.Args[0] = fmt.Sprintf("%s:driver:%d", testInjector, tg.pid)
				cmd.Env = append(os.Environ(), fmt.Sprintf("PTRACER_FD=%d", tg.counter(countFd)))
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				line, _ := bufio.NewReader(out).ReadString('\n')
				tracer, err := strconv.Atoi(strings.TrimSpace(line))
				if err != nil {
					t.Fatalf("driver: %q", line)
				}
				pidfd, err := unix.PidfdOpen(tracer, 0)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(rand.Int64N(int64(5 * time.Millisecond)))) // the moment of its death
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				awaitEnd(t, pidfd)
				mustBeFree(t, tg.pid)
				tg.mustRun()
			}
			tg.finish()
		})
	}
}

// awaitEnd waits for the end of a pidfd's process, of which it is readable.
func awaitEnd(t *testing.T, pidfd int) {
	t.Helper()
	defer unix.Close(pidfd)
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		switch n, err := unix.Poll(fds, int(trapWait.Milliseconds())); {
		case n == 1:
			return
		case err != unix.EINTR:
			t.Fatalf("the tracer outlives its daemon: %v", err)
		}
	}
}

// rounds is n, times what the environment asks for.
func rounds(n int) int {
	if factor, err := strconv.Atoi(os.Getenv("PTRACER_ROUNDS")); err == nil && factor > 0 {
		return n * factor
	}
	return n
}
