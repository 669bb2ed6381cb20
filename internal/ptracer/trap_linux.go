package ptracer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// backoffMin and backoffMax bound how long no other tracer is started after
	// one that died.
	backoffMin = time.Millisecond
	backoffMax = time.Second
	// endingMax is how long Collect waits for a tracer that was told to detach,
	// which takes some 0.1 ms, before it leaves that to the Bound.
	endingMax = 20 * time.Millisecond
)

// Trap catches one system call of a running process's main thread at its entry,
// changes it, and lets go.
//
// A tracer, a small process of its own that lives as long as the Trap, is
// attached to the thread from Arm until the call was caught. Meanwhile each of
// the thread's system calls stops it twice, for some microseconds. The tracer
// may be killed at any instant, and so may we: the kernel then lets the thread
// go on, with the call as it was or as it was to be changed (see Change). No
// register has to be put back, no breakpoint is set, nothing is stepped. A
// system call in which the thread was blocked when it was stopped goes on
// afterwards as after an ignored signal: a write to a full pipe is restarted, or
// returns what it has written so far. Signals are delivered; a process that is
// stopped by one stays so.
//
// In the order of a pause: Arm when the target is known to come to the call
// soon, which does not wait; Armed before that is allowed to happen; Collect
// afterwards. Arm and Armed allocate nothing unless they fail.
//
// Methods may be called concurrently and take turns. The binary must call
// MaybeInject first thing in main, and in TestMain.
type Trap struct {
	pid   int
	catch Catch
	o     TrapOptions
	pidfd *os.File // the target's, so that its number is never taken for another process

	mu        sync.Mutex
	life      *tracerLife // nil while there is none
	starting  bool        // another one
	notBefore time.Time   // of starting another one
	backoff   time.Duration
	closed    bool
	seq       uint64
	pending   uint64 // the arming that the tracer is at; 0: none
	uncollect bool   // Arm was called, Collect was not
	armed     bool
	replied   bool // reply is what became of the arming
	lost      error
	order     trapOrder
	reply     trapReply
	packet    [max(trapOrderBytes, trapReplyBytes) + 1]byte
	wg        sync.WaitGroup
}

// OpenTrap starts the tracer of a process and tries it: it stops the process's
// main thread once, for a moment. Errors are of type *Error and those of Remote:
// ErrPermission, ErrTraced, ErrGone, ErrTimeout; or ErrTrapAway if the tracer was
// killed at once. ctx ends only the start.
func OpenTrap(ctx context.Context, pid int, c Catch, o TrapOptions) (*Trap, error) {
	const op = "open a trap"
	if o.Bound == 0 {
		o.Bound = TrapBoundDefault
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := c.validate(); err != nil || o.Bound < trapBoundMin || pid <= 0 {
		return nil, fmt.Errorf("%s: process %d, bound %v: %w", op, pid, o.Bound, errors.Join(err, ErrUnsupported))
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, explain(pid, op, err)
	}
	t := &Trap{pid: pid, catch: c, o: o, pidfd: os.NewFile(uintptr(fd), "pidfd"), backoff: backoffMin}
	if t.life, err = t.startTracer(ctx); err == nil {
		err = t.look()
	}
	if err != nil {
		_ = t.Close() // has nothing to say
		return nil, err
	}
	return t, nil
}

// look tries whether the tracer may attach.
func (t *Trap) look() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begin()
	t.order.kind, t.order.seq, t.order.flags, t.order.length = orderLook, t.seq, 0, 0
	if err := t.send(); err != nil {
		return err
	}
	begin := time.Now()
	t.await(begin.Add(t.o.Bound+endingMax), t.isOver)
	t.uncollect = false
	switch {
	case t.lost != nil && time.Since(begin) < t.o.Bound:
		return t.away(fmt.Sprintf("the tracer ended: %v", t.lost))
	case !t.replied:
		return &Error{Op: "attach", PID: t.pid, Err: ErrTimeout, Detail: fmt.Sprintf(
			"its main thread did not stop within %v, probably it waits for a disk or is frozen; nothing was changed, try again (tracer: %v)", t.o.Bound, t.lost)}
	case t.reply.kind == replyFailed:
		return t.reply.failure.err(t.pid, Call{})
	}
	return nil
}

// Arm makes the next call that matches subject to ch. It returns at once: the
// thread is stopped a moment later (Armed). The tracer waits for the call until
// Collect, or until Bound is over.
//
// It fails with ErrTrapAway, and has changed nothing, while there is no tracer,
// because the last one died, and while the last arming is not over yet: a
// thread that sleeps in the kernel, where nothing can stop it, is detached only
// when Bound is over. An Arm that follows another one without a Collect ends it.
// Data is copied.
func (t *Trap) Arm(ch Change) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ch.validate(t.catch); err != nil {
		return &Error{Op: "arm a trap", PID: t.pid, Err: ErrUnsupported, Detail: err.Error()}
	}
	t.drain()
	if t.pending != 0 {
		t.ring()
		return t.away("the last arming is not over")
	}
	if t.life == nil {
		t.renew()
		return t.away("")
	}
	t.begin()
	t.order.set(t.seq, ch)
	return t.send()
}

// begin is a new arming.
func (t *Trap) begin() {
	t.seq++
	t.pending, t.uncollect = t.seq, true
	t.armed, t.replied, t.lost = false, false, nil
}

