package packages

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is a Debian with systemd as its first process, in namespaces of its own.
type machine struct {
	t    *testing.T
	name string
	dir  string
	pid  int // of its first process, seen from here
	cmd  *exec.Cmd
}

// base returns the root that machines are made of, which is made if need be.
func base(t *testing.T) string {
	t.Helper()
	need(t, "debootstrap", "unshare", "nsenter")
	if os.Getuid() != 0 {
		t.Skip("machines are made by root only")
	}
	dir, err := filepath.Abs(filepath.Join(root, "build/packages/bookworm"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := try(t, ".", nil, "./root.sh", dir); err != nil {
		t.Skipf("no root of Debian 12 can be made here: %v\n%s", err, out)
	}
	return filepath.Join(dir, "root")
}

// boot starts a machine and waits until its systemd has started everything.
func boot(t *testing.T, from, name string) *machine {
	t.Helper()
	m := &machine{t: t, name: name, dir: t.TempDir()}
	for dir := m.dir; len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // others than root live in there
			t.Fatal(err)
		}
	}
	script, err := filepath.Abs("boot.sh")
	if err != nil {
		t.Fatal(err)
	}
	m.cmd = exec.Command("unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--fork", "--kill-child",
		"bash", script, from, m.dir, name)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	var log strings.Builder
	m.cmd.Stdout, m.cmd.Stderr = &log, &log
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.off)
	children := fmt.Sprintf("/proc/%d/task/%[1]d/children", m.cmd.Process.Pid)
	for until := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		text, _ := os.ReadFile(children)
		m.pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.pid))
		if m.pid != 0 && strings.TrimSpace(string(comm)) == "systemd" {
			break
		}
		if time.Now().After(until) {
			t.Skipf("systemd does not start in namespaces here: %s", log.String())
		}
	}
	m.await("systemd to be there", func() error {
		_, err := m.try("test", "-S", "/run/systemd/private")
		return err
	})
	if state, _ := m.try("systemctl", "is-system-running", "--wait"); strings.TrimSpace(state) != "running" {
		t.Logf("%s is %s: %s", name, state, m.run("systemctl", "--failed", "--no-legend"))
	}
	return m
}

// off is a power loss. It returns when nothing of the machine is left.
func (m *machine) off() {
	if m.pid != 0 {
		_ = syscall.Kill(m.pid, syscall.SIGKILL) // and all of its namespace with it
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.pid = 0
}

// silence takes it off both networks, as a power loss does: otherwise its kernel
// would say goodbye for each process that ends.
func (m *machine) silence() {
	m.t.Helper()
	m.run("sh", "-ec", "ip link set repl down; ip link set cable down")
}

// enter is a command line for something inside.
func (m *machine) enter(args ...string) []string {
	return append([]string{"-t", strconv.Itoa(m.pid), "-m", "-p", "-n", "-u", "-i", "-C", "--",
		"env", "-i", "-C", "/", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"}, args...)
}

func (m *machine) try(args ...string) (string, error) {
	m.t.Helper()
	return try(m.t, "/", nil, "nsenter", m.enter(args...)...)
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %s: %v\n%s", m.name, strings.Join(args, " "), err, out)
	}
	return out
}

// await asks until f has no error.
func (m *machine) await(what string, f func() error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			m.t.Fatalf("%s: waiting for %s: %v", m.name, what, err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// path is where a file of the machine is, seen from here, while it is on.
func (m *machine) path(inside string) string { return fmt.Sprintf("/proc/%d/root%s", m.pid, inside) }

func (m *machine) copyIn(from, inside string) {
	m.t.Helper()
	run(m.t, ".", nil, "install", "-D", "-m", "644", from, m.path(inside))
}

// connect puts cables between two machines: one for virt-ft, and one between
// bridges for their guests.
func connect(a, b *machine) {
	a.t.Helper()
	for _, cable := range []string{"repl", "cable"} {
		run(a.t, ".", nil, "nsenter", "-t", strconv.Itoa(a.pid), "-n", "--",
			"ip", "link", "add", cable, "type", "veth", "peer", "name", cable, "netns", strconv.Itoa(b.pid))
	}
	for i, m := range []*machine{a, b} {
		m.run("sh", "-ec", fmt.Sprintf(`ip addr add 10.77.0.%d/24 dev repl; ip link set repl up
			ip link add br0 type bridge; ip link set cable master br0; ip link set cable up; ip link set br0 up
			ip addr add 10.78.0.%d/24 dev br0`, i+1, i+201))
		put(m.t, m.path("/etc/hosts"), fmt.Sprintf("127.0.0.1 localhost\n10.77.0.1 %s\n10.77.0.2 %s\n", a.name, b.name))
	}
}
