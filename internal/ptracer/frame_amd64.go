package ptracer

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Layout of struct rt_sigframe and what follows it, as rt_sigreturn reads it
// (arch/x86/include/uapi/asm/sigcontext.h, ucontext.h, arch/x86/kernel/signal_64.c).
const (
	redZoneBytes = 128

	frameRestorer = 0
	frameUcontext = 8
	frameBytes    = 8 + ucontextBytes + 128 // restorer, ucontext, siginfo

	ucFlags       = 0
	ucStack       = 16 // stack_t: pointer, flags, size
	ucStackFlags  = ucStack + 8
	ucSigcontext  = 40
	ucSigmask     = ucSigcontext + 256
	ucontextBytes = ucSigmask + 8

	scSegments = 144 // cs, gs, fs, ss: 16 bits each
	scFpstate  = 184

	// UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
	ucFlagsFull = 7

	// An invalid mode for sigaltstack(2). rt_sigreturn also sets the alternate
	// signal stack, which ptrace cannot read; but it ignores every error of doing
	// so except EFAULT, so a request that is refused leaves the stack as it is.
	ucStackFlagsRefused = 0x7fffffff

	// XSAVE image in a signal frame: legacy area, header, components, and the
	// software bytes that tell the kernel how much of it to believe.
	xsaveSwReserved = 464
	xsaveHeader     = 512
	xsaveBytesMin   = 576
	fpXstateMagic1  = 0x46505853
	fpXstateMagic2  = 0x46505845
	magic2Bytes     = 4

	xfeatureTileData = 1 << 18
)

// What the kernel leaves in rax of a system call it interrupted
// (include/linux/errno.h).
const (
	erestartSys          = 512
	erestartNoIntr       = 513
	erestartNoHand       = 514
	erestartRestartBlock = 516
)

// sigframe is a signal frame ready to be written to the target's stack.
type sigframe struct {
	addr uint64 // of the first byte, which is also rsp of the chain
	data []byte
}

// buildFrame makes the frame from which rt_sigreturn restores a thread that was
// stopped with these registers, XSAVE image and signal mask.
func buildFrame(regs *unix.PtraceRegs, xstate []byte, sigmask, restorer uint64) (sigframe, error) {
	features, size, err := xstateExtent(xstate)
	if err != nil {
		return sigframe{}, err
	}
	// Room for the whole image even when less of it is used: the kernel may
	// fault in as much as the thread's state can take.
	room := uint64(len(xstate) + magic2Bytes)
	if regs.Rsp < redZoneBytes+room+frameBytes+128 {
		return sigframe{}, fmt.Errorf("no stack at rsp %#x", regs.Rsp)
	}
	end := regs.Rsp - redZoneBytes
	fpstate := (end - room) &^ 63
	addr := (fpstate-frameBytes)&^15 - 8 // as the kernel aligns it: like after a call
	f := sigframe{addr: addr, data: make([]byte, fpstate-addr+room)}

	le := binary.LittleEndian
	le.PutUint64(f.data[frameRestorer:], restorer)
	uc := f.data[frameUcontext:]
	le.PutUint64(uc[ucFlags:], ucFlagsFull)
	le.PutUint32(uc[ucStackFlags:], ucStackFlagsRefused)
	le.PutUint64(uc[ucSigmask:], sigmask)
	putSigcontext(uc[ucSigcontext:], regs, fpstate)

	image := f.data[fpstate-addr:]
	copy(image, xstate)
	sw := image[xsaveSwReserved:xsaveHeader]
	clear(sw)
	le.PutUint32(sw[0:], fpXstateMagic1)
	le.PutUint32(sw[4:], uint32(size+magic2Bytes))
	le.PutUint64(sw[8:], features)
	le.PutUint32(sw[16:], uint32(size))
	le.PutUint32(image[size:], fpXstateMagic2)
	return f, nil
}

// putSigcontext writes the general registers.
func putSigcontext(sc []byte, regs *unix.PtraceRegs, fpstate uint64) {
	rip, rax := resumePoint(regs)
	for i, v := range []uint64{
		regs.R8, regs.R9, regs.R10, regs.R11, regs.R12, regs.R13, regs.R14, regs.R15,
		regs.Rdi, regs.Rsi, regs.Rbp, regs.Rbx, regs.Rdx, rax, regs.Rcx, regs.Rsp,
		rip, regs.Eflags,
	} {
		binary.LittleEndian.PutUint64(sc[8*i:], v)
	}
	binary.LittleEndian.PutUint16(sc[scSegments:], uint16(regs.Cs))
	binary.LittleEndian.PutUint16(sc[scSegments+6:], uint16(regs.Ss))
	binary.LittleEndian.PutUint64(sc[scFpstate:], fpstate)
}

// resumePoint is where a thread stopped with regs has to go on, and with which
// rax.
//
// A thread stopped inside a system call (orig_rax >= 0) has one of the kernel's
// restart codes in rax, which user space must never see; before it returns to
// user space the kernel turns it into a restart: rip back by the two bytes of
// the syscall instruction, and the call's number in rax again. We do that here,
// since rt_sigreturn sets orig_rax to -1, after which the kernel does not look.
//
// ERESTART_RESTARTBLOCK cannot be had: such a call is continued from a block in
// the kernel, and rt_sigreturn clears that block. The thread sees EINTR, as it
// would after any handled signal; nanosleep has stored the time left.
func resumePoint(regs *unix.PtraceRegs) (rip, rax uint64) {
	if int64(regs.Orig_rax) >= 0 {
		switch -int64(regs.Rax) {
		case erestartSys, erestartNoIntr, erestartNoHand:
			return regs.Rip - 2, regs.Orig_rax
		case erestartRestartBlock:
			eintr := -int64(unix.EINTR)
			return regs.Rip, uint64(eintr)
		}
	}
	return regs.Rip, regs.Rax
}

// isRestart tells whether a system call's result is one of the restart codes.
func isRestart(ret int64) bool {
	switch -ret {
	case erestartSys, erestartNoIntr, erestartNoHand, erestartRestartBlock:
		return true
	}
	return false
}

// xstateExtent says which components of an XSAVE image are to be restored and
// how many bytes of it that is.
//
// The image ptrace hands out has room for every component the machine has. The
// thread's own state lacks AMX tile data until the thread first uses it, and the
// kernel falls back to restoring SSE only, losing AVX, when a frame claims to be
// larger than the thread's state. So tile data is left out unless in use.
func xstateExtent(xstate []byte) (features uint64, size int, err error) {
	if len(xstate) < xsaveBytesMin {
		return 0, 0, errors.New("no XSAVE state")
	}
	// ptrace stores the machine's feature mask in the software bytes.
	features = binary.LittleEndian.Uint64(xstate[xsaveSwReserved:])
	inUse := binary.LittleEndian.Uint64(xstate[xsaveHeader:])
	if features&3 != 3 || inUse&^features != 0 {
		return 0, 0, fmt.Errorf("XSAVE features %#x in use, of %#x", inUse, features)
	}
	if inUse&xfeatureTileData == 0 {
		features &^= xfeatureTileData
	}
	size = xsaveBytesMin
	for i := uint32(2); i < 63; i++ {
		if features&(1<<i) == 0 {
			continue
		}
		bytes, offset, _, _ := cpuid(0xd, i)
		size = max(size, int(offset)+int(bytes))
	}
	if size > len(xstate) {
		return 0, 0, fmt.Errorf("XSAVE image of %d bytes, CPU needs %d", len(xstate), size)
	}
	return features, size, nil
}

// cpuid executes CPUID; leaf 0xd, sub-leaf i gives size and offset of XSAVE component i.
func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