// send gives the tracer its order.
func (t *Trap) send() error {
	t.order.put(t.packet[:trapOrderBytes])
	if err := sendPacket(t.life.sock, t.packet[:trapOrderBytes]); err != nil {
		t.uncollect = false
		t.died(err)
		return t.away("")
	}
	return nil
}

// Armed waits at most max until every system call that the thread makes from now
// on is seen, and tells whether that is so; also if the call was caught already.
func (t *Trap) Armed(max time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.await(time.Now().Add(max), func() bool { return t.armed || t.isOver() })
	if t.replied {
		return t.uncollect && t.reply.flags&flagCaught != 0
	}
	return t.uncollect && t.armed && t.lost == nil
}

// Collect waits at most max for the call, ends the arming and returns what was
// caught. It may take a few milliseconds longer if the call did not come, in
// which the thread is let go.
//
// ErrNotCaught: the call did not come; it has not been changed and will not be.
// ErrOutcomeUnknown: the tracer died, or could not let go in time: a call may
// have been changed. Caught.Changed says that it was, when only its result
// (WantResult) was not waited for. ErrTrapAway: Arm had failed or was not called.
func (t *Trap) Collect(max time.Duration) (Caught, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.uncollect {
		return Caught{}, t.away("it is not armed")
	}
	t.await(time.Now().Add(max), t.isOver)
	if !t.isOver() {
		t.ring()
		t.await(time.Now().Add(endingMax), t.isOver)
	}
	t.uncollect = false
	fail := func(err error, detail string) error {
		return &Error{Op: "catch a system call", PID: t.pid, Err: err, Detail: detail}
	}
	switch {
	case t.lost != nil:
		return Caught{}, fail(errors.Join(ErrOutcomeUnknown, ErrTrapAway), fmt.Sprintf("the tracer ended (%v); the process goes on unharmed", t.lost))
	case !t.replied:
		return Caught{}, fail(ErrOutcomeUnknown, fmt.Sprintf("its main thread cannot be stopped now; it is let go within %v", t.o.Bound))
	case t.reply.kind == replyFailed:
		return Caught{}, t.reply.failure.err(t.pid, Call{})
	}
	c := t.reply.caught(t.catch.DataBytes)
	if c.Before == nil {
		return c, fail(ErrNotCaught, "")
	}
	t.backoff = backoffMin
	if t.order.flags&flagWantResult != 0 && c.After == nil {
		return c, fail(ErrOutcomeUnknown, "the call was caught, but did not return in time")
	}
	return c, nil
}

// Close ends the tracer, which lets go of whatever it is attached to, and waits
// for that. It may be called more than once.
func (t *Trap) Close() error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		if t.life != nil {
			t.life.end()
			t.life = nil
		}
		t.uncollect, t.pending = false, 0
	}
	t.mu.Unlock()
	t.wg.Wait() // one that was being started sees that we are closed
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.pidfd.Close() // was only looked at; the second time it is closed
	return nil
}

func (t *Trap) away(detail string) error {
	return &Error{Op: "arm a trap", PID: t.pid, Err: ErrTrapAway, Detail: detail}
}

// isOver tells whether it is known what became of the arming.
func (t *Trap) isOver() bool { return t.replied || t.lost != nil }

// await takes what the tracer says until done, or until there is nothing more to
// wait for.
func (t *Trap) await(deadline time.Time, done func() bool) {
	for t.drain(); !done() && t.life != nil && t.pending != 0; t.drain() {
		left := time.Until(deadline)
		if left <= 0 {
			return
		}
		readable(t.life.sock, left)
	}
}

// drain takes what the tracer has said, without waiting.
func (t *Trap) drain() {
	for t.life != nil {
		n, errno := recvPacket(t.life.sock, t.packet[:], unix.MSG_DONTWAIT)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno == unix.EINTR:
			continue
		case errno != 0 || n == 0:
			t.died(errors.New("its socket was closed"))
			return
		}
		if err := t.reply.parse(t.packet[:n]); err != nil {
			t.died(err)
			return
		}
		if t.reply.seq != t.pending {
			continue
		}
		if t.reply.kind == replyArmed {
			t.armed = true
			continue
		}
		t.replied, t.pending = true, 0
		return // the reply is that of this arming until the next
	}
}

// ring tells the tracer to end the arming.
func (t *Trap) ring() {
	if t.life == nil {
		return
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], t.pending)
	_, _ = unix.Write(t.life.bell, b[:]) // if it is dead, or the pipe full of them: what is waited for tells
}

// died buries a tracer and lets the next one be started.
func (t *Trap) died(why error) {
	state := t.life.end()
	t.life = nil
	if t.pending != 0 {
		t.lost, t.pending = fmt.Errorf("%w: %s", why, state), 0
	}
	t.o.Logger.Warn("ptracer: the tracer ended; nothing is attached", "pid", t.pid, "err", why, "state", state)
	t.renew()
}

// renew starts another tracer, unless that was tried a moment ago.
func (t *Trap) renew() {
	now := time.Now()
	if t.closed || t.starting || t.life != nil || now.Before(t.notBefore) {
		return
	}
	t.starting = true
	t.notBefore = now.Add(t.backoff)
	t.backoff = min(2*t.backoff, backoffMax)
	t.wg.Go(func() {
		life, err := t.startTracer(context.Background())
		t.mu.Lock()
		defer t.mu.Unlock()
		t.starting = false
		switch {
		case err != nil:
			t.o.Logger.Warn("ptracer: no tracer could be started", "pid", t.pid, "err", err)
		case t.closed:
			life.end()
		default:
			t.life = life
		}
	})
}
