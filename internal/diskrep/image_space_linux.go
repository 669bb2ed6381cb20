package diskrep

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Space is what an image finds where it is to be placed.
type Space struct {
	// FreeBytes are left for us on the file system, or the size of the block
	// device.
	FreeBytes int64
	// AllocatedBytes are taken already by the image that is there.
	AllocatedBytes int64
	// MayFill tells that the guest can fill the file system: the disk's whole
	// size would not fit. It fits as it is now.
	MayFill bool
	// Filesystem is equal for images that share their free space: who places
	// several disks adds up what they need. 0 for a block device.
	Filesystem uint64
}

// CheckSpace looks, before anything is made, whether an image of sizeBytes, of
// which usedBytes hold data, has room at path. The error says how much is
// missing. Parts of the image that are allocated already need no room.
func CheckSpace(path string, sizeBytes, usedBytes int64) (Space, error) {
	if sizeBytes <= 0 || usedBytes < 0 {
		return Space{}, fmt.Errorf("image %s: a size of %d bytes, %d of them used, is not one", path, sizeBytes, usedBytes)
	}
	usedBytes = min(usedBytes, sizeBytes)
	var s Space
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return s, fmt.Errorf("image %w", err)
	case isBlockDevice(info):
		return deviceSpace(path, sizeBytes)
	case !info.Mode().IsRegular():
		return s, fmt.Errorf("image %s is neither a file nor a block device", path)
	default:
		s.AllocatedBytes = allocatedBytes(info)
	}
	dir := filepath.Dir(path)
	if di, err := os.Stat(dir); err != nil {
		return s, fmt.Errorf("directory of image %s: %w; make it on the backup, or place the disk elsewhere", path, err)
	} else if !di.IsDir() {
		return s, fmt.Errorf("image %s: %s is not a directory", path, dir)
	} else {
		s.Filesystem = deviceOf(di)
	}
	if s.FreeBytes, err = freeBytes(dir); err != nil {
		return s, fmt.Errorf("free space at %s: %w", dir, err)
	}
	s.MayFill = sizeBytes-s.AllocatedBytes > s.FreeBytes-spaceMarginBytes
	if missing := usedBytes - s.AllocatedBytes - (s.FreeBytes - spaceMarginBytes); usedBytes > s.AllocatedBytes && missing > 0 {
		return s, fmt.Errorf("image %s: %w: %s is missing on the file system of %s (%s is needed, %s is free); free it, or place the disk elsewhere",
			path, unix.ENOSPC, byteCount(missing), dir, byteCount(usedBytes-s.AllocatedBytes), byteCount(s.FreeBytes))
	}
	return s, nil
}

// deviceSpace judges a block device, whose space is all its own.
func deviceSpace(path string, sizeBytes int64) (Space, error) {
	f, err := os.Open(path)
	if err != nil {
		return Space{}, fmt.Errorf("image %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return Space{}, fmt.Errorf("size of block device %s: %w", path, err)
	}
	s := Space{FreeBytes: size, AllocatedBytes: size}
	if size < sizeBytes {
		return s, fmt.Errorf("block device %s: %w: it has %s, the disk %s; make it larger, or place the disk elsewhere",
			path, unix.ENOSPC, byteCount(size), byteCount(sizeBytes))
	}
	return s, nil
}

// spaceMarginBytes stay free, for the file system's own bookkeeping.
const spaceMarginBytes = 16 << 20

// freeBytes is what a file system has left for us.
func freeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return 0, err
		}
	}
	return availableBytes(&st), nil
}

// availableBytes leaves aside what is kept for root: the guest's QEMU is not.
func availableBytes(st *unix.Statfs_t) int64 {
	unit := max(st.Frsize, st.Bsize, 1)
	if st.Frsize > 0 {
		unit = st.Frsize
	}
	if st.Bavail > uint64(1<<62/unit) {
		return 1 << 62
	}
	return int64(st.Bavail) * unit
}

