// Package virttest runs a test with a real libvirtd of its own, in private namespaces: nothing of the machine's
// libvirt is touched, and whatever the test leaves behind dies with the namespace.
//
//	func TestMain(m *testing.M) { virttest.MaybeInit(); os.Exit(m.Run()) }
//
//	func TestSomething(t *testing.T) {
//		virttest.Run(t, func(t *testing.T, h *virttest.Host) { ... virt.Open(ctx, h.URI(), nil) ... })
//	}
//
// Run executes the test binary again, for this one test, as PID 1 of new mount, PID, network and IPC namespaces:
//
//	go test ── test binary ──clone──► PID 1 (reaps) ──► test binary, same test ──► libvirtd
//	                                     ▲                                            │
//	                                     └───────────── QEMU (daemonized) ◄───────────┘
//
// Domains run under TCG: /dev/kvm is hidden.
package virttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// URI is that of the private libvirtd.
	URI = "qemu:///system"
	// QEMU is the emulator of domains made by IdleXML.
	QEMU = "/usr/bin/qemu-system-x86_64"

	socket        = "/run/libvirt/libvirt-sock"
	logFile       = "/var/log/libvirt/libvirtd.log"
	readyMax      = 60 * time.Second
	readyPoll     = 20 * time.Millisecond
	stopMax       = 20 * time.Second
	defaultMax    = 5 * time.Minute
	logTailBytes  = 4096
	outsideMargin = 5 * time.Second // the inner test reports its own timeout first
)

// Host is a libvirtd of the test's own. Its methods are to be called by the test's goroutine only.
type Host struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan error
}

// Run runs fn with a libvirtd of its own, and t reports what became of it. It must be called from a top-level
// test, whose code around Run runs twice: outside and inside. It skips the test when it cannot work here.
func Run(t *testing.T, fn func(t *testing.T, h *Host)) {
	t.Helper()
	if os.Getenv(roleEnv) == roleTest {
		h := &Host{t: t}
		h.Start()
		t.Cleanup(h.end)
		fn(t, h)
		return
	}
	if os.Getpid() == 1 {
		t.Fatal("virttest.MaybeInit is not called in TestMain")
	}
	Require(t)
	runInside(t)
}

// Require skips the test with the reason when this machine cannot run it.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root (for namespaces)")
	}
	for _, program := range []string{"libvirtd", QEMU} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s, which is not installed", program)
		}
	}
}

func runInside(t *testing.T) {
	t.Helper()
	deadline, ok := t.Deadline()
	if !ok {
		deadline = time.Now().Add(defaultMax)
	}
	ctx, cancel := context.WithDeadline(t.Context(), deadline.Add(-outsideMargin))
	defer cancel()
	args := []string{"-test.run=^" + regexp.QuoteMeta(t.Name()) + "$", "-test.count=1",
		fmt.Sprintf("-test.timeout=%s", max(time.Until(deadline)-2*outsideMargin, time.Second))}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+roleInit)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = outsideMargin
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is sent when the thread that forked ends
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs the right to make namespaces")
	}
	if err != nil {
		t.Fatalf("in the namespaces: %v\n%s", err, out.Bytes())
	}
	if skipped := regexp.MustCompile(`(?m)^--- SKIP: ` + regexp.QuoteMeta(t.Name()) + ` `); skipped.Match(out.Bytes()) {
		t.Skipf("in the namespaces:\n%s", out.Bytes())
	}
	t.Logf("in the namespaces:\n%s", out.Bytes())
}

// URI is what to connect to.
func (h *Host) URI() string { return URI }

// PID returns libvirtd's process id, 0 when it is stopped.
func (h *Host) PID() int {
	if h.cmd == nil {
		return 0
	}
	return h.cmd.Process.Pid
}

// Start starts libvirtd and waits until it answers.
func (h *Host) Start() {
	h.t.Helper()
	if h.cmd != nil {
		h.t.Fatal("libvirtd runs already")
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("libvirtd")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if err := cmd.Start(); err != nil {
		h.t.Fatalf("start libvirtd: %v", err)
	}
	h.cmd, h.done = cmd, make(chan error, 1)
	go func() { h.done <- cmd.Wait() }()
	if err := h.ready(); err != nil {
		h.t.Fatalf("libvirtd: %v\n%s", err, h.Log())
	}
}

// ready waits for the socket to accept; a socket file left by a killed libvirtd refuses.
func (h *Host) ready() error {
	limit := time.After(readyMax)
	retry := time.NewTicker(readyPoll)
	defer retry.Stop()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			return conn.Close()
		}
		select {
		case err := <-h.done:
			h.cmd = nil
			return fmt.Errorf("ended at once: %v", err)
		case <-limit:
			return fmt.Errorf("does not answer after %s", readyMax)
		case <-retry.C:
		}
	}
}

// Stop ends libvirtd with a signal and waits until it is gone. SIGTERM is what a service manager sends;
// domains go on running in either case.
func (h *Host) Stop(sig syscall.Signal) {
	h.t.Helper()
	if h.cmd == nil {
		return
	}
	if err := h.cmd.Process.Signal(sig); err != nil {
		h.t.Fatalf("signal libvirtd: %v", err)
	}
	select {
	case <-h.done:
	case <-time.After(stopMax):
		h.t.Fatalf("libvirtd did not end %s after %v", stopMax, sig)
	}
	h.cmd = nil
}

// Restart is Stop and Start.
func (h *Host) Restart(sig syscall.Signal) {
	h.t.Helper()
	h.Stop(sig)
	h.Start()
}

// end is for the test's end; the namespace takes the domains with it.
func (h *Host) end() {
	if h.t.Failed() {
		h.t.Logf("libvirtd's log:\n%s", h.Log())
	}
	if h.cmd != nil {
		_ = h.cmd.Process.Kill()
		<-h.done
		h.cmd = nil
	}
}

// Log returns the end of libvirtd's log.
func (h *Host) Log() string {
	b, err := os.ReadFile(logFile)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-logTailBytes):])
}

// IdleXML is a domain of 128 MiB with neither disk nor system: its firmware finds nothing to boot and idles.
func IdleXML(name, uuid string) string {
	return fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name>
  <uuid>%s</uuid>
  <title>idle test guest</title>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices><emulator>%s</emulator></devices>
</domain>
`, name, uuid, QEMU)
}
