package virttest

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// roleEnv tells a re-executed test binary what it is: PID 1 of the private namespaces, or the test in them.
const (
	roleEnv  = "VIRTTEST_ROLE"
	roleInit = "init"
	roleTest = "test"
)

// MaybeInit is the first call in the TestMain of a package that uses Run. It returns at once, except in the
// process that Run started as PID 1 of its namespaces: that one prepares them, runs the test and exits.
func MaybeInit() {
	if os.Getenv(roleEnv) != roleInit {
		return
	}
	code, err := initMain()
	if err != nil {
		fmt.Fprintln(os.Stderr, "virttest: init:", err)
		code = 1
	}
	os.Exit(code)
}

// initMain is PID 1. It has to reap: QEMU detaches from libvirtd and becomes our child, and a killed QEMU that
// stays a zombie looks alive to libvirtd.
func initMain() (int, error) {
	if err := prepare(); err != nil {
		return 1, err
	}
	if err := os.Setenv(roleEnv, roleTest); err != nil {
		return 1, err
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM) // the kernel sends us SIGKILL when the outer test dies
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 1, err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 1, fmt.Errorf("wait: %w", err)
		case pid == p.Pid && ws.Signaled():
			return 1, fmt.Errorf("test killed by %v", ws.Signal())
		case pid == p.Pid && ws.Exited():
			return ws.ExitStatus(), nil
		}
	}
}

// privateDirs are the directories libvirtd and QEMU write to; each becomes a tmpfs.
func privateDirs() []string {
	return []string{"/run", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"}
}

// prepare makes the mounts and settings under which a libvirtd needs nothing of the machine.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range privateDirs() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("virttest", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// sysfs shows the interfaces of the namespace in which it was mounted; libvirt sets up bridges there.
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := hideKVM(); err != nil {
		return fmt.Errorf("hide /dev/kvm: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	for name, text := range map[string]string{
		"/etc/libvirt/qemu.conf": "user=\"root\"\ngroup=\"root\"\nnamespaces=[]\ncgroup_controllers=[]\n" +
			"stdio_handler=\"file\"\nsecurity_driver=\"none\"\ndynamic_ownership=0\nremember_owner=0\n" +
			"hugetlbfs_mount=[]\n",
		"/etc/libvirt/libvirtd.conf": "auth_unix_rw=\"none\"\nunix_sock_group=\"root\"\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hideKVM makes access("/dev/kvm", W_OK) fail even for root: a plain file on a read-only mount. Where KVM is
// present but does not work, libvirtd otherwise probes QEMU again before every start, for many seconds.
func hideKVM() error {
	const dev, cover = "/dev/kvm", "/run/virttest-no-kvm"
	if _, err := os.Stat(dev); os.IsNotExist(err) {
		return nil
	}
	if err := os.WriteFile(cover, nil, 0); err != nil {
		return err
	}
	if err := unix.Mount(cover, dev, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", dev, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
