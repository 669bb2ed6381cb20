package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	chunkBytes = 512
	// filesMax and fileChunksMax bound what the workload keeps: 16 MiB.
	filesMax      = 64
	fileChunksMax = 512
	appendMax     = 16
)

// fileDisk is a directory of files that are made, grown, renamed and removed,
// each change made durable, and the memory of what must be there. The content
// follows from a file's number and its length.
//
// Its methods may be called concurrently.
type fileDisk struct {
	name string
	dir  string
	// uncache empties the page cache, which else would answer for the disk.
	uncache func() error

	mu    sync.Mutex
	files map[string]knownFile
	last  uint64 // number of the file made last

	rate   atomic.Int64 // changes per second, 0: none
	loader sync.Once

	changes, failures atomic.Uint64
	firstError        atomic.Pointer[string]
}

type knownFile struct {
	id     uint64
	chunks int
}

// errEntangled keeps the workload off what it does not know any more.
var errEntangled = errors.New("an earlier change failed: what is on the disk is unknown")

// mountFiles mounts a block device's file system below at and begins with an
// empty directory there, of this boot.
func mountFiles(name, device, at string, generation uint64) (*fileDisk, error) {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount(device, at, "ext4", unix.MS_NOATIME, "discard,errors=remount-ro"); err != nil {
		return nil, fmt.Errorf("mounting %s: %w", device, err)
	}
	old, err := filepath.Glob(filepath.Join(at, "boot-*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	return newFileDisk(name, filepath.Join(at, fmt.Sprintf("boot-%016x", generation)))
}

func newFileDisk(name, dir string) (*fileDisk, error) {
	d := &fileDisk{name: name, dir: dir, uncache: dropCaches, files: map[string]knownFile{}}
	return d, os.Mkdir(dir, 0o755)
}

func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

func (d *fileDisk) startLoad(perSec int64) {
	d.rate.Store(perSec)
	d.loader.Do(func() { go pace(d.rate.Load, d.change) })
}

// change does one thing to one file, durably.
func (d *fileDisk) change() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rate.Load() == 0 || d.failures.Load() > 0 {
		return // quiet waits for our lock
	}
	name := fmt.Sprintf("f%02d", rand.IntN(filesMax))
	f, there := d.files[name]
	var err error
	switch dice := rand.IntN(10); {
	case !there || dice < 2:
		err = d.replace(name)
	case dice < 4:
		err = d.rename(name, fmt.Sprintf("f%02d", rand.IntN(filesMax)))
	case dice < 5:
		err = d.remove(name)
	case f.chunks == fileChunksMax:
		err = d.replace(name)
	default:
		err = d.grow(name, f)
	}
	if err != nil {
		d.failed(err)
		return
	}
	d.changes.Add(1)
}

func (d *fileDisk) failed(err error) {
	d.failures.Add(1)
	text := err.Error()
	d.firstError.CompareAndSwap(nil, &text)
}

// replace makes a file under another name and then gives it its own, as editors
// do.
func (d *fileDisk) replace(name string) error {
	d.last++
	f := knownFile{id: d.last, chunks: 1 + rand.IntN(appendMax)}
	const draft = "draft"
	if err := writeChunks(filepath.Join(d.dir, draft), os.O_CREATE|os.O_EXCL, f.id, 0, f.chunks); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(d.dir, draft), filepath.Join(d.dir, name)); err != nil {
		return err
	}
	d.files[name] = f
	return syncDir(d.dir)
}

func (d *fileDisk) grow(name string, f knownFile) error {
	more := min(1+rand.IntN(appendMax), fileChunksMax-f.chunks)
	if err := writeChunks(filepath.Join(d.dir, name), os.O_APPEND, f.id, f.chunks, more); err != nil {
		return err
	}
	f.chunks += more
	d.files[name] = f
	return nil
}

func (d *fileDisk) rename(from, to string) error {
	if from == to {
		return nil
	}
	if err := os.Rename(filepath.Join(d.dir, from), filepath.Join(d.dir, to)); err != nil {
		return err
	}
	d.files[to] = d.files[from]
	delete(d.files, from)
	return syncDir(d.dir)
}

func (d *fileDisk) remove(name string) error {
	if err := os.Remove(filepath.Join(d.dir, name)); err != nil {
		return err
	}
	delete(d.files, name)
	return syncDir(d.dir)
}

// appendChunk appends the content of one chunk of a file.
func appendChunk(dst []byte, id uint64, chunk int) []byte {
	x := seed(id, uint64(chunk))
	for range chunkBytes / 8 {
		dst = binary.LittleEndian.AppendUint64(dst, x)
		x = next(x)
	}
	return dst
}

func writeChunks(path string, flags int, id uint64, first, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	var content []byte
	for i := range n {
		content = appendChunk(content, id, first+i)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// quiet ends the load and returns when all is on the disk, the file system's
// own bookkeeping included.
func (d *fileDisk) quiet() error {
	d.rate.Store(0)
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(dir.Fd()))
	return errors.Join(err, dir.Close())
}

// check compares all files, as they are on the disk, with memory.
func (d *fileDisk) check() (f findings, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failures.Load() > 0 {
		return f, errEntangled
	}
	if err := d.uncache(); err != nil {
		return f, err
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return f, err
	}
	seen := map[string]bool{}
	for _, e := range entries {
		seen[e.Name()] = true
		known, ok := d.files[e.Name()]
		if !ok {
			f.find(&f.Foreign, "%s: file %s, which memory does not know", d.name, e.Name())
			continue
		}
		if err := d.compare(e.Name(), known, &f); err != nil {
			return f, err
		}
	}
	for name := range d.files {
		if !seen[name] {
			f.find(&f.Missing, "%s: file %s is not there", d.name, name)
		}
	}
	return f, nil
}

func (d *fileDisk) compare(name string, known knownFile, f *findings) error {
	file, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		return err
	}
	defer file.Close()
	got, err := io.ReadAll(io.LimitReader(file, fileChunksMax*chunkBytes+1))
	if err != nil {
		return err
	}
	var want []byte
	for i := range known.chunks {
		want = appendChunk(want, known.id, i)
	}
	switch {
	case bytes.Equal(got, want):
		f.Whole++
	case len(got) < len(want) && bytes.HasPrefix(want, got):
		f.find(&f.Missing, "%s: file %s has %d bytes, memory knows %d", d.name, name, len(got), len(want))
	case bytes.HasPrefix(got, want):
		f.find(&f.Foreign, "%s: file %s has %d bytes, memory knows %d", d.name, name, len(got), len(want))
	default:
		f.find(&f.Torn, "%s: file %s of %d bytes has not the content that memory knows", d.name, name, len(got))
	}
	return nil
}
