package ptracer

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaybeInject turns a process spawned by Remote into the injector, and one that
// a Trap started into the tracer: it does the work and exits. In every other
// process it returns at once. It must be the first call in main and in TestMain.
func MaybeInject() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case injectorName:
		os.Exit(runInjector(func(stage) {}))
	case tracerName:
		os.Exit(runTracer(func(trapStage) {}))
	}
}

// stage is how far an injection has come. Tests end the injector at each.
type stage int32

const (
	stageBegin    stage = iota
	stageSeized         // traced, still running
	stageSignal         // in a signal-delivery stop, signal not passed on yet; rare
	stageStopped        // stopped, nothing read yet
	stageFramed         // frame written below the red zone
	stageSet            // registers set: from here on the call will be executed
	stageMasked         // signals blocked until rt_sigreturn
	stageResumed        // running towards the call
	stageSyscall        // in a stop at the call's entry or exit
	stageResult         // result read
	stageDetached       // runs on alone
	stageCount
)

// runInjector does what the command line says and reports on reportFd.
func runInjector(onStage func(stage)) (exitCode int) {
	// ptrace belongs to the thread that attached.
	runtime.LockOSThread()
	out := os.NewFile(reportFd, "report")
	var once sync.Once
	send := func(r report) {
		once.Do(func() { _ = json.NewEncoder(out).Encode(r) }) // fails if nobody listens any more
	}

	pid, call, err := decodeArgs(os.Args[1:])
	if err != nil {
		send(report{Op: "start injector", Failure: ErrUnsupported.Error(), Detail: err.Error()})
		return 1
	}
	in := &injection{pid: pid, call: call, onStage: onStage}
	// The bound ends the process in whatever wait it is: dying is harmless, that
	// is what the package is about.
	bound := time.AfterFunc(injectorBound, func() {
		send(in.timedOut())
		os.Exit(1)
	})
	defer bound.Stop()
	rep, err := in.run()
	if err != nil {
		rep = reportOf(err)
	}
	send(rep)
	return 0
}

// injection is one remote call, seen from the injector.
type injection struct {
	pid     int
	call    Call
	onStage func(stage)
	at      atomic.Int32 // stage reached

	// Allocated before the target is stopped.
	regs   *unix.PtraceRegs
	xstate []byte

	sigmask uint64 // of the target
}

func (in *injection) reach(s stage) {
	in.at.Store(int32(s))
	in.onStage(s)
}

func (in *injection) fail(op string, kind error, detail string) error {
	return &Error{Op: op, PID: in.pid, Err: kind, Detail: detail}
}

func (in *injection) timedOut() report {
	if stage(in.at.Load()) < stageFramed {
		return report{Op: "stop", Failure: ErrTimeout.Error(), Detail: fmt.Sprintf(
			"its main thread did not stop within %v, probably it waits for a disk or is frozen; nothing was changed, try again", injectorBound)}
	}
	return report{Op: "remote call", Failure: ErrOutcomeUnknown.Error(), Detail: fmt.Sprintf(
		"system call %d did not end within %v; the process goes on unharmed", in.call.Nr, injectorBound)}
}

// run performs the call.
func (in *injection) run() (report, error) {
	if err := in.checkStatus(); err != nil {
		return report{}, err
	}
	g, err := findGadgets(in.pid)
	if err != nil {
		return report{}, in.explain("look for system call instructions", err)
	}
	if in.regs, err = lockedRegs(); err != nil {
		return report{}, in.explain("allocate", err)
	}
	defer unlockRegs(in.regs)
	in.xstate = make([]byte, xstateBytesMax)
	if err := seize(in.pid); err != nil {
		return report{}, err
	}
	in.reach(stageSeized)
	begin := time.Now()
	ret, err := in.stopAndCall(g)
	if err != nil {
		// Harmless if it is not stopped or gone. Our exit detaches anyhow.
		_ = ptrace(unix.PTRACE_DETACH, in.pid, 0, 0)
		return report{}, err
	}
	// ESRCH here means that the process was killed after it executed the call.
	if err := ptrace(unix.PTRACE_DETACH, in.pid, 0, 0); err != nil && err != unix.ESRCH {
		return report{}, in.explain("detach", err)
	}
	stopped := time.Since(begin)
	in.reach(stageDetached)
	return report{Ret: ret, StoppedNs: stopped.Nanoseconds()}, nil
}

