package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bpfMagic is what statfs(2) says of a bpffs.
const bpfMagic = 0xcafe4a11

// hookPath is where libvirt looks for our hook, below its root.
const hookPath = "etc/libvirt/hooks/qemu.d/virt-ft"

// Hook judges libvirt's hook program under root. libvirtd looks for hooks when it starts: one that was put there
// later counts from its next start, which cannot be seen from here.
func Hook(root string) Finding {
	const id, item, install = "host.hook", "libvirt's hook", "install the package, or copy virt-ft-hook to /" + hookPath + ", and restart libvirtd"
	const risk = ": nothing keeps somebody from starting a guest here that runs on the other host"
	path := filepath.Join(root, hookPath)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Finding{id, item, Warn, "/" + hookPath + " is not there" + risk, install}
	case err != nil:
		return Finding{id, item, Warn, err.Error() + risk, install}
	case !info.Mode().IsRegular() || info.Mode()&0o100 == 0:
		return Finding{id, item, Warn, "/" + hookPath + " is not an executable file" + risk, "chmod 755 /" + hookPath}
	case info.Mode()&0o022 != 0:
		return Finding{id, item, Warn, "/" + hookPath + " can be changed by others than root, and libvirt runs it as root", "chmod 755 /" + hookPath}
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
		return Finding{id, item, Warn, fmt.Sprintf("/%s belongs to user %d, and libvirt runs it as root", hookPath, st.Uid), "chown root:root /" + hookPath}
	}
	return Finding{id, item, OK, "/" + hookPath, ""}
}

// Pins judges the directory in which programs of the kernel are kept beyond a daemon's life.
func Pins(dir string) Finding {
	const id, item, remedy = "host.bpffs", "bpffs", "let the daemon mount it (CAP_SYS_ADMIN), or mount -t bpf bpf "
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Finding{id, item, Fail, dir + ": " + err.Error(), remedy + dir}
		}
		break
	}
	if uint32(st.Type) != bpfMagic {
		return Finding{id, item, Fail, dir + " is not a bpffs: what a guest sends could not be held while the daemon restarts", remedy + dir}
	}
	return Finding{id, item, OK, "mounted on " + dir, ""}
}

// Group judges the group whose members may command the daemon.
func Group(name string) Finding {
	const id, item = "host.control", "control socket"
	if name == "" {
		return Finding{id, item, OK, "for root alone", ""}
	}
	if _, err := user.LookupGroup(name); err != nil {
		return Finding{id, item, Warn, err.Error(), "groupadd --system " + name + ", or change control.group"}
	}
	return Finding{id, item, OK, "for members of group " + name, ""}
}

// Space judges the room for records and journals in dir; wantBytes is what a guest may need there.
func Space(dir string, wantBytes int64) Finding {
	const id, item = "host.space", "room for journals"
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Finding{id, item, Fail, dir + ": " + err.Error(), "make the directory of state_dir"}
	}
	free := int64(min(st.Bavail, 1<<40)) * max(st.Bsize, 1)
	f := Finding{id, item, OK, fmt.Sprintf("%d MiB are free at %s", free>>20, dir), ""}
	if free < wantBytes {
		f.Level, f.Remedy = Warn, "make room there, or lower disks.journal_bytes_max"
		f.Text += fmt.Sprintf(", and the journal of one guest's disks may take %d MiB", wantBytes>>20)
	}
	return f
}

// Confinement judges what keeps QEMU from other files under root, and whether it was told of us.
func Confinement(root string) Finding {
	const id, item = "host.confinement", "confinement of QEMU"
	if text, err := setting(root, "sys/module/apparmor/parameters/enabled"); err == nil && strings.TrimSpace(text) == "Y" {
		for _, name := range []string{"etc/apparmor.d/abstractions/libvirt-qemu.d", "etc/apparmor.d/local/abstractions/libvirt-qemu", "etc/apparmor.d/abstractions/libvirt-qemu"} {
			if mentions(filepath.Join(root, name), "virt-ft") {
				return Finding{id, item, OK, "AppArmor is on, and /" + name + " allows what virt-ft needs", ""}
			}
		}
		return Finding{id, item, Warn, "AppArmor is on, and no profile of libvirt's mentions virt-ft: a confined QEMU may be denied its copies' sockets",
			"install the package, which brings a snippet for /etc/apparmor.d/abstractions/libvirt-qemu.d, and start the guest again"}
	}
	if text, err := setting(root, "sys/fs/selinux/enforce"); err == nil && strings.TrimSpace(text) == "1" {
		return Finding{id, item, Warn, "SELinux enforces: what QEMU may do with virt-ft's pipes and sockets is not tested", "look for denials with ausearch -m AVC, and see docs/SECURITY.md"}
	}
	return Finding{id, item, OK, "neither AppArmor nor SELinux enforces", ""}
}

// mentionsFilesMax bounds how many files of a directory are looked into.
const mentionsFilesMax = 64

// mentions tells whether a file, or one in a directory, has a word in its name or text.
func mentions(path, word string) bool {
	entries, err := os.ReadDir(path)
	if err != nil {
		b, err := readBounded(path)
		return err == nil && strings.Contains(string(b), word)
	}
	for i, e := range entries {
		if i == mentionsFilesMax {
			break
		}
		if strings.Contains(e.Name(), word) {
			return true
		}
		if b, err := readBounded(filepath.Join(path, e.Name())); err == nil && strings.Contains(string(b), word) {
			return true
		}
	}
	return false
}
