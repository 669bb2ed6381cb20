package qmptest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed testdata/guest.bin
var image []byte // never written

// Payload says what the guest of testdata/guest.S does. Each of its CPUs writes
// into pages [BaseMiB, BaseMiB + Pages*4 KiB) and counts in TicksAt(cpu).
type Payload struct {
	Delay         uint32 // turns of an empty loop between writes
	BaseMiB       uint32 // at least 4
	Pages         uint32 // at least 1
	SMP, DMA, VGA bool   // all CPUs; writes by a device; writes to video RAM
}

// TicksAt is the physical address of the 32-bit counter of a CPU.
func TicksAt(cpu int) uint64 { return 0x200000 + uint64(cpu)*4096 }

func (p Payload) bytes() []byte {
	b := bytes.Clone(image)
	flags := uint32(0)
	for i, on := range []bool{p.SMP, p.DMA, p.VGA} {
		if on {
			flags |= 1 << i
		}
	}
	for i, v := range []uint32{max(p.Delay, 1), max(p.BaseMiB, 4) << 20, max(p.Pages, 1), flags} {
		binary.LittleEndian.PutUint32(b[0x20+4*i:], v)
	}
	return b
}

// Guest is a QEMU process that ends with the test.
type Guest struct {
	*Client
	PID     int
	Sockets []string // of further QMP monitors
	cmd     *exec.Cmd
}

// startMax bounds the start of QEMU.
const startMax = 20 * time.Second

// Options of Start.
type Options struct {
	Payload  Payload
	Machine  string   // for instance "q35"
	Args     []string // for instance -m, -smp, -accel
	NoTHP    bool     // no huge pages in this QEMU
	Monitors int      // further QMP monitors
}

// Start boots a guest. It skips the test when QEMU is not installed.
func Start(t testing.TB, o Options) *Guest {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	dir, err := os.MkdirTemp("", "qmp") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	kernel := filepath.Join(dir, "guest.bin")
	if err := os.WriteFile(kernel, o.Payload.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-machine", o.Machine, "-nodefaults", "-no-user-config", "-display", "none", "-vga", "std", "-kernel", kernel}
	g := &Guest{}
	for i := range o.Monitors + 1 {
		sock := filepath.Join(dir, fmt.Sprintf("qmp%d", i))
		args = append(args, "-qmp", "unix:"+sock+",server=on,wait=off")
		g.Sockets = append(g.Sockets, sock)
	}
	var stderr bytes.Buffer
	g.cmd = exec.Command(qemu, append(args, o.Args...)...)
	g.cmd.Stderr = &stderr
	// Should the test be killed, so is QEMU.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := startTHP(g.cmd, o.NoTHP); err != nil {
		t.Fatal(err)
	}
	g.PID = g.cmd.Process.Pid
	t.Cleanup(func() {
		g.Kill()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("QEMU said: %s", stderr.Bytes())
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), startMax)
	defer cancel()
	for {
		if g.Client, err = Dial(ctx, g.Sockets[0]); err == nil {
			g.Sockets = g.Sockets[1:]
			return g
		}
		var info unix.Siginfo // Signo stays 0 while QEMU lives
		_ = unix.Waitid(unix.P_PID, g.PID, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if info.Signo != 0 || ctx.Err() != nil {
			t.Fatalf("QEMU did not start: %v", err)
		}
		time.Sleep(5 * time.Millisecond) // there is no event for a socket that appears
	}
}

// startTHP starts cmd; huge pages are a property of a process that its
// children inherit.
func startTHP(cmd *exec.Cmd, off bool) error {
	if off {
		if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
			return err
		}
		defer unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0)
	}
	return cmd.Start()
}

// Kill ends QEMU at once. It is idempotent.
func (g *Guest) Kill() {
	if g.cmd.ProcessState != nil {
		return
	}
	g.cmd.Process.Kill()
	g.cmd.Wait()
	if g.Client != nil {
		g.Client.Close()
	}
}

// Process is QEMU's process, for tests that end it themselves.
func (g *Guest) Process() *os.Process { return g.cmd.Process }