func isBlockDevice(info fs.FileInfo) bool {
	return info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
}

func allocatedBytes(info fs.FileInfo) int64 {
	if st, ok := statOf(info); ok {
		return st.Blocks * 512
	}
	return 0
}

func deviceOf(info fs.FileInfo) uint64 {
	if st, ok := statOf(info); ok {
		return st.Dev
	}
	return 0
}

// byteCount writes n for a reader.
func byteCount(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 10<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 10<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}

// NetworkFilesystem names the file system at path, which need not exist yet,
// and tells whether other hosts can see it too. Two hosts that share an image
// would both write to it.
func NetworkFilesystem(path string) (name string, shared bool, err error) {
	var st unix.Statfs_t
	for at := path; ; at = filepath.Dir(at) {
		err = unix.Statfs(at, &st)
		if err == unix.EINTR {
			continue
		}
		if err != unix.ENOENT || at == filepath.Dir(at) {
			break
		}
	}
	if err != nil {
		return "", false, fmt.Errorf("file system of %s: %w", path, err)
	}
	name, shared = filesystemName(int64(st.Type))
	return name, shared, nil
}

// filesystemName knows the magic numbers of statfs(2) that matter here.
func filesystemName(magic int64) (name string, shared bool) {
	switch uint32(magic) {
	case unix.NFS_SUPER_MAGIC:
		return "nfs", true
	case 0xff534d42, 0xfe534d42:
		return "cifs", true
	case 0x517b:
		return "smb", true
	case 0x00c36400:
		return "ceph", true
	case 0x01161970:
		return "gfs2", true
	case 0x7461636f:
		return "ocfs2", true
	case 0x0bd00bd0:
		return "lustre", true
	case 0x47504653:
		return "gpfs", true
	case 0x19830326:
		return "beegfs", true
	case 0x20030528:
		return "orangefs", true
	case 0x5346414f, 0x6b414653:
		return "afs", true
	case 0x73757245:
		return "coda", true
	case 0x01021997:
		return "9p", true
	case 0x786f4256:
		return "vboxsf", true
	case 0x65735546:
		return "fuse", true // glusterfs and sshfs among them; nobody can tell
	case unix.EXT4_SUPER_MAGIC:
		return "ext4", false
	case unix.XFS_SUPER_MAGIC:
		return "xfs", false
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs", false
	case unix.TMPFS_MAGIC:
		return "tmpfs", false
	}
	return fmt.Sprintf("%#x", uint32(magic)), false
}

func statOf(info fs.FileInfo) (*syscall.Stat_t, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}

// blocksOf is what n bytes at off may take on a file system, block by block.
func blocksOf(off, n int64) int64 {
	const block = 4096
	return (off+n+block-1)/block*block - off/block*block
}

// checkRoom refuses an epoch for which the images may have no room: once it is
// acknowledged, it must be possible to apply it. Writes into parts that are
// allocated already need none, and are counted all the same. staging is held.
func (t *Target) checkRoom() error {
	type need struct {
		bytes int64
		path  string
	}
	needs := map[uint64]*need{t.journalOn: {path: t.o.JournalDir}}
	t.mu.Lock()
	for i, im := range t.images {
		if im.device {
			continue
		}
		if needs[im.on] == nil {
			needs[im.on] = &need{path: im.path}
		}
		if n := needs[im.on]; t.waiting[i] > 0 {
			n.bytes, n.path = n.bytes+t.waiting[i], im.path
		}
	}
	t.mu.Unlock()
	for _, n := range needs {
		free, err := freeBytes(n.path)
		if err != nil {
			return fmt.Errorf("free space at %s: %w", n.path, err)
		}
		if wanted := n.bytes + spaceMarginBytes; free < wanted {
			return fmt.Errorf("%s: %w: its file system has %s left, %s may be needed; free space there",
				n.path, unix.ENOSPC, byteCount(free), byteCount(wanted))
		}
	}
	return nil
}
