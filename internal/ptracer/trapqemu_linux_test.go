package ptracer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	kvmSetClock      = 0x4030ae7b
	kvmGetClock      = 0x8030ae7c
	kvmClockBytes    = 48
	kvmClockRealtime = 4
)

// startQEMU starts a QEMU without a guest's image and waits for its monitor.
func startQEMU(t *testing.T, args ...string) (*exec.Cmd, *qmp) {
	t.Helper()
	bin, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no qemu-system-x86_64")
	}
	cmd := exec.Command(bin, append(args, "-display", "none", "-nodefaults", "-m", "64", "-qmp", "stdio")...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	mon := &qmp{t: t, w: stdin, r: bufio.NewReader(stdout)}
	mon.reply("QMP")
	mon.execute("qmp_capabilities")
	return cmd, mon
}

// A call that a QEMU never makes: it is let go each time, and is as before.
func TestTrapQEMUNotCaught(t *testing.T) {
	t.Parallel()
	cmd, mon := startQEMU(t, "-accel", "tcg")
	pid := cmd.Process.Pid
	tp, err := OpenTrap(context.Background(), pid, Catch{Nr: unix.SYS_IOCTL, Arg0: 9999, Arg1: kvmSetClock, DataBytes: kvmClockBytes}, TrapOptions{Bound: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer tp.Close()
	for range 10 {
		mon.execute("stop")
		armSoon(t, tp, Change{Arg1: kvmGetClock})
		if !tp.Armed(trapWait) {
			t.Fatal("not armed")
		}
		mon.execute("cont")
		_, err := tp.Collect(0)
		if errors.Is(err, ErrOutcomeUnknown) {
			continue // a busy host: it is let go a moment later
		}
		wantErr(t, err, ErrNotCaught)
		mustBeFree(t, pid)
	}
	if got := mon.execute("query-status"); !strings.Contains(got, "running") {
		t.Errorf("query-status: %s", got)
	}
	tp.Close()
	mon.execute("quit")
	if err := cmd.Wait(); err != nil {
		t.Errorf("quit: %v", err)
	}
}

// vmDescriptor is the number of a QEMU's KVM virtual machine.
func vmDescriptor(t *testing.T, pid int) uint64 {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, _ := os.Readlink(link); to == "anon_inode:kvm-vm" {
			fd, err := strconv.ParseUint(filepath.Base(link), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}
	}
	t.Fatal("no KVM virtual machine among its descriptors")
	return 0
}

// What this is for: QEMU sets the clock of its guest back by the pause, unless
// its call is turned into one that reads the clock; or is given another clock.
func TestTrapQEMUClock(t *testing.T) {
	t.Parallel()
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no KVM: %v", err)
	}
	kvm.Close()
	cmd, mon := startQEMU(t, "-accel", "kvm", "-cpu", "host,-arch-capabilities")
	pid := cmd.Process.Pid
	tp, err := OpenTrap(context.Background(), pid, Catch{Nr: unix.SYS_IOCTL, Arg0: vmDescriptor(t, pid), Arg1: kvmSetClock, DataBytes: kvmClockBytes}, TrapOptions{Bound: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer tp.Close()
	clock := func(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
	resume := func(ch Change) Caught {
		t.Helper()
		mon.execute("stop")
		if err := tp.Arm(ch); err != nil {
			t.Fatal(err)
		}
		if !tp.Armed(trapWait) {
			t.Fatal("not armed")
		}
		mon.execute("cont")
		c, err := tp.Collect(trapWait)
		if err != nil || c.Ret != 0 {
			t.Fatalf("caught %+v, %v", c, err)
		}
		mustBeFree(t, pid)
		return c
	}
	last := resume(Change{WantResult: true})
	if clock(last.Before) != clock(last.After) || last.Changed {
		t.Errorf("only looked at, and is %x after %x", last.After, last.Before)
	}
	for range 5 {
		c := resume(Change{Arg1: kvmGetClock, WantResult: true})
		if clock(c.After) <= clock(c.Before) || clock(c.Before) < clock(last.After) {
			t.Errorf("the clock went on from %d; QEMU set it to %d; it is %d", clock(last.After), clock(c.Before), clock(c.After))
		}
		if c.After[8]&kvmClockRealtime == 0 {
			t.Logf("the kernel gives no realtime: flags %#x", c.After[8])
		}
		last = c
	}
	// Two seconds later than it would be.
	data := binary.LittleEndian.AppendUint64(nil, clock(last.After)+uint64(2*time.Second))
	set := resume(Change{Data: data, NotBelow: true, WantResult: true})
	c := resume(Change{Arg1: kvmGetClock, WantResult: true})
	if !set.Changed || clock(c.Before) < clock(data) {
		t.Errorf("set to %d, it is %d", clock(data), clock(c.Before))
	}
	t.Logf("attached %v in %d stops", c.Attached, c.Stops)
	tp.Close()
	mon.execute("quit")
	if err := cmd.Wait(); err != nil {
		t.Errorf("quit: %v", err)
	}
}
