package guestram

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// maxFds bounds how many descriptors of a process are looked through.
const maxFds = 1 << 20

// openBacking opens the file behind a shared block: that descriptor of pid
// whose inode is the mapping's.
func openBacking(pid int, b *Block, flag int) (*os.File, error) {
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxFds)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	for _, n := range names {
		if _, err := strconv.Atoi(n); err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(dir+n, &st) != nil || st.Ino != b.MemfdInode || uint64(st.Dev) != b.MemfdDev || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		f, err := os.OpenFile(dir+n, flag, 0)
		if err != nil {
			return nil, fmt.Errorf("backing of RAM block %s: %w", b.Name, err)
		}
		if err := checkBacking(f, b); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	return nil, fmt.Errorf("backing of RAM block %s: process %d has no descriptor of inode %d: %w", b.Name, pid, b.MemfdInode, os.ErrNotExist)
}

// checkBacking makes sure that f is what stat said a moment ago, and that it is
// memory: holes of other file systems' files mean other things.
func checkBacking(f *os.File, b *Block) error {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &st), unix.Fstatfs(int(f.Fd()), &fs)); err != nil {
		return fmt.Errorf("backing of RAM block %s: %w", b.Name, err)
	}
	if st.Ino != b.MemfdInode || uint64(st.Size) < b.FileOff+b.Used {
		return fmt.Errorf("backing of RAM block %s: inode %d of %d bytes: %w", b.Name, st.Ino, st.Size, ErrLayout)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return &UnsupportedError{"RAM block " + b.Name, "its backing file is not memory (memfd or tmpfs)"}
	}
	return nil
}

// nextData returns the first stretch of [off, end) of f that is not a hole.
func nextData(f *os.File, off, end uint64) (from, to uint64, ok bool, err error) {
	s, err := unix.Seek(int(f.Fd()), int64(off), unix.SEEK_DATA)
	if err == unix.ENXIO || err == nil && uint64(s) >= end {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("SEEK_DATA: %w", err)
	}
	h, err := unix.Seek(int(f.Fd()), s, unix.SEEK_HOLE)
	if err == unix.ENXIO { // punched in between: try behind it
		return nextData(f, uint64(s)+PageSize, end)
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("SEEK_HOLE: %w", err)
	}
	return uint64(s), min(uint64(h), end), true, nil
}

// populated appends all that the backing file of b holds.
func (b *tracked) populated(dst []Range) ([]Range, error) {
	end := b.fileOff + b.size
	for at := b.fileOff; at < end; {
		from, to, ok, err := nextData(b.file, at, end)
		if err != nil || !ok {
			return dst, err
		}
		off, pages := from-b.fileOff, (to-from)/PageSize
		b.known.set(off/PageSize, pages)
		b.regions.fill(b.host+off, b.host+off+to-from)
		dst = add(dst, b.index, off, pages)
		at = to
	}
	return dst, nil
}

// punched appends the pages among those given whose content was reported and
// is no longer in the backing file. They read as zero now.
func (b *tracked) punched(off, pages uint64, dst []Range) ([]Range, error) {
	first, last := off/PageSize, off/PageSize+pages
	for at, run := b.known.next(first, last); run > 0; at, run = b.known.next(at, last) {
		from, to := b.fileOff+at*PageSize, b.fileOff+(at+run)*PageSize
		at += run
		for from < to {
			data, hole, ok, err := nextData(b.file, from, to)
			if err != nil {
				return dst, err
			}
			if !ok {
				data, hole = to, to
			}
			if data > from {
				o, n := from-b.fileOff, (data-from)/PageSize
				b.known.clear(o/PageSize, n)
				dst = add(dst, b.index, o, n)
			}
			from = hole
		}
	}
	return dst, nil
}

// ctime is the time of a backing file's last change as it was when its holes
// were last known. Punching a hole changes it; writing to the memory does not.
type ctime struct {
	sec, nsec int64
	settled   bool
}

// ctimeSettle is for how long a file must have been left alone before its time
// of change says that nothing has changed since: longer than any step in which
// a kernel tells the time of files.
const ctimeSettle = time.Second

// changed reports whether a hole may have been punched into f since the last
// call. Called before holes are looked up: what is punched after it changes the
// time again, or has made it too young to trust.
func (c *ctime) changed(f *os.File, now time.Time) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return true, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	was := *c
	age := now.Sub(time.Unix(st.Ctim.Sec, st.Ctim.Nsec))
	*c = ctime{sec: st.Ctim.Sec, nsec: st.Ctim.Nsec, settled: age > ctimeSettle}
	return !was.settled || was.sec != c.sec || was.nsec != c.nsec, nil
}

// Memory is the memory of a shared RAM block, mapped by us as well. What is
// written to Bytes is the guest's memory at once.
type Memory struct {
	file *os.File
	mem  []byte
}

// OpenShared maps a shared block of process pid. It outlives that process.
func OpenShared(pid int, b Block) (*Memory, error) {
	if !b.Shared {
		return nil, fmt.Errorf("RAM block %s: not shared memory", b.Name)
	}
	if b.Used == 0 || b.Used > maxBlockBytes || b.FileOff%PageSize != 0 {
		return nil, fmt.Errorf("RAM block %s: %d bytes at %#x: %w", b.Name, b.Used, b.FileOff, ErrLayout)
	}
	f, err := openBacking(pid, &b, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), int64(b.FileOff), int(b.Used), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map RAM block %s: %w", b.Name, err)
	}
	return &Memory{file: f, mem: mem}, nil
}

// Bytes is the block's memory, nil after Close.
func (m *Memory) Bytes() []byte { return m.mem }

// File is the backing file, which stays open until Close.
func (m *Memory) File() *os.File { return m.file }

// Close unmaps. Bytes must not be used any more. It is idempotent.
func (m *Memory) Close() error {
	if m.mem == nil {
		return nil
	}
	err := errors.Join(unix.Munmap(m.mem), m.file.Close())
	m.mem = nil
	return err
}
