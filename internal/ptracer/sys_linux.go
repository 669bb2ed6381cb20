package ptracer

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xstateBytesMax bounds the extended state of a thread; with AMX it is 11,008 bytes.
const xstateBytesMax = 32 << 10

// ptraceEventStop is PTRACE_EVENT_STOP: a stop we asked for, or a group stop.
const ptraceEventStop = unix.PTRACE_EVENT_STOP

// ntX86Xstate is NT_X86_XSTATE, the register set with all XSAVE components.
const ntX86Xstate = 0x202

// ptrace requests do not block, so the scheduler need not be told of them.
func ptrace(request, pid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ptracePtr(request, pid int, addr uintptr, data unsafe.Pointer) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, uintptr(data), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func getRegs(pid int, regs *unix.PtraceRegs) error {
	return ptracePtr(unix.PTRACE_GETREGS, pid, 0, unsafe.Pointer(regs))
}

func setRegs(pid int, regs *unix.PtraceRegs) error {
	return ptracePtr(unix.PTRACE_SETREGS, pid, 0, unsafe.Pointer(regs))
}

// getXstate returns the XSAVE image of a stopped thread, in standard format. It
// is read into buf, of xstateBytesMax bytes.
func getXstate(pid int, buf []byte) ([]byte, error) {
	iov := unix.Iovec{Base: &buf[0], Len: uint64(len(buf))}
	if err := ptracePtr(unix.PTRACE_GETREGSET, pid, ntX86Xstate, unsafe.Pointer(&iov)); err != nil {
		return nil, err
	}
	if iov.Len >= uint64(len(buf)) {
		return nil, fmt.Errorf("extended state larger than %d bytes", len(buf)-1)
	}
	return buf[:iov.Len], nil
}

func getSigmask(pid int) (mask uint64, err error) {
	err = ptracePtr(unix.PTRACE_GETSIGMASK, pid, unsafe.Sizeof(mask), unsafe.Pointer(&mask))
	return mask, err
}

func setSigmask(pid int, mask uint64) error {
	return ptracePtr(unix.PTRACE_SETSIGMASK, pid, unsafe.Sizeof(mask), unsafe.Pointer(&mask))
}

// syscallStop says where a thread in a syscall stop is (struct ptrace_syscall_info).
type syscallStop struct {
	Op   uint8 // 1 entry, 2 exit
	_    [7]byte
	IP   uint64
	SP   uint64
	Rval int64 // on exit
	_    [56]byte
}

const syscallStopExit = unix.PTRACE_SYSCALL_INFO_EXIT

func getSyscallStop(pid int) (s syscallStop, err error) {
	err = ptracePtr(unix.PTRACE_GET_SYSCALL_INFO, pid, unsafe.Sizeof(s), unsafe.Pointer(&s))
	return s, err
}

// pendingSeccompTrap tells whether a seccomp filter has sent the thread a
// SIGSYS that is not delivered yet.
func pendingSeccompTrap(pid int) bool {
	const (
		signalsMax  = 16
		siginfoSize = 128
		sysSeccomp  = 1 // si_code SYS_SECCOMP
	)
	var infos [signalsMax * siginfoSize]byte
	args := struct {
		Off   uint64
		Flags uint32
		Nr    int32
	}{Nr: signalsMax}
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_PEEKSIGINFO, uintptr(pid),
		uintptr(unsafe.Pointer(&args)), uintptr(unsafe.Pointer(&infos[0])), 0, 0)
	if errno != 0 {
		return false
	}
	for ; n > 0; n-- {
		info := infos[(n-1)*siginfoSize:]
		if binary.LittleEndian.Uint32(info) == uint32(unix.SIGSYS) && binary.LittleEndian.Uint32(info[8:]) == sysSeccomp {
			return true
		}
	}
	return false
}

// rseqConfig is where a thread registered its restartable sequences
// (struct ptrace_rseq_configuration).
type rseqConfig struct {
	Pointer   uint64
	Size      uint32
	Signature uint32
	Flags     uint32
	_         uint32
}

func getRseqConfig(pid int) (c rseqConfig, err error) {
	const ptraceGetRseqConfiguration = 0x420f
	err = ptracePtr(ptraceGetRseqConfiguration, pid, unsafe.Sizeof(c), unsafe.Pointer(&c))
	return c, err
}

// waitStatus is a state change of the target.
type waitStatus struct {
	code   int32 // CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_TRAPPED, CLD_STOPPED
	status int32 // exit code or signal; for stops signal | event<<8
}

func (w waitStatus) ended() bool {
	return w.code == cldExited || w.code == cldKilled || w.code == cldDumped
}
func (w waitStatus) signal() unix.Signal { return unix.Signal(w.status & 0xff) }
func (w waitStatus) event() int          { return int(w.status) >> 8 }

const (
	cldExited = 1
	cldKilled = 2
	cldDumped = 3
)

// waitStop blocks until pid has stopped or ended.
//
// WNOWAIT is essential. Once a wait has consumed a signal-delivery stop, the
// kernel has forgotten the signal unless the tracer hands it back on resuming;
// were we killed between the two, the target would never get it. Left
// unconsumed, the kernel delivers it when the tracer dies.
func waitStop(pid int) (waitStatus, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return waitStatus{}, err
		}
		return statusOf(&info), nil
	}
}

func statusOf(info *unix.Siginfo) waitStatus {
	raw := (*[unsafe.Sizeof(*info)]byte)(unsafe.Pointer(info))
	const statusOffset = 24 // si_status after signo, errno, code, pad, pid, uid
	return waitStatus{code: info.Code, status: int32(binary.LittleEndian.Uint32(raw[statusOffset:]))}
}

// readMemory fills buf from addr in the target; a short read is an error.
func readMemory(pid int, addr uint64, buf []byte) error {
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(buf)}}
	n, err := unix.ProcessVMReadv(pid, local, remote, 0)
	if err == nil && n != len(buf) {
		err = unix.EFAULT
	}
	return err
}

// writeMemory writes buf to addr in the target. It respects page protections,
// unlike /proc/PID/mem: a frame that would hit a guard page fails here, while
// that is harmless.
func writeMemory(pid int, addr uint64, buf []byte) error {
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(buf)}}
	n, err := unix.ProcessVMWritev(pid, local, remote, 0)
	if err == nil && n != len(buf) {
		err = unix.EFAULT
	}
	return err
}
