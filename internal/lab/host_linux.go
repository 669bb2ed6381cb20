package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one of the lab's two hosts. Its methods may be called concurrently,
// but for PowerOn and PowerOff, which the lab's user does in turn.
type Host struct {
	Name string // "host-a"
	Dir  string // its disk and logs, seen from outside
	Repl string // its address on the replication network
	// Libvirtd is the host's libvirtd.
	Libvirtd *Service
	// Daemon is what SetDaemon declared; nil before.
	Daemon *Service

	lab  *Lab
	side side
	ctl  string // the virt-ft program, as InstallDaemons put it

	mu    sync.Mutex
	init  *Process
	pidfd *os.File // of init; nil while the power is off
	conn  *os.File // our end of init's socket; closing it ends the host
	// limited are the directories that LimitDisk covered since PowerOn.
	limited map[string]bool
	// cover is what lies over the shared directory, see CutArbiter.
	cover *cover
}

// hostSetupMax bounds the namespaces' setup, libvirtdStartMax libvirtd's start,
// which includes its probing of QEMU on a slow machine.
const (
	hostSetupMax     = 20 * time.Second
	libvirtdStartMax = 60 * time.Second
)

// PowerOn boots the host: namespaces, network, libvirtd. The daemon is not
// started.
func (h *Host) PowerOn(ctx context.Context) error {
	if err := h.boot(); err != nil {
		h.PowerOff()
		return err
	}
	if err := h.lab.net.attach(h); err != nil {
		h.PowerOff()
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, libvirtdStartMax)
	defer cancel()
	if err := h.Libvirtd.Start(ctx); err != nil {
		h.PowerOff()
		return err
	}
	return nil
}

// boot starts the host's first process and waits until it has set itself up.
func (h *Host) boot() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil { // for deadlines
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "host"), os.NewFile(uintptr(pair[1]), "lab")
	defer theirs.Close()
	var pidfd int
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{hostArg0}, Dir: "/", Env: os.Environ(),
		ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: hostNamespaces, Setsid: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd,
		},
	}
	if err := h.lab.spawn.do(cmd.Start); err != nil {
		ours.Close()
		return fmt.Errorf("lab: starting %s: %w", h.Name, err)
	}
	h.mu.Lock()
	h.init, h.conn, h.pidfd = watch(cmd), ours, os.NewFile(uintptr(pidfd), "pidfd")
	h.mu.Unlock()
	if err := ours.SetDeadline(time.Now().Add(hostSetupMax)); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	spec := hostSpec{Name: h.Name, Dir: filepath.Join(h.Dir, "disk"), Shared: h.lab.sharedDir(), Root: h.side.root,
		Files: h.files()}
	if err := json.NewEncoder(ours).Encode(spec); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	answer, err := bufio.NewReader(ours).ReadString('\n')
	if answer = strings.TrimSpace(answer); answer != "ok" {
		return errors.Join(fmt.Errorf("lab: %s did not come up: %s", h.Name, answer), err)
	}
	return nil
}

// watch makes a Process of a started command and reaps it when it ends.
func watch(cmd *exec.Cmd) *Process {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p
}

// PowerOff is a power loss: the cables fall silent, so that no kernel says
// goodbye for a dead process, and everything in the host ends at once. It
// returns when nothing of it is left. The host's disk stays.
func (h *Host) PowerOff() {
	h.mu.Lock()
	init, pidfd, conn := h.init, h.pidfd, h.conn
	h.init, h.pidfd, h.conn, h.limited = nil, nil, nil, nil
	covered := h.cover
	h.cover = nil // it went with the host's mounts
	h.mu.Unlock()
	defer covered.close()
	if init == nil {
		return
	}
	h.lab.net.silence(h)
	_ = init.Kill()
	pidfd.Close()
	conn.Close()
	for _, s := range []*Service{h.Libvirtd, h.Daemon} {
		if s == nil {
			continue
		}
		if p := s.Process(); p != nil {
			<-p.Done()
		}
	}
	h.lab.net.detach(h)
}

// enter returns what moves a thread into the host, and a function that ends
// the use of it.
func (h *Host) enter() (func() error, func(), error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pidfd == nil {
		return nil, nil, fmt.Errorf("lab: %s is off: %w", h.Name, ErrClosed)
	}
	fd, err := unix.FcntlInt(h.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	return enterHost(fd), func() { unix.Close(fd) }, nil
}

// Start starts a command inside the host, in a session of its own, and reaps
// it when it ends. The command's Dir defaults to /. Everything in the host dies
// with the host; with the lab too, if that is killed.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	enter, leave, err := h.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 5 * time.Second // for output held open by grandchildren
	}
	if err := onThread(enter, cmd.Start); err != nil {
		return nil, fmt.Errorf("lab: %s: starting %s: %w", h.Name, cmd.Path, err)
	}
	return watch(cmd), nil
}

// Run runs a program inside the host and returns its standard output. An error
// carries what it printed on standard error. When ctx ends it is killed.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	p, err := h.Start(cmd)
	if err != nil {
		return "", err
	}
	<-p.Done()
	if p.err != nil {
		if ctx.Err() != nil {
			p.err = errors.Join(ctx.Err(), p.err)
		}
		return out.String(), fmt.Errorf("lab: %s: %s %s: %w: %s", h.Name, name, strings.Join(args, " "),
			p.err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// Virsh runs virsh in the host against its own libvirtd.
func (h *Host) Virsh(ctx context.Context, args ...string) (string, error) {
	return h.Run(ctx, "virsh", append([]string{"-q", "-c", "qemu:///system"}, args...)...)
}

// Inside runs f on a thread that is in the host's network and mount
// namespaces. Sockets that f opens stay in the host; goroutines that it starts
// do not run there.
func (h *Host) Inside(f func() error) error {
	enter, leave, err := h.enter()
	if err != nil {
		return err
	}
	defer leave()
	return onThread(enter, f)
}

// Root returns the path, outside, of a path inside the host, while it is on.
func (h *Host) Root(path string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.init == nil {
		return "", fmt.Errorf("lab: %s is off: %w", h.Name, ErrClosed)
	}
	return fmt.Sprintf("/proc/%d/root%s", h.init.Pid(), path), nil
}

// Pid is the process id, outside, of the host's first process; 0 when it is off.
func (h *Host) Pid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.init == nil {
		return 0
	}
	return h.init.Pid()
}

// SetDaemon declares the virt-ft daemon of the host; h.Daemon.Start starts it.
// The path in argv[0] must be absolute. ready is asked until it returns nil.
func (h *Host) SetDaemon(argv, env []string, ready func(context.Context) error) {
	h.Daemon = &Service{host: h, name: "virt-ft", argv: argv, env: env, ready: ready}
}
