package kvmclock

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/ptracer"
)

func TestMain(m *testing.M) {
	ptracer.MaybeInject()
	os.Exit(m.Run())
}

// machine is a virtual machine with one processor, which never runs. It skips
// where there is no KVM.
func machine(t testing.TB) int {
	t.Helper()
	const kvmCreateVM, kvmCreateVCPU = 0xAE01, 0xAE41
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("/dev/kvm cannot be opened: %v", err)
	}
	defer unix.Close(fd)
	vm, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), kvmCreateVM, 0)
	if errno != 0 {
		t.Skipf("/dev/kvm makes no virtual machine: %v", errno)
	}
	cpu, _, errno := unix.Syscall(unix.SYS_IOCTL, vm, kvmCreateVCPU, 0)
	t.Cleanup(func() {
		if errno == 0 {
			unix.Close(int(cpu)) // or it keeps the machine
		}
		unix.Close(int(vm))
	})
	if errno != 0 {
		t.Skipf("/dev/kvm makes no processor: %v", errno)
	}
	return int(vm)
}

func clockCall(vm int, request uintptr, b []byte) error {
	var arg [DataBytes]byte
	copy(arg[:], b)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(vm), request, uintptr(unsafe.Pointer(&arg)))
	copy(b, arg[:])
	if errno != 0 {
		return errno
	}
	return nil
}

func kernelClock(t testing.TB, vm int) Data {
	t.Helper()
	b := make([]byte, DataBytes)
	if err := clockCall(vm, kvmGetClock, b); err != nil {
		t.Fatal(err)
	}
	d, err := ParseData(b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestKernel: what this package believes of KVM, asked of KVM itself.
func TestKernel(t *testing.T) {
	vm := machine(t)
	if !kernelTakesRealtime(os.Getpid()) {
		t.Skip("this kernel's KVM_SET_CLOCK knows no flags; Linux 5.16 has them")
	}
	// As of a second ago: the kernel adds what has passed since.
	const setNs, agoNs = 1 << 50, 1_000_000_000
	now := hostInstant()
	if err := clockCall(vm, kvmSetClock, setTo(setNs, uint64(now.realNs-agoNs), true)); err != nil {
		t.Fatal(err)
	}
	after := kernelClock(t, vm)
	to := hostInstant()
	if gone := int64(after.ClockNs) - setNs - agoNs; gone < 0 || gone > to.rawNs-now.rawNs+slackNs {
		t.Errorf("the clock is %d ns later, and %d passed at most", gone, to.rawNs-now.rawNs)
	}
	if err := clockCall(vm, kvmSetClock, setTo(setNs, 0, false)); err != nil {
		t.Error(err)
	}
	from := hostInstant()
	d := kernelClock(t, vm)
	to = hostInstant()
	if d.ClockNs < setNs || d.ClockNs > setNs+uint64(time.Minute) {
		t.Errorf("a clock set to %d is %d", uint64(setNs), d.ClockNs)
	}
	if err := clockCall(vm, kvmSetClock, Data{Flags: 1 << 9}.Append(nil)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an unknown flag: %v; if it is taken, kernelTakesRealtime need not ask", err)
	}
	if d.Flags&FlagRealtime == 0 {
		t.Skip("this host's TSC is not fit to be the guest's clock: KVM does not say when it read it")
	}
	s, exact, err := sampleOf(d, from, to)
	t.Logf("%+v read within %d ns: %+v", d, to.rawNs-from.rawNs, s)
	if err != nil || !exact || s.rawNs < from.rawNs-slackNs || s.rawNs > to.rawNs+slackNs {
		t.Errorf("between %+v and %+v: %+v, %v, %v", from, to, s, exact, err)
	}
}

// TestDescriptor: a process with one virtual machine, with two, and with none.
func TestDescriptor(t *testing.T) {
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { sleep.Process.Kill(); sleep.Wait() }()
	for name, open := range map[string]func() error{
		"Open":    func() error { _, err := Open(t.Context(), sleep.Process.Pid, Options{}); return err },
		"Prepare": func() error { _, err := Prepare(t.Context(), sleep.Process.Pid, Options{}); return err },
	} {
		if err := open(); !errors.Is(err, ErrNoKVM) {
			t.Errorf("%s of sleep: %v", name, err)
		}
	}
	if _, err := vmDescriptor(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a process that is not there: %v", err)
	}
	vm := machine(t)
	if fd, err := vmDescriptor(os.Getpid()); err != nil || fd != uint64(vm) {
		t.Errorf("%d, %v, want %d", fd, err, vm)
	}
	machine(t)
	if _, err := vmDescriptor(os.Getpid()); err == nil || errors.Is(err, ErrNoKVM) {
		t.Errorf("two virtual machines: %v", err)
	}
}

// TestHostInstant: both clocks go on, and neither back.
func TestHostInstant(t *testing.T) {
	was := hostInstant()
	for range 1000 {
		now := hostInstant()
		if now.rawNs < was.rawNs {
			t.Fatalf("%+v after %+v", now, was)
		}
		was = now
	}
	if d := time.Since(time.Unix(0, was.realNs)); max(d, -d) > time.Minute {
		t.Errorf("CLOCK_REALTIME is off by %v", d)
	}
}
