// Package ptracer makes a running process execute one system call of ours, or
// changes one of its own.
//
// A short-lived injector process (a re-exec of our own binary, in a session of
// its own) stops the main thread of the target with ptrace, lets it execute the
// call and detaches. The injector may be killed, or may crash, at any
// instruction: the target is never left stopped and never loses a register.
// That holds because nothing has to be put back by the injector. Before it
// touches a register it writes a signal frame with the complete state of the
// thread below the thread's red zone, where the ABI promises nothing lives.
// One PTRACE_SETREGS then starts a chain that the target runs through by itself:
//
//	syscall ; ret            two instructions found in libc: the call
//	mov $15,%rax ; syscall   libc's __restore_rt: rt_sigreturn
//
// and rt_sigreturn makes the kernel reload everything from the frame: general,
// x87 and vector registers, flags and signal mask.
//
//	rsp of the thread ->  +----------------------+
//	                      | red zone, 128 bytes  |
//	                      +----------------------+
//	                      | xstate, 64-aligned   | x87, SSE, AVX, ...
//	                      | siginfo (unused)     |
//	                      | ucontext             | general registers, mask
//	rsp of the chain  ->  | address of restorer  |
//	                      +----------------------+
//
// The guarantee needs a target whose main thread runs on an ordinary C stack,
// on which the kernel could deliver a signal. QEMU's main thread and its
// coroutines do. Goroutine stacks do not: never aim at a Go program.
//
// A Trap does the opposite: it waits for one system call that the process makes
// by itself, and changes it. It touches no stack.
package ptracer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// injectorBound is the time after which an injector gives up by itself.
	injectorBound = 2 * time.Second
	// spawnBound limits a whole Remote when its context has no deadline: the
	// injector's own bound and the start of a process on a busy host.
	spawnBound = 10 * time.Second
	// reportBytesMax bounds what is read from an injector.
	reportBytesMax = 4096
	// injectorName is argv[0] of an injector and what MaybeInject looks for.
	injectorName = "virt-ft-injector"
	// reportFd is the descriptor an injector writes its report to.
	reportFd = 3
)

// Call is one system call of x86-64: its number and its arguments. Pointers
// among the arguments are addresses in the target.
type Call struct {
	Nr   uint64
	Args [6]uint64
}

// Remote lets the main thread of process pid execute c and returns the value
// the kernel returned. When the system call itself fails, ret is -errno and err
// wraps the errno. All errors are of type *Error and say what to do.
//
// A system call in which the thread was blocked goes on afterwards: it is
// restarted, except for those with a relative timeout kept in the kernel (poll,
// nanosleep, futex with timeout), which return EINTR as after a handled signal.
// Signals that arrive meanwhile are delivered right after, before such a restart
// and not instead of it. A process stopped by a signal executes the call and
// stays stopped.
//
// Cancelling ctx kills the injector, which never harms the target; whether the
// call was executed is then unknown and err is ErrOutcomeUnknown as well as the
// context's error. Without a deadline the call ends within 10 s.
//
// Remote may be called concurrently. Of two calls to the same process one waits
// for the other, also for the last one of a program that was killed: its injector
// outlives it for up to two seconds. The binary must call MaybeInject first thing
// in main, and in TestMain.
func Remote(ctx context.Context, pid int, c Call) (ret int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, spawnBound)
	defer cancel()
	for {
		rep, err := spawn(ctx, pid, c, spawnOptions{})
		if !errors.Is(err, ErrTraced) || !injectorTraces(pid) {
			return rep.Ret, err
		}
		select {
		case <-ctx.Done():
			return rep.Ret, err
		case <-time.After(tracedPoll):
		}
	}
}

// tracedPoll is the pause before a process is tried again that an injector had.
const tracedPoll = 5 * time.Millisecond

// injectorTraces tells whether the tracer of pid is one of ours, or is gone.
func injectorTraces(pid int) bool {
	st, err := readStatus(pid)
	if err != nil || st.tracerPid == "" {
		return false
	}
	cmdline, err := os.ReadFile("/proc/" + st.tracerPid + "/cmdline")
	name, _, _ := strings.Cut(string(cmdline), "\x00")
	// One that is ending, and is about to detach, has no name any more.
	return st.tracerPid == "0" || err != nil || name == "" || name == injectorName || name == tracerName
}

// spawnOptions are what tests change about an injector process.
type spawnOptions struct {
	prepare func(*exec.Cmd)
	started func(injectorPid int)
}

// spawn runs one injector process to its end.
func spawn(ctx context.Context, pid int, c Call, o spawnOptions) (report, error) {
	if pid <= 0 {
		return report{}, &Error{Op: "remote call", PID: pid, Err: ErrGone, Detail: "not a process id"}
	}
	ctx, cancel := context.WithTimeout(ctx, spawnBound)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return report{}, &Error{Op: "start injector", PID: pid, Err: err}
	}
	defer r.Close()

	cmd := exec.CommandContext(ctx, "/proc/self/exe", encodeArgs(pid, c)...)
	cmd.Args[0] = injectorName
	cmd.ExtraFiles = []*os.File{w} // becomes reportFd
	// A session of its own: a signal to our process group does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if o.prepare != nil {
		o.prepare(cmd)
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return report{}, &Error{Op: "start injector", PID: pid, Err: err}
	}
	if o.started != nil {
		o.started(cmd.Process.Pid)
	}
	// The pipe ends with the injector, and the injector with ctx.
	data, readErr := io.ReadAll(io.LimitReader(r, reportBytesMax))
	waitErr := cmd.Wait()

	var rep report
	if readErr == nil && json.Unmarshal(data, &rep) == nil {
		return rep, rep.err(pid, c)
	}
	return report{}, &Error{
		Op: "remote call", PID: pid, Err: errors.Join(ErrOutcomeUnknown, ctx.Err()),
		Detail: fmt.Sprintf("the injector ended without a report (%v); the process goes on unharmed, "+
			"but may or may not have executed system call %d", waitErr, c.Nr),
	}
}

// encodeArgs is the command line of an injector; decodeArgs is its inverse.
func encodeArgs(pid int, c Call) []string {
	args := []string{strconv.Itoa(pid), strconv.FormatUint(c.Nr, 10)}
	for _, a := range c.Args {
		args = append(args, strconv.FormatUint(a, 10))
	}
	return args
}

func decodeArgs(args []string) (pid int, c Call, err error) {
	if len(args) != 2+len(c.Args) {
		return 0, c, fmt.Errorf("%d arguments, want %d", len(args), 2+len(c.Args))
	}
	if pid, err = strconv.Atoi(args[0]); err != nil {
		return 0, c, err
	}
	if c.Nr, err = strconv.ParseUint(args[1], 10, 64); err != nil {
		return 0, c, err
	}
	for i, a := range args[2:] {
		if c.Args[i], err = strconv.ParseUint(a, 10, 64); err != nil {
			return 0, c, err
		}
	}
	return pid, c, nil
}
