package diskrep

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// file is an image or a part of the journal. Reads and writes are buffered by
// the kernel. Safe for concurrent use.
type file struct {
	f      *os.File
	path   string
	hook   hook
	device bool // a block device
}

// iovecsMax is IOV_MAX: what one call of pwritev takes.
const iovecsMax = 1024

// zeroChunkBytes are written at a time where holes cannot be punched.
const zeroChunkBytes = 1 << 20

func (f *file) fd() int { return int(f.f.Fd()) }

// fail says which operation failed where.
func (f *file) fail(op string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%s %s: %w; free space on its file system", op, f.path, err)
	}
	return fmt.Errorf("%s %s: %w", op, f.path, err)
}

// write puts bufs one behind the other at off. It uses up the list, not what
// the buffers hold.
func (f *file) write(bufs [][]byte, off int64) error {
	if err := f.hook.at(op{kind: opWrite, path: f.path, off: off, data: bufs}); err != nil {
		return f.fail("write", err)
	}
	for len(bufs) > 0 {
		n, err := unix.Pwritev(f.fd(), bufs[:min(len(bufs), iovecsMax)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return f.fail("write", err)
		}
		if n == 0 {
			return f.fail("write", unix.ENOSPC) // a device that ends here
		}
		off += int64(n)
		for len(bufs) > 0 && n >= len(bufs[0]) {
			n -= len(bufs[0])
			bufs = bufs[1:]
		}
		if n > 0 {
			bufs = slices.Clone(bufs)
			bufs[0] = bufs[0][n:]
		}
	}
	return nil
}

// zero makes n bytes at off read as zeros, and gives their space back where
// that is possible.
func (f *file) zero(off, n int64) error {
	if err := f.hook.at(op{kind: opZero, path: f.path, off: off, n: n}); err != nil {
		return f.fail("zero", err)
	}
	// On a block device this zeroes, too, and unmaps if the device can; then
	// off and n must be whole blocks of it.
	for {
		err := unix.Fallocate(f.fd(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP, unix.EINVAL, unix.ENOSYS, unix.ENODEV:
			return f.writeZeros(off, n)
		}
		return f.fail("zero", err)
	}
}

func (f *file) writeZeros(off, n int64) error {
	zeros := make([]byte, min(n, zeroChunkBytes))
	for n > 0 {
		c, err := unix.Pwrite(f.fd(), zeros[:min(n, int64(len(zeros)))], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return f.fail("zero", err)
		}
		if c == 0 {
			return f.fail("zero", unix.ENOSPC)
		}
		off, n = off+int64(c), n-int64(c)
	}
	return nil
}

// sync returns when all that was written before is on disk.
func (f *file) sync() error {
	err := f.hook.at(op{kind: opSync, path: f.path})
	if err == nil {
		err = unix.Fdatasync(f.fd())
		for err == unix.EINTR {
			err = unix.Fdatasync(f.fd())
		}
	}
	if err == nil {
		err = f.hook.at(op{kind: opSynced, path: f.path})
	}
	if err != nil {
		return f.fail("sync", err)
	}
	return nil
}

// truncate cuts or extends the file to n bytes.
func (f *file) truncate(n int64) error {
	err := f.hook.at(op{kind: opTruncate, path: f.path, n: n})
	if err == nil {
		err = f.f.Truncate(n)
	}
	if err != nil {
		return f.fail("set size of", err)
	}
	return nil
}

// readFull fills p from off.
func (f *file) readFull(p []byte, off int64) error {
	if _, err := f.f.ReadAt(p, off); err != nil {
		return f.fail("read", err)
	}
	return nil
}

// size is that of the file or block device.
func (f *file) size() (int64, error) {
	if f.device {
		n, err := unix.Seek(f.fd(), 0, unix.SEEK_END)
		if err != nil {
			return 0, f.fail("size of", err)
		}
		return n, nil
	}
	info, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// createFile makes a file that is not there yet.
func createFile(path string, h hook) (*file, error) {
	err := h.at(op{kind: opCreate, path: path})
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return &file{f: f, path: path, hook: h}, nil
}

// removeFile takes a name away.
func removeFile(path string, h hook) error {
	if err := h.at(op{kind: opUnlink, path: path}); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return os.Remove(path)
}

// syncDir returns when the names in dir are on disk.
func syncDir(dir string, h hook) error {
	err := h.at(op{kind: opSyncDir, path: filepath.Clean(dir)})
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return err
	}
	return h.at(op{kind: opSyncedDir, path: filepath.Clean(dir)})
}
