package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ImagePath returns the path, outside, of a path inside the host. What lies in
// the host's own directories can be opened while the host is off too, but for
// storage that LimitDisk made.
func (h *Host) ImagePath(path string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.init != nil {
		for dir := range h.limited {
			if within(path, dir) {
				return fmt.Sprintf("/proc/%d/root%s", h.init.Pid(), path)
			}
		}
	}
	for _, dir := range diskDirs() {
		if within(path, dir) {
			return filepath.Join(h.Dir, "disk", path)
		}
	}
	if h.init != nil {
		return fmt.Sprintf("/proc/%d/root%s", h.init.Pid(), path)
	}
	return filepath.Join(h.Dir, "disk", path) // which is not there: an error for who opens it
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// makeDisk makes the images of a disk that do not exist. Half-made ones are
// removed.
func (h *Host) makeDisk(ctx context.Context, d GuestDisk) error {
	path := h.ImagePath(d.Path)
	if _, err := os.Stat(path); err == nil {
		return nil // a guest that is started again finds its disk as it was
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("lab: disk %s: %w", d.Target, err)
	}
	if err := d.make(ctx, path, h.ImagePath(d.backingPath())); err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("lab: disk %s on %s: %w", d.Target, h.Name, err)
	}
	return nil
}

// make fills an image at path. A disk that has data from the beginning, files
// or what lies behind a qcow2 image, starts as a raw one beside it.
func (d GuestDisk) make(ctx context.Context, path, backing string) error {
	raw := path + ".raw"
	if d.Format == "raw" {
		raw = path
	} else {
		defer os.Remove(raw)
	}
	size := int64(d.SizeMiB) << 20
	if err := sparse(raw, size); err != nil {
		return err
	}
	if d.FS == "ext4" {
		if err := makeExt4(ctx, raw); err != nil {
			return err
		}
	} else if d.Backing {
		if err := scatter(raw, size); err != nil {
			return err
		}
	}
	switch {
	case d.Backing:
		if _, err := tool(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, backing); err != nil {
			return err
		}
		// By a relative name, which is right inside the host and outside.
		_, err := tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Base(backing), path)
		return err
	case d.Format == "qcow2":
		_, err := tool(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
		return err
	}
	return nil
}

func sparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// makeExt4 makes a file system that is complete: none of it is left for the
// guest's kernel to initialise in the background, at a moment of its own choice.
func makeExt4(ctx context.Context, path string) error {
	_, err := tool(ctx, "mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", path)
	return err
}

// scatter puts data that is no record into every sixteenth MiB, and into the
// last block.
func scatter(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	rng := rand.NewChaCha8([32]byte{1}) // the same on every machine
	block := make([]byte, 64<<10)
	for at := int64(0); err == nil && at < size; at += 16 << 20 {
		_, _ = rng.Read(block) // never fails
		_, err = f.WriteAt(block, at)
	}
	if err == nil {
		_, err = f.WriteAt(block[:4096], size-4096)
	}
	return errors.Join(err, f.Close())
}

// tool runs a program of the machine on images, outside of all hosts.
func tool(ctx context.Context, name string, args ...string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &MissingError{What: name, Remedy: "run make deps"}
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), errors.Join(ctx.Err(), err), strings.TrimSpace(errOut.String()+out.String()))
	}
	return out.String(), nil
}

// LimitDisk puts a file system of so many MiB, in memory, over a directory of
// the running host, so that FillDisk can fill it. It is empty, and gone with
// the host's power.
func (h *Host) LimitDisk(dir string, sizeMiB int) error {
	err := h.Inside(func() error {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		return unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", sizeMiB))
	})
	if err != nil {
		return fmt.Errorf("lab: %s: limiting %s: %w", h.Name, dir, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.limited == nil {
		h.limited = map[string]bool{}
	}
	h.limited[dir] = true
	return nil
}

// fillName is the file that takes all room.
const fillName = ".lab-fill"

// FillDisk takes all room that a directory of LimitDisk has left.
func (h *Host) FillDisk(dir string) error {
	if !h.isLimited(dir) {
		return fmt.Errorf("lab: %s: %s is not limited: filling it would fill the machine", h.Name, dir)
	}
	f, err := os.OpenFile(h.ImagePath(filepath.Join(dir, fillName)), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("lab: %s: filling %s: %w", h.Name, dir, err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for n := len(block); n >= 512; {
		if _, err := f.Write(block[:n]); errors.Is(err, unix.ENOSPC) {
			n /= 2 // what is left may be less than a block
		} else if err != nil {
			return fmt.Errorf("lab: %s: filling %s: %w", h.Name, dir, err)
		}
	}
	return nil
}

// FreeDisk undoes FillDisk.
func (h *Host) FreeDisk(dir string) error {
	if err := os.Remove(h.ImagePath(filepath.Join(dir, fillName))); err != nil {
		return fmt.Errorf("lab: %s: freeing %s: %w", h.Name, dir, err)
	}
	return nil
}

func (h *Host) isLimited(dir string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.limited[dir]
}
