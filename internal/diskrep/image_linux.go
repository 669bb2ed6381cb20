package diskrep

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// newSuffix marks an image that is being made: a killed predecessor must not
// leave one of a wrong size under its name.
const newSuffix = ".virt-ft-new"

// image is the copy of one disk: a flat file or a block device.
type image struct {
	*file
	disk  Disk
	fresh bool        // reads as zeros
	on    uint64      // file system
	dirty atomic.Bool // written since the last sync began
	// flushing: who finds nothing dirty must not return before the sync that
	// took care of it has ended.
	flushing sync.Mutex
}

// openImage opens the image at path, or makes it: sparse, of the disk's size.
// make tells whether it may.
func openImage(d Disk, path string, mayMake bool, h hook) (*image, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("image of disk %s: %q is not an absolute path", d.Name, path)
	}
	f, err := openExisting(path, h)
	fresh := false
	if errors.Is(err, fs.ErrNotExist) && mayMake {
		f, err = makeImage(d, path, h)
		fresh = true
	}
	if err != nil {
		return nil, fmt.Errorf("image of disk %s: %w", d.Name, err)
	}
	im := &image{file: f, disk: d, fresh: fresh}
	if err := im.check(); err != nil {
		f.f.Close()
		return nil, fmt.Errorf("image of disk %s: %w", d.Name, err)
	}
	im.fresh = im.fresh || im.hollow()
	return im, nil
}

func openExisting(path string, h hook) (*file, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	flags, device := os.O_RDWR, isBlockDevice(info)
	switch {
	case device:
		flags |= unix.O_EXCL // refused while it is mounted
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is neither a file nor a block device", path)
	}
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return &file{f: f, path: path, hook: h, device: device}, nil
}

// makeImage makes an empty image. Its name appears when it has its size, and
// is on disk when this returns.
func makeImage(d Disk, path string, h hook) (_ *file, err error) {
	tmp := path + newSuffix
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := createFile(tmp, h)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.f.Close()
			os.Remove(tmp)
		}
	}()
	if err := f.truncate(d.SizeBytes); err != nil {
		return nil, err
	}
	if err := f.sync(); err != nil {
		return nil, err
	}
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL { // a file system without it
		if err = os.Link(tmp, path); err == nil {
			err = os.Remove(tmp)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	f.path = path
	return f, syncDir(filepath.Dir(path), h)
}

// check refuses an image of another size, and one that another Target has.
func (im *image) check() error {
	size, err := im.size()
	switch {
	case err != nil:
		return err
	case im.device && size < im.disk.SizeBytes:
		return fmt.Errorf("block device %s has %d bytes, the disk %d; make it larger, or place the disk elsewhere", im.path, size, im.disk.SizeBytes)
	case !im.device && size != im.disk.SizeBytes:
		return fmt.Errorf("%s is there and has %d bytes, the disk %d; if nobody needs it, remove it, else place the disk elsewhere", im.path, size, im.disk.SizeBytes)
	}
	info, err := im.f.Stat()
	if err != nil {
		return err
	}
	im.on = deviceOf(info)
	return lockFile(im.f)
}

// lockFile keeps other processes, and other Targets of this one, away until f
// is closed. QEMU locks in another way and is not kept away.
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for err == unix.EINTR {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == unix.EWOULDBLOCK {
		return fmt.Errorf("%s is %w: end that one, or wait for it", f.Name(), ErrLocked)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

// hollow tells that the image is one hole, so that it reads as zeros.
func (im *image) hollow() bool {
	_, err := unix.Seek(im.fd(), 0, unix.SEEK_DATA)
	return !im.device && err == unix.ENXIO
}

// put writes w. Its data is not in use any more when put returns.
func (im *image) put(w Write) error {
	im.dirty.Store(true)
	if w.Data == nil {
		return im.zero(w.Off, w.Len)
	}
	return im.write([][]byte{w.Data}, w.Off)
}

// flush returns when all that was put before is on disk.
func (im *image) flush() error {
	im.flushing.Lock()
	defer im.flushing.Unlock()
	if !im.dirty.Swap(false) {
		return nil
	}
	if err := im.sync(); err != nil {
		im.dirty.Store(true)
		return err
	}
	return nil
}

// gather collects writes that follow each other on a disk, to make one call of
// them.
type gather struct {
	im   *image
	off  int64
	next int64
	bufs [][]byte
}

// gatherBytesMax bounds one call, so that what is collected stays in caches.
const gatherBytesMax = 4 << 20

// add takes a write that has data. What is collected is written when this one
// does not go behind it.
func (g *gather) add(im *image, off int64, data []byte) error {
	if g.im != im || g.next != off || len(g.bufs) == iovecsMax || off-g.off >= gatherBytesMax {
		if err := g.flush(); err != nil {
			return err
		}
		g.im, g.off = im, off
	}
	g.bufs, g.next = append(g.bufs, data), off+int64(len(data))
	return nil
}

func (g *gather) flush() error {
	if len(g.bufs) == 0 {
		return nil
	}
	g.im.dirty.Store(true)
	err := g.im.write(g.bufs, g.off)
	clear(g.bufs)
	g.bufs, g.im = g.bufs[:0], nil
	return err
}
