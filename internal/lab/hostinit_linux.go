package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// hostArg0 is the name under which the lab starts this program as a host.
const hostArg0 = "virt-ft-lab-host"

// hostSpec is what the first process of a host is told over its socket.
type hostSpec struct {
	Name   string            // host name
	Dir    string            // the host's own directory, its "disk"
	Shared string            // directory mounted at SharedDir
	Root   string            // where its programs come from; empty: the machine's own
	Files  map[string]string // files to write after mounting: path -> content
}

// diskDirs are the directories whose content is the host's own and survives a
// power loss. Everything else below /etc, /var/lib, /var/log and /var/cache is
// the machine's, with changes kept in memory.
func diskDirs() []string {
	return []string{"/etc/libvirt", "/etc/pki", "/etc/virt-ft", "/var/lib/libvirt", "/var/lib/virt-ft",
		"/var/log/libvirt", "/var/cache/libvirt"}
}

// MaybeHost turns this process into the first process of a lab host if it was
// started as one, and then never returns. Call it first in main or TestMain.
func MaybeHost() {
	if os.Args[0] != hostArg0 {
		return
	}
	conn := os.NewFile(3, "lab")
	err := hostMain(conn)
	if err != nil {
		fmt.Fprintf(conn, "%v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// hostMain sets the host up, says "ok" and then reaps orphans until the lab
// goes away. Its end is the host's power loss.
func hostMain(conn *os.File) error {
	if os.Getpid() != 1 {
		return errors.New("host: not the first process of a pid namespace")
	}
	unix.CloseOnExec(int(conn.Fd()))
	var spec hostSpec
	dec := json.NewDecoder(conn)
	if err := dec.Decode(&spec); err != nil {
		return fmt.Errorf("host: reading its description: %w", err)
	}
	if err := spec.setup(); err != nil {
		return fmt.Errorf("host %s: %w", spec.Name, err)
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	gone := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		close(gone)
	}()
	if _, err := io.WriteString(conn, "ok\n"); err != nil {
		return err
	}
	for {
		select {
		case <-gone:
			return nil
		case <-children:
			for {
				if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
					break
				}
			}
		}
	}
}

func (s *hostSpec) setup() error {
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	// From here on nothing we mount is seen outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	// Opened before /run is covered, in case they lie in it.
	shared, err := os.Open(s.Shared)
	if err != nil {
		return err
	}
	defer shared.Close()
	disk, err := os.Open(s.Dir)
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := s.mountPrograms(); err != nil {
		return err
	}
	if err := mountSystem(); err != nil {
		return err
	}
	if err := bindDir(fmt.Sprintf("/proc/self/fd/%d", shared.Fd()), SharedDir); err != nil {
		return err
	}
	if err := s.mountDisk(fmt.Sprintf("/proc/self/fd/%d", disk.Fd())); err != nil {
		return err
	}
	if err := hideKVM(); err != nil {
		return err
	}
	for path, content := range s.Files {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// mountSystem gives the host its own /proc, /sys and /run.
func mountSystem() error {
	for _, m := range [...]struct{ fs, at, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"tmpfs", "/run", "mode=755"},
	} {
		if err := unix.Mount(m.fs, m.at, m.fs, unix.MS_NOSUID|unix.MS_NODEV, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", m.at, err)
		}
	}
	return os.MkdirAll("/run/virt-ft", 0o755)
}

// mountDisk puts the host's own directories in place. Those that the machine
// does not have need a mount point: an overlay lends one without touching it.
func (s *hostSpec) mountDisk(disk string) error {
	const scratch = "/run/.overlay"
	for _, base := range []string{"/etc", "/var/lib", "/var/log", "/var/cache"} {
		upper := filepath.Join(scratch, strings.ReplaceAll(base, "/", "_"))
		for _, d := range []string{upper + "/up", upper + "/work"} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s/up,workdir=%s/work", filepath.Join("/", s.Root, base), upper, upper)
		if err := unix.Mount("overlay", base, "overlay", 0, options); err != nil {
			return fmt.Errorf("overlay on %s: %w", base, err)
		}
	}
	for _, d := range diskDirs() {
		own := filepath.Join(disk, d)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		if err := bindDir(own, d); err != nil {
			return err
		}
	}
	return os.MkdirAll(imageDir, 0o711) // as libvirt's packages make it
}

func bindDir(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", to, err)
	}
	return nil
}

// hideKVM covers /dev/kvm. libvirtd probes QEMU anew before every start of a
// domain, for seconds, while it finds a /dev/kvm that looks usable but is not.
// Root may do anything to a file but write it on a read-only mount.
func hideKVM() error {
	if _, err := os.Stat("/dev/kvm"); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	const cover = "/run/.no-kvm"
	if err := os.WriteFile(cover, nil, 0); err != nil {
		return err
	}
	if err := unix.Mount(cover, "/dev/kvm", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("covering /dev/kvm: %w", err)
	}
	if err := unix.Mount("", "/dev/kvm", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("covering /dev/kvm: %w", err)
	}
	return nil
}
