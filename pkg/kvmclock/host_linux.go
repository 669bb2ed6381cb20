package kvmclock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of linux/kvm.h for x86.
const (
	kvmCheckExtension = 0xAE03
	kvmSetClock       = 0x4030AE7B // _IOW(KVMIO, 0x7b, struct kvm_clock_data)
	kvmGetClock       = 0x8030AE7C // _IOR(KVMIO, 0x7c, struct kvm_clock_data)
	// kvmCapAdjustClock is answered with the flags that the two know.
	kvmCapAdjustClock = 39
)

// vmDescriptor returns the number under which process pid has its virtual machine.
func vmDescriptor(pid int) (uint64, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("kvmclock: look for the virtual machine of process %d: %w%s", pid, err, hint(err))
	}
	var found []uint64
	for _, n := range names {
		target, err := os.Readlink(dir + "/" + n.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // closed since
		case err != nil:
			return 0, fmt.Errorf("kvmclock: look for the virtual machine of process %d: %w%s", pid, err, hint(err))
		case target != "anon_inode:kvm-vm":
			continue
		}
		fd, err := strconv.ParseUint(n.Name(), 10, 31)
		if err != nil {
			return 0, fmt.Errorf("kvmclock: descriptor of process %d: %w", pid, err)
		}
		found = append(found, fd)
	}
	switch len(found) {
	case 0:
		return 0, fmt.Errorf("kvmclock: process %d: %w: its guest is emulated (TCG), or it is not QEMU", pid, ErrNoKVM)
	case 1:
		return found[0], nil
	}
	return 0, fmt.Errorf("kvmclock: process %d has %d virtual machines, descriptors %v: which is meant nobody can tell", pid, len(found), found)
}

// hint says what to do about err.
func hint(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return ": needs CAP_SYS_PTRACE, or root"
	}
	return ""
}

// kernelTakesRealtime tells whether KVM_SET_CLOCK of this kernel knows
// FlagRealtime. An unknown flag would be refused, and QEMU aborts then. It asks the
// device that process pid sees: ours may be hidden from us, by a sandbox for instance.
func kernelTakesRealtime(pid int) bool {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/root/dev/kvm", pid), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	flags, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), kvmCheckExtension, kvmCapAdjustClock)
	return errno == 0 && flags&FlagRealtime != 0
}

// pairTries and pairGoodNs: an instant is read again while the thread was
// interrupted between two clocks, but not for ever.
const (
	pairTries  = 5
	pairGoodNs = 1000
)

// hostInstant reads both clocks of the host, RAW before and after, of a few tries
// the tightest.
func hostInstant() instant {
	best, bestNs := instant{}, int64(-1)
	for range pairTries {
		before := rawNow()
		real := time.Now().UnixNano()
		after := rawNow()
		if ns := after - before; bestNs < 0 || ns < bestNs {
			best, bestNs = instant{realNs: real, rawNs: before + ns/2}, ns
		}
		if bestNs <= pairGoodNs {
			break
		}
	}
	return best
}

// rawNow is CLOCK_MONOTONIC_RAW in ns. It does not fail for a clock that every
// kernel since 2.6.28 has.
func rawNow() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &t)
	return t.Nano()
}
