package lab

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Assets is what a lab guest boots from.
type Assets struct {
	Kernel  string // bzImage, or an ELF file that can start by PVH
	Modules string // directory with the kernel's modules, at any depth
	Init    string // the static guest program, test/guest
}

// FindAssets looks below build/ of the source tree around the working
// directory for what `make kernel guest` puts there. A MissingError says what
// to run.
func FindAssets() (Assets, error) {
	root, err := sourceRoot()
	if err != nil {
		return Assets{}, err
	}
	build := filepath.Join(root, "build")
	a := Assets{
		Kernel:  filepath.Join(build, "kernel", "vmlinuz"),
		Modules: filepath.Join(build, "kernel", "modules"),
		Init:    filepath.Join(build, "guest", "init"),
	}
	// Unpacked by kernel.sh, if it could.
	if _, err := os.Stat(filepath.Join(build, "kernel", "vmlinux")); err == nil {
		a.Kernel = filepath.Join(build, "kernel", "vmlinux")
	}
	for _, need := range [...]struct{ path, remedy string }{
		{a.Kernel, "run make kernel"}, {a.Modules, "run make kernel"}, {a.Init, "run make guest"},
	} {
		if _, err := os.Stat(need.path); err != nil {
			return a, &MissingError{What: need.path, Remedy: need.remedy}
		}
	}
	return a, nil
}

// sourceRoot is the directory of go.mod, at or above the working directory.
func sourceRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", &MissingError{What: "the source tree (go.mod)", Remedy: "run inside a checkout"}
		}
	}
}

// RichInitrd is where the initramfs for rich guests lies, beside the other. Modules
// that a guest does not need cost it time at boot.
func RichInitrd(initrd string) string { return initrd + "-rich" }

// diskInitrd is the same for guests with disks of other kinds than virtio, or with
// file systems.
func diskInitrd(initrd string) string { return initrd + "-disks" }

// writeInitramfs makes an initramfs at path: the init program, the modules it
// loads and their list in loading order.
func writeInitramfs(path string, a Assets, wanted []string) error {
	tree, err := readModules(a.Modules)
	if err != nil {
		return err
	}
	modules, err := tree.closure(wanted)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("lab: initramfs: %w", err)
	}
	out := bufio.NewWriterSize(f, 1<<20)
	err = composeInitramfs(out, a.Init, modules)
	if err == nil {
		err = out.Flush()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("lab: initramfs: %w", err)
	}
	return nil
}

func composeInitramfs(w io.Writer, init string, modules []string) error {
	c := newCPIO(w)
	for _, d := range []string{"dev", "proc", "sys", "run", "modules"} {
		c.dir(d)
	}
	c.char("dev/console", 0o600, 5, 1)
	program, err := os.ReadFile(init)
	if err != nil {
		return err
	}
	c.file("init", 0o755, program)
	var list strings.Builder
	for _, m := range modules {
		data, err := os.ReadFile(m)
		if err != nil {
			return err
		}
		c.file("modules/"+filepath.Base(m), 0o644, data)
		list.WriteString(filepath.Base(m) + "\n")
	}
	c.file("modules/list", 0o644, []byte(list.String()))
	return c.close()
}
