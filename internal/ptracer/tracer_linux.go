package ptracer

import (
	"encoding/binary"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// tracerName is argv[0] of a tracer and what MaybeInject looks for.
	tracerName = "virt-ft-tracer"

	// Descriptors of a tracer.
	tracerSockFd = 3 // orders and replies
	tracerBellFd = 4 // the arming that shall end; end of file when the daemon is gone
	tracerPidFd  = 5 // of the target

	// bellPause is how often a wait is interrupted until it is heard.
	bellPause = 100 * time.Microsecond
	// tracedPause is the pause before a target is tried again that another
	// process of ours has.
	tracedPause = 500 * time.Microsecond
	// seizeTriesMax is how often an attach is tried again that fails although
	// nobody traces the target.
	seizeTriesMax = 10
	// failuresPerCollection is after how many failures the garbage that they
	// made is collected.
	failuresPerCollection = 64

	auditArchX86_64 = 0xc000003e
	syscallTrap     = unix.SIGTRAP | 0x80
)

// trapStage is how far an arming has come. Tests end the tracer at each.
type trapStage int32

const (
	trapBegin      trapStage = iota // the order is read
	trapSeized                      // traced, still running
	trapAsked                       // told to stop
	trapSignal                      // in a signal-delivery stop, signal not passed on yet
	trapStopped                     // in the stop that was asked for, or a group stop
	trapArmed                       // runs on; every system call stops it
	trapOther                       // in a system call stop that is of no interest
	trapMatched                     // at the entry of the call, nothing changed
	trapSecondPage                  // the end of Data is written, which lies on another page
	trapWritten                     // Data is written
	trapPoked                       // the argument is changed
	trapEntered                     // runs into the call; its exit is waited for
	trapResult                      // at the exit
	trapRestored                    // the caller's register is as it was
	trapDetached                    // runs on alone
	trapStages
)

// tracer is the tracer's own process. One thread does everything; a second
// goroutine hears of the daemon's end and of armings that shall end. Waits are
// known to Go's scheduler: a thread that seems to run for more than 10 ms is told
// to yield, and would do so in the middle of a stop.
//
// It may be killed at any instant. Nothing in the target has to be put back:
// all that the kernel undoes for a dead tracer is being traced, and what was
// changed by then is either nothing, or what was to be changed.
type tracer struct {
	pid     int
	tid     int // of the thread that traces
	catch   Catch
	bound   time.Duration
	timer   int32
	onStage func(trapStage)

	active    atomic.Uint64 // the arming that a bell may end
	cancelled atomic.Uint64 // the last that shall end

	// Of the arming.
	order  trapOrder
	reply  trapReply
	begin  time.Time
	ending bool // told to stop, in order to detach
	armed  bool
	stop   syscallEntry // the last
	call   syscallEntry // the one that was caught

	packet [max(trapOrderBytes, trapReplyBytes) + 1]byte
	info   unix.Siginfo
	fails  int
}

// syscallEntry is struct ptrace_syscall_info; at an exit, Nr is the result.
type syscallEntry struct {
	Op     uint8
	_      [3]byte
	Arch   uint32
	IP, SP uint64
	Nr     uint64
	Args   [6]uint64
	_      uint64
}

// runTracer does what the command line and then the socket say, until the
// daemon is gone.
func runTracer(onStage func(trapStage)) (exitCode int) {
	runtime.LockOSThread() // ptrace belongs to the thread that attached
	pid, catch, bound, err := parseTracerArgs(os.Args[1:])
	if err != nil {
		return 2
	}
	// A service manager that stops the whole unit tells us too; the last
	// checkpoints may need us, and we end with the daemon.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	// A page that is not there would be waited for by the target. A comfort: it
	// takes a privilege, or a small process.
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	tr := &tracer{pid: pid, tid: unix.Gettid(), catch: catch, bound: bound, onStage: onStage}
	if tr.timer, err = createKillTimer(); err != nil {
		return 2
	}
	// The kernel need not send a signal beside each wait that ends, and the bell
	// must be able to end a wait.
	if changeSigaction(unix.SIGCHLD, saNoCldStop, 0) != nil || changeSigaction(unix.SIGURG, 0, saRestart) != nil {
		return 2
	}
	go tr.attendBell()
	return tr.serve()
}