// stopAndCall returns with the target in a stop from which it may be detached.
func (in *injection) stopAndCall(g gadgets) (int64, error) {
	if err := ptrace(unix.PTRACE_INTERRUPT, in.pid, 0, 0); err != nil {
		return 0, in.explain("stop", err)
	}
	if err := in.awaitStop(); err != nil {
		return 0, err
	}
	in.reach(stageStopped)
	if err := g.verify(in.pid); err != nil {
		return 0, in.explain("check system call instructions", err)
	}
	regs, err := in.prepare(g)
	if err != nil {
		return 0, err
	}
	if err := in.start(regs); err != nil {
		return 0, err
	}
	return in.result(g, regs.Rsp)
}

// awaitStop waits for the stop PTRACE_INTERRUPT asked for. A group stop serves
// as well. Signals the thread was about to take are handed to it first.
func (in *injection) awaitStop() error {
	for {
		w, err := waitStop(in.pid)
		if err != nil {
			return in.explain("wait for it to stop", err)
		}
		if w.ended() {
			return in.ended("stop", w)
		}
		if w.event() == ptraceEventStop {
			return nil
		}
		in.reach(stageSignal)
		if err := ptrace(unix.PTRACE_CONT, in.pid, 0, uintptr(w.signal())); err != nil {
			return in.explain("pass on a signal", err)
		}
	}
}

// prepare writes the frame and returns the registers that start the chain.
func (in *injection) prepare(g gadgets) (*unix.PtraceRegs, error) {
	const op = "save registers"
	regs := in.regs
	if err := getRegs(in.pid, regs); err != nil {
		return nil, in.explain(op, err)
	}
	const userCode64 = 0x33 // __USER_CS
	if regs.Cs != userCode64 {
		return nil, in.fail(op, ErrUnsupported, "it is not a 64-bit process")
	}
	xstate, err := getXstate(in.pid, in.xstate)
	if err != nil {
		return nil, in.explain(op, err)
	}
	if in.sigmask, err = getSigmask(in.pid); err != nil {
		return nil, in.explain(op, err)
	}
	saved := *regs
	saved.Rip = leaveRseq(in.pid, regs.Rip)
	f, err := buildFrame(&saved, xstate, in.sigmask, g.restore)
	if err != nil {
		return nil, in.fail(op, ErrUnsupported, err.Error())
	}
	if err := writeMemory(in.pid, f.addr, f.data); err != nil {
		return nil, in.fail(op, ErrUnsupported, fmt.Sprintf("no room for %d bytes on its stack (%v); try again", len(f.data), err))
	}
	in.reach(stageFramed)

	regs.Rip, regs.Rsp = g.call, f.addr
	regs.Orig_rax = ^uint64(0) // the interrupted system call is the frame's business now
	regs.Rax = in.call.Nr
	regs.Rdi, regs.Rsi, regs.Rdx = in.call.Args[0], in.call.Args[1], in.call.Args[2]
	regs.R10, regs.R8, regs.R9 = in.call.Args[3], in.call.Args[4], in.call.Args[5]
	return regs, nil
}

