package ptracer

import (
	"encoding/binary"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ptraceListen = 0x4208 // PTRACE_LISTEN

	saNoCldStop = 1
	saRestart   = 0x10000000
)

// attendBell ends the tracer when the daemon is gone, and armings that it wants
// to end.
func (tr *tracer) attendBell() {
	var b [8]byte
	for {
		n, err := unix.Read(tracerBellFd, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != len(b) {
			unix.Exit(0) // which detaches
		}
		seq := binary.LittleEndian.Uint64(b[:])
		tr.cancelled.Store(seq)
		// A signal that comes just before the wait begins is lost: another follows.
		for tr.active.Load() == seq {
			_ = unix.Tgkill(os.Getpid(), tr.tid, unix.SIGURG) // to ourselves
			time.Sleep(bellPause)
		}
	}
}

// createKillTimer makes a timer of the kernel that ends this process. It needs
// nothing of us: no thread, no handler, no processor.
func createKillTimer() (id int32, err error) {
	event := struct {
		value         uint64
		signo, notify int32
		_             [48]byte
	}{signo: int32(unix.SIGKILL)} // SIGEV_SIGNAL is 0
	_, _, errno := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id)))
	if errno != 0 {
		return 0, errno
	}
	return id, nil
}

// setKillTimer makes it fire in that time, or not at all if after is 0.
func setKillTimer(id int32, after time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(after.Nanoseconds())}
	_, _, errno := unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if errno != 0 {
		unix.Exit(1) // without a bound nothing may be attached
	}
}

// changeSigaction sets and clears flags of a signal's disposition, and leaves
// the handler of Go's runtime in place.
func changeSigaction(signal unix.Signal, set, unset uint64) error {
	var action struct{ handler, flags, restorer, mask uint64 }
	p := uintptr(unsafe.Pointer(&action))
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal), 0, p, unsafe.Sizeof(action.mask), 0, 0); errno != 0 {
		return errno
	}
	action.flags = action.flags&^unset | set
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal), p, 0, unsafe.Sizeof(action.mask), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// pidfdAlive tells whether the process of a pidfd has not been reaped.
func pidfdAlive(fd int) bool {
	_, _, errno := unix.RawSyscall6(unix.SYS_PIDFD_SEND_SIGNAL, uintptr(fd), 0, 0, 0, 0, 0)
	return errno == 0 || errno == unix.EPERM
}

// recvPacket receives one packet.
func recvPacket(fd int, b []byte, flags int) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(flags), 0, 0)
	return int(n), errno
}

// sendPacket sends one packet and does not wait: the few that there are have room.
func sendPacket(fd int, b []byte) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