// serve follows orders.
func (tr *tracer) serve() int {
	tr.reply.kind = replyReady
	tr.send()
	for {
		n, errno := recvPacket(tracerSockFd, tr.packet[:], 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || n == 0 || !tr.order.parse(tr.packet[:n]) {
			return 0 // the daemon is gone
		}
		tr.follow()
	}
}

// follow executes one order and replies. When it returns nothing is attached.
func (tr *tracer) follow() {
	tr.reply = trapReply{seq: tr.order.seq}
	tr.armed, tr.ending = false, tr.order.kind == orderLook
	setKillTimer(tr.timer, tr.bound)
	tr.active.Store(tr.order.seq)
	tr.reach(trapBegin)
	attached, err := tr.trap()
	if !attached {
		tr.active.Store(0)
		setKillTimer(tr.timer, 0)
	}
	if err != nil {
		tr.fail(err)
	} else {
		tr.reply.kind = replyDone
		tr.send()
	}
	if attached {
		unix.Exit(1) // detaches from whatever state it is in; its parent may be waiting for it
	}
}

// fail reports err. The garbage that this makes is collected here and nowhere
// else: collecting would have to wait for the thread that waits for the target.
func (tr *tracer) fail(err error) {
	tr.reply.kind, tr.reply.failure = replyFailed, reportOf(err)
	tr.send()
	if tr.fails++; tr.fails%failuresPerCollection == 0 {
		runtime.GC()
	}
}

func (tr *tracer) send() {
	tr.reply.put(tr.packet[:trapReplyBytes])
	_ = sendPacket(tracerSockFd, tr.packet[:trapReplyBytes]) // nobody listens any more: the next receive tells
}

func (tr *tracer) reach(s trapStage) { tr.onStage(s) }

// trap attaches, waits for the call, changes it and detaches. It says whether
// the target may still be attached: if it ended, or is in no stop.
func (tr *tracer) trap() (attached bool, err error) {
	if err := tr.seize(); err != nil {
		return false, err
	}
	tr.reach(trapSeized)
	tr.begin = time.Now()
	// The number may belong to another process by now. If the one we mean lives
	// still, it is the one that we are attached to.
	if !pidfdAlive(tracerPidFd) {
		return true, explain(tr.pid, "attach", unix.ESRCH)
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, tr.pid, 0, 0); err != nil {
		return true, explain(tr.pid, "stop", err)
	}
	tr.reach(trapAsked)
	deliver, err := tr.await()
	attached = ptrace(unix.PTRACE_DETACH, tr.pid, 0, deliver) != nil
	tr.reply.attached = time.Since(tr.begin)
	tr.reach(trapDetached)
	return attached, err
}

// seize attaches. Other processes of ours may be attached for a moment.
func (tr *tracer) seize() error {
	for {
		err := seize(tr.pid)
		if err == nil || !errors.Is(err, ErrTraced) || !injectorTraces(tr.pid) || tr.cancelled.Load() == tr.order.seq {
			return err
		}
		time.Sleep(tracedPause)
	}
}

// seize attaches to a process. The kernel gives one error for having no right to
// and for another tracer; one that is nowhere to be seen may just have gone.
func seize(pid int) error {
	const op = "attach"
	for try := 0; ; try++ {
		// Without PTRACE_O_TRACESYSGOOD the target would get a SIGTRAP, and die,
		// when we die while it is in a system call stop.
		err := ptrace(unix.PTRACE_SEIZE, pid, 0, unix.PTRACE_O_TRACESYSGOOD)
		if err == nil {
			return nil
		}
		if err != unix.EPERM || try == seizeTriesMax {
			return explain(pid, op, err)
		}
		st, err := readStatus(pid)
		if err != nil {
			return explain(pid, op, err)
		}
		st.shadowStack = false // of no interest here
		if err := st.refusal(pid); err != nil {
			return err
		}
	}
}

// await lets the target run from stop to stop until it is in one from which it
// is to be detached, with the signal that it is to get.
func (tr *tracer) await() (deliver uintptr, err error) {
	for {
		w, err := tr.wait()
		if err != nil {
			return 0, err
		}
		how := unix.PTRACE_SYSCALL
		deliver = 0
		switch {
		case w.event() == ptraceEventStop:
			tr.reach(trapStopped)
			if w.signal() != unix.SIGTRAP {
				how = ptraceListen // a group stop, which lasts until its SIGCONT
			}
		case w.signal() == syscallTrap:
			if done, err := tr.syscallStop(); done || err != nil {
				return 0, err
			}
		default:
			tr.reach(trapSignal)
			deliver = uintptr(w.signal())
		}
		if tr.ending {
			return deliver, nil
		}
		if err := ptrace(how, tr.pid, 0, deliver); err != nil {
			return 0, explain(tr.pid, "continue", err)
		}
		if !tr.armed {
			tr.armed = true
			tr.reply.kind = replyArmed
			tr.send()
			tr.reach(trapArmed)
		}
	}
}

// wait blocks until the target has stopped. It takes a bell, and asks the target
// to stop for it. As waitStop it leaves the stop unconsumed; see there.
func (tr *tracer) wait() (waitStatus, error) {
	for {
		if !tr.ending && tr.cancelled.Load() == tr.order.seq {
			tr.ending = true
			tr.active.Store(0) // heard
			if err := ptrace(unix.PTRACE_INTERRUPT, tr.pid, 0, 0); err != nil {
				return waitStatus{}, explain(tr.pid, "stop", err)
			}
		}
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_PID, uintptr(tr.pid), uintptr(unsafe.Pointer(&tr.info)),
			unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT|unix.WALL, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return waitStatus{}, explain(tr.pid, "wait for it to stop", errno)
		}
		w := statusOf(&tr.info)
		if w.ended() {
			return w, &Error{Op: "wait for the system call", PID: tr.pid, Err: ErrGone, Detail: "it ended meanwhile"}
		}
		tr.reply.stops++
		return w, nil
	}
}

