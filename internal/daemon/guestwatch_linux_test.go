package daemon

import (
	"context"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWaitExit: how a process ended is told as soon as it is reaped, and
// waiting ends with its context.
func TestWaitExit(t *testing.T) {
	for _, c := range []struct {
		name string
		argv []string
		kill syscall.Signal
		want syscall.Signal
	}{
		{"by itself", []string{"true"}, 0, 0},
		{"with an error", []string{"false"}, 0, 0},
		{"killed", []string{"sleep", "60"}, syscall.SIGKILL, syscall.SIGKILL},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(c.argv[0], c.argv[1:]...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if c.kill != 0 {
				if err := cmd.Process.Signal(c.kill); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait()
			if err := pollExit(context.Background(), fd); err != nil {
				t.Fatal(err)
			}
			info := exitSignal(fd)
			if info == 0 && c.want != 0 && !kernelTellsExits(t) {
				t.Skip("this kernel does not tell how a process ended (Linux 6.15 does)")
			}
			if info != c.want {
				t.Errorf("ended by %v, want %v", info, c.want)
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := waitExit(ctx, 1); err == nil {
		t.Error("process 1 has ended?")
	}
}

// kernelTellsExits asks by use: a child that was reaped.
func kernelTellsExits(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	for i, b := 0, 0; i < len(u.Release) && b < 2; i++ {
		switch c := u.Release[i]; {
		case c == '.':
			b++
		case c < '0' || c > '9':
			b = 2
		case b == 0:
			major = major*10 + int(c-'0')
		default:
			minor = minor*10 + int(c-'0')
		}
	}
	return major > 6 || major == 6 && minor >= 15
}

// TestDying: a QEMU that lives is dying once libvirt has announced that its guest
// is shut down, and one that was killed is in any case.
func TestDying(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p := &primary{pid: cmd.Process.Pid}
	if p.dying(t.Context()) {
		t.Error("it lives, and nobody said that it ends")
	}
	p.announced.Store(true)
	if !p.dying(t.Context()) {
		t.Error("it was announced that it ends")
	}
	p.announced.Store(false)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !p.dying(t.Context()) {
		t.Error("it was killed")
	}
}