// start sets the registers and lets the target go to the call.
func (in *injection) start(regs *unix.PtraceRegs) error {
	if err := setRegs(in.pid, regs); err != nil {
		return in.explain("set registers", err)
	}
	in.reach(stageSet)
	// Signals wait until rt_sigreturn has restored the thread and its mask. A
	// handler run before that would do no harm, its frame lies below ours, but the
	// interrupted ppoll or sigsuspend could then not return EINTR for it. This
	// must come after SETREGS: only from there on is the mask restored without us.
	if err := setSigmask(in.pid, in.sigmask|^synchronousSignals()); err != nil {
		return in.explain("block signals", err)
	}
	in.reach(stageMasked)
	// Not PTRACE_SINGLESTEP: its trap flag outlives a tracer that dies, and the
	// SIGTRAP that follows kills the target.
	if err := ptrace(unix.PTRACE_SYSCALL, in.pid, 0, 0); err != nil {
		return in.explain("continue", err)
	}
	in.reach(stageResumed)
	return nil
}

// result waits for the exit of our call, in the chain whose stack is at sp.
func (in *injection) result(g gadgets, sp uint64) (int64, error) {
	const syscallTrap = unix.SIGTRAP | 0x80
	const callBytes = 2
	for {
		w, err := waitStop(in.pid)
		if err != nil {
			return 0, in.explain("wait for the system call", err)
		}
		if w.ended() {
			return 0, in.ended(fmt.Sprintf("remote system call %d", in.call.Nr), w)
		}
		deliver := uintptr(0)
		switch {
		case w.event() == ptraceEventStop: // group stop or SIGCONT: take no notice, detaching restores it
		case w.signal() == syscallTrap:
			s, err := getSyscallStop(in.pid)
			if err != nil {
				return 0, in.explain("read the result", err)
			}
			in.reach(stageSyscall)
			ours := s.Op == syscallStopExit && s.IP == g.call+callBytes && s.SP == sp
			if ours && !isRestart(s.Rval) && !pendingSeccompTrap(in.pid) {
				in.reach(stageResult)
				return s.Rval, nil
			}
		case w.signal() == unix.SIGSYS && stoppedAt(in.pid, g.call+callBytes):
			// A seccomp filter trapped our call. Detaching with no signal drops the
			// SIGSYS, which would have killed the target, and the chain goes on.
			return 0, in.fail(fmt.Sprintf("remote system call %d", in.call.Nr), ErrSeccomp, seccompRemedy)
		default:
			deliver = uintptr(w.signal())
		}
		if err := ptrace(unix.PTRACE_SYSCALL, in.pid, 0, deliver); err != nil {
			return 0, in.explain("continue", err)
		}
	}
}

const seccompRemedy = "allow the system call in its sandbox (for QEMU: seccomp_sandbox in libvirt's qemu.conf)"

// stoppedAt tells whether the stopped thread's next instruction is at rip.
func stoppedAt(pid int, rip uint64) bool {
	var regs unix.PtraceRegs
	return getRegs(pid, &regs) == nil && regs.Rip == rip
}

// ended is the error for a target that ended while we were attached.
func (in *injection) ended(op string, w waitStatus) error {
	if w.code != cldExited && w.signal() == unix.SIGSYS {
		return in.fail(op, ErrSeccomp, "the filter killed it; "+seccompRemedy)
	}
	return in.fail(op, ErrGone, fmt.Sprintf("it ended during the call (wait code %d, status %d)", w.code, w.status))
}

// lockedRegs returns registers in a page that is resident and stays so.
//
// PTRACE_SETREGS copies register by register from our memory. A page fault in
// the middle, while a SIGKILL for us is pending, would end it half done.
func lockedRegs() (*unix.PtraceRegs, error) {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	_ = unix.Mlock(page) // refused without CAP_IPC_LOCK and limit: populated is nearly as good
	return (*unix.PtraceRegs)(unsafe.Pointer(&page[0])), nil
}

func unlockRegs(regs *unix.PtraceRegs) {
	_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(regs)), os.Getpagesize()))
}

// synchronousSignals are those an instruction or system call of the thread
// itself can cause; blocked, they would kill instead of reaching their handler.
func synchronousSignals() (mask uint64) {
	for _, s := range []unix.Signal{unix.SIGSYS, unix.SIGSEGV, unix.SIGBUS, unix.SIGILL, unix.SIGFPE, unix.SIGTRAP} {
		mask |= 1 << (s - 1)
	}
	return mask
}
