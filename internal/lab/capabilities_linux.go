package lab

import (
	"bytes"
	"os"
	"path/filepath"
)

// A host's libvirtd asks each QEMU program what it can do before it starts the
// first domain, by running it several times, and keeps the answers in a cache
// of its own. A host that has run before has that cache; the lab's hosts, which
// are made anew each time, get a copy of what earlier ones found out, from the
// user's cache directory. libvirtd itself decides whether it is still true: it
// compares the programs' times, its own version, the kernel's and the CPU's, and
// asks again otherwise. Nothing here is an error: without the cache, libvirtd
// asks.

// capabilitiesDir is where libvirtd keeps the answers, on the host.
const capabilitiesDir = "/var/cache/libvirt/qemu/capabilities"

// capabilitiesEnd ends a file that was written to its end.
const capabilitiesEnd = "</qemuCaps>\n"

// Bounds of what is kept: a file takes some 150 KiB, and there is one for each
// program that a host's libvirtd finds, for each time that one was replaced.
const (
	capabilitiesFilesMax = 64
	capabilitiesBytesMax = 4 << 20
)

// keptCapabilities is the directory with what earlier hosts found out; empty if
// there is no place for it.
func keptCapabilities() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "virt-ft-lab", "capabilities")
}

// keptHere is keptCapabilities of the host's programs: a QEMU has a file by its
// path, which is the same in every root.
func (h *Host) keptHere() string {
	if h.side.root != "" {
		return filepath.Join(h.side.root, "var/cache/virt-ft-lab")
	}
	return keptCapabilities()
}

// lendCapabilities gives a new host's disk what earlier hosts found out.
func (h *Host) lendCapabilities() {
	copyCapabilities(h.keptHere(), h.ownCapabilities())
}

// keepCapabilities keeps what the host found out for those that come.
func (h *Host) keepCapabilities() {
	copyCapabilities(h.ownCapabilities(), h.keptHere())
}

func (h *Host) ownCapabilities() string { return filepath.Join(h.Dir, "disk", capabilitiesDir) }

// copyCapabilities copies the files of a directory that the other one has
// not, or has with other content. Another lab may do the same at the same time:
// a file has all of its content before it has its name.
func copyCapabilities(from, to string) {
	files, err := filepath.Glob(filepath.Join(from, "*.xml"))
	if from == "" || to == "" || err != nil || len(files) == 0 || len(files) > capabilitiesFilesMax {
		return
	}
	if os.MkdirAll(to, 0o755) != nil {
		return
	}
	for _, path := range files {
		if info, err := os.Stat(path); err != nil || info.Size() > capabilitiesBytesMax {
			continue
		}
		content, err := os.ReadFile(path)
		if err != nil || !bytes.HasSuffix(content, []byte(capabilitiesEnd)) {
			continue // its libvirtd was killed while it wrote
		}
		named := filepath.Join(to, filepath.Base(path))
		if has, err := os.ReadFile(named); err == nil && bytes.Equal(has, content) {
			continue
		}
		f, err := os.CreateTemp(to, ".new-")
		if err != nil {
			return
		}
		_, err = f.Write(content)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil || os.Rename(f.Name(), named) != nil {
			os.Remove(f.Name())
		}
	}
}
