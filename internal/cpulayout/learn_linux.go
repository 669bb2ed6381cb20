package cpulayout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/vmstate"
)

const (
	// learnMax bounds a run of QEMU; a busy host needs a second or two.
	learnMax = 30 * time.Second
	// maxStreamBytes bounds what we read of its migration stream: 0.3 MB under QEMU
	// 7.2, of which most is firmware.
	maxStreamBytes = 64 << 20
	// maxStderrBytes bounds what is kept of QEMU's complaints.
	maxStderrBytes = 4 << 10
	// maxNameBytes bounds a machine type's name.
	maxNameBytes = 128
)

// anyCPU is a CPU model that every QEMU for x86-64 has. With the TSC's rate given, its
// section says where the rate lies also without KVM.
const anyCPU = "qemu64,tsc-frequency=1000000000"

// tcg needs nothing of the host.
const tcg = "tcg"

// Learn runs the QEMU binary emulator as a machine of that type ("pc-q35-7.2", "pc"),
// and returns the layout of its sections "cpu". It takes about 0.1 s, at
// most 30 s. emulator may be /proc/PID/exe: the binary that a QEMU runs, even if
// the file has been replaced since. Errors say what QEMU said. May be called concurrently.
func Learn(ctx context.Context, emulator, machine string) (vmstate.CPULayout, error) {
	return learn(ctx, emulator, machine, tcg, anyCPU)
}

func learn(ctx context.Context, emulator, machine, accel, cpu string) (vmstate.CPULayout, error) {
	l, err := run(ctx, emulator, machine, accel, cpu)
	if err != nil {
		return l, fmt.Errorf("learn the layout of a virtual CPU's state from %s, machine %q: %w", emulator, machine, err)
	}
	return l, nil
}

// run is one life of that QEMU.
func run(ctx context.Context, emulator, machine, accel, cpu string) (l vmstate.CPULayout, err error) {
	if !isMachine(machine) {
		return l, errors.New("this is no name of a machine type")
	}
	ctx, cancel := context.WithTimeout(ctx, learnMax)
	defer cancel()
	monitor, theirs, err := socketPair()
	if err != nil {
		return l, err
	}
	defer monitor.Close()
	stream, into, err := socketPair()
	if err != nil {
		theirs.Close()
		return l, err
	}
	defer stream.Close()
	defer into.Close()

	// Pdeathsig is sent when the thread that forked ends; it must not, while we wait.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	said := &complaints{}
	cmd := exec.Command(emulator, "-machine", machine, "-accel", accel, "-cpu", cpu, "-m", "4", "-S",
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
		"-chardev", "socket,id=m,fd=3", "-mon", "chardev=m,mode=control")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stderr = said
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	cmd.WaitDelay = time.Second // a child of a wrapper may keep stderr open
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return l, err
	}
	stop := context.AfterFunc(ctx, func() { // ends what waits for QEMU
		monitor.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // a closed one waits for nothing
		stream.SetDeadline(time.Unix(1, 0))  //nolint:errcheck // the same
	})
	defer stop()
	l, err = ask(monitor, stream, into)
	unix.Kill(-cmd.Process.Pid, unix.SIGKILL) //nolint:errcheck // its group, should emulator be a wrapper; ours until it is waited for
	cmd.Wait()                                //nolint:errcheck // killed
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	if text := said.text(); err != nil && text != "" {
		err = fmt.Errorf("%w; QEMU says %q", err, text)
	}
	return l, err
}

// ask lets QEMU migrate into a socket, of which into is its end, and reads the stream's description.
func ask(monitor, stream *net.UnixConn, into *os.File) (vmstate.CPULayout, error) {
	q := &qmp{conn: monitor}
	err := q.command(`{"execute":"qmp_capabilities"}`, nil)
	if err == nil {
		err = q.command(`{"execute":"getfd","arguments":{"fdname":"out"}}`, into)
	}
	if err == nil {
		err = q.command(`{"execute":"migrate","arguments":{"uri":"fd:out"}}`, nil)
	}
	into.Close() // the stream's end is that of QEMU's copy
	if err != nil {
		return vmstate.CPULayout{}, err
	}
	bounded := &io.LimitedReader{R: stream, N: maxStreamBytes}
	s, err := vmstate.ReadIncoming(bounded, nil)
	switch {
	case bounded.N == 0:
		return vmstate.CPULayout{}, fmt.Errorf("its migration stream is longer than %d bytes", maxStreamBytes)
	case err != nil:
		return vmstate.CPULayout{}, err
	}
	return vmstate.ParseCPULayout(s.VMDesc)
}

// isMachine says whether name can be a machine type: nothing that -machine would take for more options.
func isMachine(name string) bool {
	if name == "" || len(name) > maxNameBytes {
		return false
	}
	for _, c := range name {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// socketPair returns our end, and the one that QEMU gets. Both are bounded by
// deadlines on ours.
func socketPair() (near *net.UnixConn, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "ours")
	far = os.NewFile(uintptr(fds[1]), "QEMU's")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		far.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), far, nil
}

// complaints keeps the first of what QEMU writes to its stderr.
type complaints struct {
	mu sync.Mutex
	b  []byte
}

func (c *complaints) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.b = append(c.b, p[:min(len(p), maxStderrBytes-len(c.b))]...)
	return len(p), nil
}

func (c *complaints) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.TrimSpace(string(c.b))
}
