package lab

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// plainModules is what a guest loads, when its kernel has it as a module, that has
// neither what Rich adds nor other disks than virtio's, with records. Such disks and
// network cards can be plugged into it.
func plainModules() []string { return []string{"virtio_pci", "virtio_net", "virtio_blk"} }

// guestModules is what a rich guest loads, or one with disks of every kind.
func guestModules() []string {
	return []string{
		"virtio_pci", "virtio_net", "virtio_blk", "virtio_rng", "virtio_balloon", "virtio_console",
		"e1000", "e1000e", "8139cp", "i6300esb", "pvpanic-pci", "virtio_scsi", "virtio_input", "ahci",
	}
}

// diskModules is what the latter loads besides: SCSI and SATA disks, and
// a file system. ext4 asks for its checksum by another name than the module's.
func diskModules() []string { return []string{"sd_mod", "crc32c_generic", "ext4"} }

// modulesMax bounds how many modules one list may pull in.
const modulesMax = 512

// moduleTree is a kernel's module directory, by module name.
type moduleTree struct {
	files   map[string]string // normalised name -> path of the .ko file
	builtin map[string]bool
}

// moduleName normalises: virtio-rng.ko and virtio_rng are the same module.
func moduleName(s string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(s), ".ko"), "-", "_")
}

// readModules finds the modules below dir, and the list of built-in ones that
// kernel packages carry as modules.builtin.
func readModules(dir string) (*moduleTree, error) {
	t := &moduleTree{files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case strings.HasSuffix(p, ".ko"):
			t.files[moduleName(p)] = p
		case d.Name() == "modules.builtin":
			text, err := os.ReadFile(p)
			for line := range strings.FieldsSeq(string(text)) {
				t.builtin[moduleName(line)] = true
			}
			return err
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: reading kernel modules: %w", err)
	}
	return t, nil
}

// closure returns the files of the wanted modules and of all they depend on,
// dependencies first. A wanted module that the tree does not have is left out,
// as another kernel may have it built in under another name; a dependency that
// is nowhere is an error.
func (t *moduleTree) closure(wanted []string) ([]string, error) {
	var order []string
	done := map[string]bool{}
	var visit func(name, neededBy string) error
	visit = func(name, neededBy string) error {
		name = moduleName(name)
		file, have := t.files[name]
		switch {
		case done[name] || t.builtin[name]:
			return nil
		case !have && neededBy == "":
			return nil
		case !have:
			return fmt.Errorf("lab: module %s, which %s needs, is not in the kernel tree", name, neededBy)
		case len(done) >= modulesMax:
			return fmt.Errorf("lab: more than %d modules", modulesMax)
		}
		done[name] = true // before its dependencies, so that a cycle ends
		depends, err := moduleDepends(file)
		if err != nil {
			return err
		}
		for _, d := range depends {
			if err := visit(d, name); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name, ""); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleDepends reads what a module depends on from its .modinfo
// section, which depmod would turn into modules.dep.
func moduleDepends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("lab: module %s: %w", file, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("lab: module %s has no .modinfo", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("lab: module %s: %w", file, err)
	}
	return parseModinfo(info), nil
}

// parseModinfo takes the zero-terminated key=value strings of .modinfo.
func parseModinfo(info []byte) []string {
	var depends []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		if key == "depends" && value != "" {
			depends = append(depends, strings.Split(value, ",")...)
		}
	}
	return depends
}
