package lab

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// checkRoot names the first thing that Options.RootA or RootB lacks.
func checkRoot(root string) error {
	if root == "" {
		return nil
	}
	for _, path := range []string{qemuPath, libvirtdPath, "/usr/bin/virsh"} {
		if _, err := os.Stat(filepath.Join(root, path)); err != nil {
			return &MissingError{What: filepath.Join(root, path), Remedy: "run make compat"}
		}
	}
	return nil
}

// mountPrograms puts the root's /usr in the place of the machine's, into which
// /bin, /lib and /sbin are links. What of it a host writes goes to its overlays,
// see mountDisk.
func (s *hostSpec) mountPrograms() error {
	if s.Root == "" {
		return nil
	}
	from := filepath.Join(s.Root, "usr")
	if err := bindDir(from, "/usr"); err != nil {
		return err
	}
	return os.NewSyscallError("a read-only /usr", unix.Mount("", "/usr", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}
