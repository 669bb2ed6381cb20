package daemon

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pidfdInfo is struct pidfd_info of linux/pidfd.h in its first version.
type pidfdInfo struct {
	mask, cgroup             uint64
	pid, tgid, ppid          uint32
	ruid, rgid, euid, egid   uint32
	suid, sgid, fsuid, fsgid uint32
	exitCode                 int32
}

const (
	pidfdGetInfo  = 0xc040ff0b // _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
	pidfdInfoExit = 1 << 3     // exitCode is valid; Linux 6.15
	// reapMax is how long we wait for a dead process to be reaped, before
	// which the kernel does not say how it ended.
	reapMax  = 200 * time.Millisecond
	reapPoll = time.Millisecond
)

// exitSignal returns the signal that ended the process of a pidfd, or 0 when
// it ended by itself or the kernel does not say.
func exitSignal(fd int) syscall.Signal {
	for end := time.Now().Add(reapMax); time.Now().Before(end); time.Sleep(reapPoll) {
		info := pidfdInfo{mask: pidfdInfoExit}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
		switch {
		case errno == 0 && info.mask&pidfdInfoExit != 0:
			if w := syscall.WaitStatus(info.exitCode); w.Signaled() {
				return w.Signal()
			}
			return 0
		case errno != 0 && errno != unix.ESRCH:
			return 0 // an older kernel
		}
	}
	return 0
}
