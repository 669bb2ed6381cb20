package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
)

// startMax bounds the start of QEMU, and of the guest in it.
const startMax = 30 * time.Second

// Lacks says why this machine can not run the guest under KVM; nil if it can.
func Lacks() error {
	if _, err := exec.LookPath(emulator); err != nil {
		return fmt.Errorf("%s is not installed", emulator)
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("no KVM: %w", err)
	}
	defer f.Close()
	if v, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion); err != nil || v != kvmAPIVersion {
		return fmt.Errorf("no KVM: /dev/kvm speaks version %d, not %d (%v)", v, kvmAPIVersion, err)
	}
	return nil
}

// What every KVM answers since Linux 2.6.22 (Documentation/virt/kvm/api.rst).
const (
	kvmGetAPIVersion = 0xae00
	kvmAPIVersion    = 12
)

const emulator = "qemu-system-x86_64"

// Options of Start.
type Options struct {
	CPUs    int
	Payload Payload
	TCG     bool // emulate, without a clock to look at
	// Incoming, if not nil, is where QEMU reads a migration stream from, as
	// "fd:4"; the guest is that of the stream then, and waits for "cont".
	Incoming *os.File
}

// IncomingURI is what migrate-incoming takes for Options.Incoming.
const IncomingURI = "fd:4"

// Machine is a QEMU process with the guest in it.
type Machine struct {
	*qmptest.Client // a QMP monitor
	View            // the guest's memory
	PID             int
	Socket          string // of a second QMP monitor, which takes one client at a time

	cmd    *exec.Cmd
	dir    string
	said   bytes.Buffer
	waited chan struct{} // closed when QEMU has ended
	once   sync.Once
}

// Start starts QEMU and, unless it waits for a stream, waits for the guest to be
// up. QEMU ends when the thread that calls Start does; Close ends it.
func Start(ctx context.Context, o Options) (m *Machine, err error) {
	if o.CPUs < 1 || o.CPUs > CPUsMax {
		return nil, fmt.Errorf("a guest of %d processors: it has from 1 to %d", o.CPUs, CPUsMax)
	}
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	m = &Machine{waited: make(chan struct{})}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start the guest: %w", errors.Join(err, m.Close()))
			m = nil
		}
	}()
	if m.dir, err = os.MkdirTemp("", "clock"); err != nil { // short: sockets lie in it
		return m, err
	}
	ram, err := memory()
	if err != nil {
		return m, err
	}
	defer ram.Close()
	if m.View, err = unix.Mmap(int(ram.Fd()), 0, RAMBytes, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return m, fmt.Errorf("map the guest's memory: %w", err)
	}
	if err := m.run(o, ram); err != nil {
		return m, err
	}
	if m.Client, err = m.dial(ctx); err != nil {
		return m, err
	}
	if o.Incoming == nil {
		err = m.up(ctx, o.CPUs)
	}
	return m, err
}

// memory is a file for the guest's memory.
func memory() (*os.File, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for the guest: %w", err)
	}
	f := os.NewFile(uintptr(fd), "guest's memory")
	if err := f.Truncate(RAMBytes); err != nil {
		f.Close()
		return nil, fmt.Errorf("memory for the guest: %w", err)
	}
	return f, nil
}

func (m *Machine) run(o Options, ram *os.File) error {
	firmware := filepath.Join(m.dir, "guest.bin")
	if err := os.WriteFile(firmware, o.Payload.Firmware(), 0o600); err != nil {
		return err
	}
	m.Socket = filepath.Join(m.dir, "second")
	mib := strconv.Itoa(RAMBytes >> 20)
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-bios", firmware, "-m", mib, "-smp", strconv.Itoa(o.CPUs),
		"-object", "memory-backend-file,id=ram,share=on,mem-path=/proc/self/fd/3,size=" + mib + "M",
		"-machine", "pc,memory-backend=ram",
		"-qmp", "unix:" + filepath.Join(m.dir, "first") + ",server=on,wait=off",
		"-qmp", "unix:" + m.Socket + ",server=on,wait=off"}
	files := []*os.File{ram}
	switch {
	case o.TCG:
		args = append(args, "-accel", "tcg")
	default:
		// Some hosts' KVM lacks what QEMU wants to know of the host's bugs.
		args = append(args, "-accel", "kvm", "-cpu", "host,-arch-capabilities")
	}
	if o.Incoming != nil {
		args, files = append(args, "-S", "-incoming", "defer"), append(files, o.Incoming)
	}
	m.cmd = exec.Command(emulator, args...)
	m.cmd.Stderr, m.cmd.ExtraFiles = &m.said, files
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	m.PID = m.cmd.Process.Pid
	go func() {
		_ = m.cmd.Wait() // killed by us, or Alive tells
		close(m.waited)
	}()
	return nil
}

// Alive says whether QEMU still runs, and what it said if not.
func (m *Machine) Alive() error {
	select {
	case <-m.waited:
		return fmt.Errorf("QEMU has ended (%v): %s", m.cmd.ProcessState, bytes.TrimSpace(m.said.Bytes()))
	default:
		return nil
	}
}

// nap is between two looks at what has no event.
const nap = 2 * time.Millisecond

func (m *Machine) pause(ctx context.Context) error {
	select {
	case <-m.waited:
		return m.Alive()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(nap):
		return nil
	}
}

func (m *Machine) dial(ctx context.Context) (*qmptest.Client, error) {
	for {
		c, err := qmptest.Dial(ctx, filepath.Join(m.dir, "first"))
		if err == nil {
			return c, nil
		}
		if perr := m.pause(ctx); perr != nil {
			return nil, errors.Join(perr, err)
		}
	}
}

func (m *Machine) up(ctx context.Context, cpus int) error {
	for m.CPUs() < cpus || !m.reads(cpus) {
		if err := m.pause(ctx); err != nil {
			for n := range cpus {
				fmt.Println(n, m.CPU(n))
			}
			return fmt.Errorf("%d of %d processors are up: %w", m.CPUs(), cpus, err)
		}
	}
	return nil
}

// reads says whether the processors have read their clocks, or have none.
func (m *Machine) reads(cpus int) bool {
	for n := range cpus {
		if c := m.CPU(n); c.State == Starting || c.State == Running && c.Reads == 0 {
			return false
		}
	}
	return true
}

// Kill ends QEMU at once and waits for its end. What the guest's memory holds can
// be read until Close.
func (m *Machine) Kill() {
	if m.cmd != nil && m.cmd.Process != nil {
		_ = m.cmd.Process.Kill() // an error: it has ended
		<-m.waited
	}
}

// Close ends QEMU and removes what it had. It is idempotent. The View must not be
// used any more.
func (m *Machine) Close() (err error) {
	m.once.Do(func() {
		m.Kill()
		if m.Client != nil {
			err = m.Client.Close()
		}
		if m.View != nil {
			err = errors.Join(err, unix.Munmap(m.View))
		}
		if m.dir != "" {
			err = errors.Join(err, os.RemoveAll(m.dir))
		}
	})
	return err
}