// syscallStop looks at a stop at the entry or exit of a system call. The kernel
// says which of the two it is, so nothing has to be counted.
func (tr *tracer) syscallStop() (done bool, err error) {
	s := &tr.stop
	if err := ptracePtr(unix.PTRACE_GET_SYSCALL_INFO, tr.pid, unsafe.Sizeof(*s), unsafe.Pointer(s)); err != nil {
		return false, explain(tr.pid, "look at a system call", err)
	}
	if tr.reply.flags&flagCaught != 0 {
		// A call that is to be restarted, after a signal's handler perhaps, is not
		// over. The argument stays changed for that.
		if s.Op != syscallStopExit || s.IP != tr.call.IP || s.SP != tr.call.SP || isRestart(int64(s.Nr)) {
			tr.reach(trapOther)
			return false, nil
		}
		return true, tr.result(int64(s.Nr))
	}
	if s.Op != unix.PTRACE_SYSCALL_INFO_ENTRY || s.Arch != auditArchX86_64 ||
		s.Nr != tr.catch.Nr || s.Args[0] != tr.catch.Arg0 || s.Args[1] != tr.catch.Arg1 {
		tr.reach(trapOther)
		return false, nil
	}
	tr.call = *s
	tr.reach(trapMatched)
	if err := tr.change(); err != nil {
		return false, err
	}
	if tr.order.flags&flagWantResult == 0 {
		return true, nil
	}
	tr.reach(trapEntered)
	return false, nil
}

// change does what the order says to the call at whose entry the target stands.
func (tr *tracer) change() error {
	before := tr.reply.before[:tr.catch.DataBytes]
	if err := readMemory(tr.pid, tr.call.Args[2], before); err != nil {
		return explain(tr.pid, "read the call's struct", err)
	}
	data := tr.order.data[:tr.order.length]
	if tr.order.flags&flagNotBelow != 0 && binary.LittleEndian.Uint64(before) > binary.LittleEndian.Uint64(data) {
		tr.order.arg1 = 0
		tr.reply.flags |= flagCaught
		return nil
	}
	if len(data) > 0 {
		if err := tr.write(tr.call.Args[2], data); err != nil {
			return explain(tr.pid, "write the call's struct", err)
		}
		tr.reply.flags |= flagChanged
		tr.reach(trapWritten)
	}
	if tr.order.arg1 != 0 {
		if err := ptrace(unix.PTRACE_POKEUSR, tr.pid, unsafe.Offsetof(unix.PtraceRegs{}.Rsi), uintptr(tr.order.arg1)); err != nil {
			return explain(tr.pid, "change the call's argument", err)
		}
		tr.reply.flags |= flagChanged
		tr.reach(trapPoked)
	}
	tr.reply.flags |= flagCaught
	return nil
}

// write copies data into the target. What lies on one page is copied as a whole,
// also by a tracer that is killed meanwhile; between two pages the kernel looks
// for that. So of data that crosses into a second page the end goes first: see
// Change.
func (tr *tracer) write(addr uint64, data []byte) error {
	const page = 4096
	if first := int(page - addr%page); len(data) > first {
		if err := writeMemory(tr.pid, addr+uint64(first), data[first:]); err != nil {
			return err
		}
		tr.reach(trapSecondPage)
		data = data[:first]
	}
	return writeMemory(tr.pid, addr, data)
}

// result reads what the call has left, at its exit.
func (tr *tracer) result(ret int64) error {
	tr.reach(trapResult)
	if tr.order.arg1 != 0 {
		if err := ptrace(unix.PTRACE_POKEUSR, tr.pid, unsafe.Offsetof(unix.PtraceRegs{}.Rsi), uintptr(tr.catch.Arg1)); err != nil {
			return explain(tr.pid, "put the caller's register back", err)
		}
		tr.reach(trapRestored)
	}
	if err := readMemory(tr.pid, tr.call.Args[2], tr.reply.after[:tr.catch.DataBytes]); err != nil {
		return explain(tr.pid, "read the call's struct", err)
	}
	tr.reply.ret = ret
	tr.reply.flags |= flagResult
	return nil
}
