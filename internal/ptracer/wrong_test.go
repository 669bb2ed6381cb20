package ptracer

import (
	"encoding/json"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// wrongInjector is what this package must not be. "naive" changes the registers
// and means to put them back itself; "singlestep" uses our frame, but steps over
// the call. Both die in the middle.
func wrongInjector(kind string) int {
	runtime.LockOSThread()
	pid, call, err := decodeArgs(os.Args[1:])
	if err != nil {
		return 2
	}
	g, err := findGadgets(pid)
	if err != nil {
		return 2
	}
	in := &injection{pid: pid, call: call, onStage: func(stage) {}, xstate: make([]byte, xstateBytesMax), regs: new(unix.PtraceRegs)}
	if ptrace(unix.PTRACE_SEIZE, pid, 0, unix.PTRACE_O_TRACESYSGOOD) != nil ||
		ptrace(unix.PTRACE_INTERRUPT, pid, 0, 0) != nil || in.awaitStop() != nil {
		return 2
	}
	if kind == "naive" {
		var regs unix.PtraceRegs
		if unix.PtraceGetRegs(pid, &regs) != nil {
			return 2
		}
		regs.Rip, regs.Rax, regs.Orig_rax = g.call, call.Nr, ^uint64(0)
		regs.Rdi, regs.Rsi, regs.Rdx = call.Args[0], call.Args[1], call.Args[2]
		if unix.PtraceSetRegs(pid, &regs) != nil {
			return 2
		}
		die()
	}
	regs, err := in.prepare(g)
	if err != nil || unix.PtraceSetRegs(pid, regs) != nil || ptrace(unix.PTRACE_SINGLESTEP, pid, 0, 0) != nil {
		return 2
	}
	die()
	return 2
}

// loopInjector makes the call n times from one process. Descriptors it returns
// are closed by calls as well. The report's StoppedNs is the median and its Ret
// the worst of the times.
func loopInjector(n int) int {
	runtime.LockOSThread()
	out := os.NewFile(reportFd, "report")
	pid, call, err := decodeArgs(os.Args[1:])
	if err != nil {
		return 2
	}
	var took []int64
	err = func() error {
		for range n {
			in := &injection{pid: pid, call: call, onStage: func(stage) {}}
			r, err := in.run()
			if err == nil {
				err = r.err(pid, call)
			}
			if err != nil {
				return err
			}
			took = append(took, r.StoppedNs)
			if call.Nr == unix.SYS_GETPID {
				continue
			}
			in.call = Call{Nr: unix.SYS_CLOSE, Args: [6]uint64{uint64(r.Ret)}}
			if r, err = in.run(); err != nil || r.Ret != 0 {
				return in.fail("close", ErrUnsupported, "the descriptor we made is not there")
			}
		}
		return nil
	}()
	r := report{}
	if err != nil {
		r = reportOf(err)
	} else {
		slices.Sort(took)
		r.StoppedNs, r.Ret = took[n/2], time.Duration(took[n-1]).Nanoseconds()
	}
	_ = json.NewEncoder(out).Encode(r)
	return 0
}
