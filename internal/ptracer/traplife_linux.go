package ptracer

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tracerLife is one tracer process, from its start to its end.
type tracerLife struct {
	cmd  *exec.Cmd
	sock int // orders and replies, one packet each
	bell int // the arming that shall end; closing it ends the tracer
}

// readyPoll is how often a start that is waited for looks at its context.
const readyPoll = 20 * time.Millisecond

// startTracer starts a tracer and returns when it takes orders.
func (t *Trap) startTracer(ctx context.Context) (*tracerLife, error) {
	const op = "start a tracer"
	l := &tracerLife{}
	fail := func(err error, detail string) error {
		return &Error{Op: op, PID: t.pid, Err: err, Detail: detail}
	}
	theirs, err := l.pipes()
	if err != nil {
		return nil, fail(err, "")
	}
	l.cmd = exec.Command("/proc/self/exe", tracerArgs(t.pid, t.catch, t.o.Bound)...)
	l.cmd.Args[0] = tracerName
	// Two processors for Go: one for the thread that waits for the target, which
	// finds it free when the wait is over, and one for whoever hears that it shall
	// not. Nothing is collected or preempted in between.
	l.cmd.Env = []string{"GOMAXPROCS=2", "GOGC=off", "GODEBUG=asyncpreemptoff=1"}
	l.cmd.Stderr = os.Stderr // a panic, if anything
	l.cmd.ExtraFiles = []*os.File{theirs[0], theirs[1], t.pidfd}
	// A process group of its own: a signal to ours does not reach it. Not a
	// session: that would be an autogroup of its own (sched(7)), in which our nice
	// value counts for nothing, and on a busy host it waited for a processor two to
	// three times as long, with the target stopped.
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if t.o.spawn.prepare != nil {
		t.o.spawn.prepare(l.cmd)
	}
	err = l.cmd.Start()
	for _, f := range theirs {
		_ = f.Close() // theirs now
	}
	if err != nil {
		l.close()
		return nil, fail(err, "")
	}
	if t.o.spawn.started != nil {
		t.o.spawn.started(l.cmd.Process.Pid)
	}
	if err := l.ready(ctx); err != nil {
		return nil, fail(err, "tracer: "+l.end()+"; does main call ptracer.MaybeInject?")
	}
	return l, nil
}

// pipes makes what a tracer is spoken to through, and returns its ends.
func (l *tracerLife) pipes() (theirs [2]*os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return theirs, err
	}
	var bell [2]int
	if err := unix.Pipe2(bell[:], unix.O_CLOEXEC); err != nil {
		_, _ = unix.Close(pair[0]), unix.Close(pair[1])
		return theirs, err
	}
	_ = unix.SetNonblock(bell[1], true) // cannot fail for a pipe
	l.sock, l.bell = pair[0], bell[1]
	return [2]*os.File{os.NewFile(uintptr(pair[1]), "tracer"), os.NewFile(uintptr(bell[0]), "bell")}, nil
}

// ready waits for the tracer's first word.
func (l *tracerLife) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, spawnBound)
	defer cancel()
	var b [trapReplyBytes + 1]byte
	for ctx.Err() == nil {
		readable(l.sock, readyPoll)
		n, errno := recvPacket(l.sock, b[:], unix.MSG_DONTWAIT)
		if errno == unix.EAGAIN || errno == unix.EINTR {
			continue
		}
		var r trapReply
		if errno != 0 || n == 0 || r.parse(b[:n]) != nil || r.kind != replyReady {
			return errors.New("it ended at once")
		}
		return nil
	}
	return ctx.Err()
}

// end kills the tracer, whatever it is doing, and says how it ended.
func (l *tracerLife) end() string {
	l.close()
	_ = l.cmd.Process.Kill() // fails if it has ended
	_ = l.cmd.Wait()         // ProcessState tells
	return l.cmd.ProcessState.String()
}

func (l *tracerLife) close() { _, _ = unix.Close(l.sock), unix.Close(l.bell) }

// readable waits at most that long until there is something to read, the end, or
// a signal.
func readable(fd int, within time.Duration) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	ts := unix.NsecToTimespec(within.Nanoseconds())
	_, _ = unix.Ppoll(fds, &ts, nil) // whoever reads next sees what is there
}
