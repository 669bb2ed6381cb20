package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/diskrep"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/replica"
)

// placeDisk says where the copy of a disk goes. An image that is not known to be
// a copy of this disk, or its own past, is never written over.
func (d *Daemon) placeDisk(uuid, name string, rec marker.DiskRecord, disk replica.Disk) (string, error) {
	known, ours := rec.Disks[disk.Name]
	ours = ours && known.Raw && known.Kind != marker.ImageSource
	path := disk.Path
	if path == "" && ours {
		return known.Path, nil
	}
	if path == "" {
		var err error
		path, err = diskrep.Place(d.cfg.Disks.Place, diskrep.Placement{Domain: name, UUID: uuid, Disk: disk.Name, Source: disk.Source})
		if err != nil {
			return "", err
		}
	}
	if err := checkPlace(path); err != nil {
		return "", err
	}
	switch {
	case ours && path == known.Path:
		return path, nil
	case path == known.Path && known.Kind == marker.ImageSource:
		return "", fmt.Errorf("%s is what the guest ran on on %s last, and nothing says that it went on elsewhere from a copy: name another place with --disk %s=PATH",
			path, d.cfg.Host, disk.Name)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, nil
	case err != nil:
		return "", err
	case info.Mode()&os.ModeDevice != 0 && disk.Path != "":
		return path, nil // somebody named it
	}
	return "", fmt.Errorf("%s is there already on %s, and is not known to be a copy of this disk: move it away, or name another place with --disk %s=PATH",
		path, d.cfg.Host, disk.Name)
}

// roomFor tells whether copies of disks have room at paths, and of those that may
// not have it one day.
func roomFor(disks []replica.Disk, paths []string) (warnings []string, err error) {
	missing := map[uint64]int64{} // by file system: bytes that are to come
	for i, disk := range disks {
		if err := unused(paths[i]); err != nil {
			return warnings, fmt.Errorf("disk %s: %w", disk.Name, err)
		}
		if name, remote, err := diskrep.NetworkFilesystem(filepath.Dir(paths[i])); err == nil && remote {
			return warnings, fmt.Errorf("disk %s: %s is on %s: a copy on storage that both hosts share could be the image itself; set disks.place to a local file system",
				disk.Name, paths[i], name)
		}
		space, err := diskrep.CheckSpace(paths[i], int64(disk.SizeBytes), int64(disk.UsedBytes))
		if err != nil {
			return warnings, fmt.Errorf("disk %s: %w", disk.Name, err)
		}
		need := missing[space.Filesystem] + max(int64(disk.UsedBytes)-space.AllocatedBytes, 0)
		if missing[space.Filesystem] = need; space.Filesystem != 0 && need > space.FreeBytes {
			return warnings, fmt.Errorf("disk %s: the copies of this guest's disks need %d MiB on the file system of %s, which has %d MiB free: make room, or place one elsewhere with --disk",
				disk.Name, need>>20, paths[i], space.FreeBytes>>20)
		}
		if space.MayFill {
			warnings = append(warnings, fmt.Sprintf("disk %s: its copy %s is sparse, and the file system has not room for all of its %d MiB", disk.Name, paths[i], disk.SizeBytes>>20))
		}
	}
	return warnings, nil
}

// unused refuses an image that a QEMU of this host has opened for its guest: it
// locks bytes from 100 on (block/file-posix.c), which a standby that waits does
// not.
func unused(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 100, Len: 200}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return fmt.Errorf("%s: whether it is in use: %w", path, err)
	}
	if lock.Type != unix.F_UNLCK {
		return fmt.Errorf("%s is in use by a running QEMU of this host: is a copy of this guest, or another guest, running on it?", path)
	}
	return nil
}
