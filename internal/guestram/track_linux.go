package guestram

import (
	"context"
	"fmt"
	"os"
	"unsafe"

	"github.com/virt-ft/virt-ft/internal/ptracer"
	"golang.org/x/sys/unix"
)

// scanVec is how many regions one PAGEMAP_SCAN may return; 24 bytes each.
const scanVec = 8192

// tracked is a block and what is known of its pages.
type tracked struct {
	index      uint16
	host, size uint64
	// Shared blocks only. A page that is punched out of the backing file
	// keeps its write-protection mark, so that the kernel does not report
	// it: known holds the pages whose content was reported, and those of
	// them that are not mapped any more are looked up in the file.
	file    *os.File
	fileOff uint64
	known   bitmap
	name    string
	pass    passes
}

// passes is how far the first pass over a block has come.
type passes int

const (
	neverScanned passes = iota
	firstFailed         // some pages may be armed without having been reported
	armed
)

type uffdTracker struct {
	uffd, pagemap int
	blocks        []tracked
	closed        bool

	// The kernel writes to these by address; Go does not move heap objects.
	arg   *pmScanArg
	vec   []pageRegion
	dirty int // entries of vec that the last scan filled

	empty []Range // scratch of the first pass: pages not there (yet)
}

// TrackUffd starts to track the migratable blocks of process pid. It creates a
// userfaultfd inside the process by one remote system call, takes it over, and
// closes it there again: the tracking lasts as long as this process or until
// Close. pid must be of the same user or we privileged (CAP_SYS_PTRACE).
func TrackUffd(ctx context.Context, pid int, blocks []Block) (Tracker, error) {
	if len(blocks) > maxBlocks {
		return nil, fmt.Errorf("%d RAM blocks: %w", len(blocks), ErrLayout)
	}
	for i := range blocks {
		if err := trackable(&blocks[i]); err != nil {
			return nil, err
		}
	}
	fd, err := remoteUffd(ctx, pid)
	if err != nil {
		return nil, err
	}
	t := &uffdTracker{uffd: fd, pagemap: -1, arg: new(pmScanArg), vec: make([]pageRegion, scanVec)}
	if err := t.open(pid, blocks); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *uffdTracker) open(pid int, blocks []Block) error {
	if err := uffdHandshake(t.uffd); err != nil {
		return err
	}
	path := fmt.Sprintf("/proc/%d/pagemap", pid)
	var err error
	if t.pagemap, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	for i := range blocks {
		b := &blocks[i]
		if !b.Migratable || b.Used == 0 {
			continue
		}
		if err := uffdRegister(t.uffd, b.Host, b.Used); err != nil {
			return fmt.Errorf("track RAM block %s: %w", b.Name, err)
		}
		tb := tracked{index: uint16(i), host: b.Host, size: b.Used, name: b.Name}
		if b.Shared {
			if tb.file, err = openBacking(pid, b, os.O_RDONLY); err != nil {
				return err
			}
			tb.fileOff, tb.known = b.FileOff, newBitmap(b.Used/PageSize)
		}
		t.blocks = append(t.blocks, tb)
	}
	return nil
}

// remoteUffd returns a userfaultfd that belongs to the memory of pid.
func remoteUffd(ctx context.Context, pid int) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	ret, err := ptracer.Remote(ctx, pid, ptracer.Call{Nr: unix.SYS_USERFAULTFD,
		Args: [6]uint64{unix.O_CLOEXEC | unix.O_NONBLOCK | uffdUserModeOnly}})
	if err != nil {
		return -1, fmt.Errorf("userfaultfd in process %d: %w", pid, err)
	}
	if ret < 0 {
		return -1, needsKernel(fmt.Sprintf("userfaultfd in process %d", pid), unix.Errno(-ret))
	}
	fd, err := unix.PidfdGetfd(pidfd, int(ret), 0)
	// Once asked, the descriptor must not stay there, even if ctx ended.
	_, cerr := ptracer.Remote(context.WithoutCancel(ctx), pid, ptracer.Call{Nr: unix.SYS_CLOSE, Args: [6]uint64{uint64(ret)}})
	if err == nil && cerr != nil {
		unix.Close(fd)
		err = cerr
	}
	if err != nil {
		return -1, fmt.Errorf("take userfaultfd over from process %d: %w", pid, err)
	}
	return fd, nil
}

func (t *uffdTracker) Close() error {
	if t.closed {
		return nil
	}
	t.closed = true
	err := unix.Close(t.uffd)
	if t.pagemap >= 0 {
		unix.Close(t.pagemap)
	}
	for _, b := range t.blocks {
		if b.file != nil {
			b.file.Close()
		}
	}
	return err
}

func (t *uffdTracker) Collect(dst []Range) ([]Range, error) {
	if t.closed {
		return dst, os.ErrClosed
	}
	for i := range t.blocks {
		var err error
		b := &t.blocks[i]
		switch b.pass {
		case neverScanned:
			b.pass = firstFailed
			dst, err = t.collectFirst(b, dst)
		case firstFailed:
			// Report also what is not there: it may have been there.
			if dst, err = t.scan(b, dst, scanAll, false); err == nil && b.file != nil {
				dst, err = b.populated(dst)
			}
		case armed:
			dst, err = t.collectArmed(b, dst)
		}
		if err != nil {
			return dst, fmt.Errorf("scan RAM block %s: %w", b.name, err)
		}
		b.pass = armed
	}
	return dst, nil
}

// collectArmed appends what was written in b since the last pass. Two walks are
// cheaper than scanAll where memory is unpopulated: that reports every page
// which is not there, for us to throw away.
func (t *uffdTracker) collectArmed(b *tracked, dst []Range) ([]Range, error) {
	if b.file != nil {
		return t.scan(b, dst, scanAll, false)
	}
	dst, err := t.scan(b, dst, scanWritten, false)
	if err != nil {
		return dst, err
	}
	return t.scan(b, dst, scanHoles, false)
}

// scan appends those pages of b that q asks for and that have changed. With
// first set, pages that are not there go to t.empty instead: they read as zero
// and were never reported.
func (t *uffdTracker) scan(b *tracked, dst []Range, q query, first bool) ([]Range, error) {
	end := b.host + b.size
	for at := b.host; at < end; {
		clear(t.vec[:t.dirty])
		*t.arg = scanArg(at, end, t.vec, q)
		n, err := ioctl(t.pagemap, pagemapScan, unsafe.Pointer(t.arg))
		if err != nil {
			// The regions before the failure are re-armed already.
			for n = 0; n < len(t.vec) && t.vec[n].end != 0; n++ {
			}
		}
		t.dirty = n
		for _, r := range t.vec[:n] {
			var e error
			if dst, e = t.take(b, r, dst, q, first); e != nil && err == nil {
				err = e
			}
		}
		if err != nil {
			return dst, err
		}
		if t.arg.walkEnd <= at {
			return dst, errStuck
		}
		at = t.arg.walkEnd
	}
	return dst, nil
}

// take sorts one region into what happened to it.
func (t *uffdTracker) take(b *tracked, r pageRegion, dst []Range, q query, first bool) ([]Range, error) {
	off, pages := r.start-b.host, (r.end-r.start)/PageSize
	there := r.categories&(pageIsPresent|pageIsSwapped) != 0
	written := r.categories&pageIsWritten != 0
	var err error
	switch {
	case q == scanWritten:
		// It tells no more than that, and has armed all it reports.
	case !there:
		// Thrown away, or never there. The scan did not arm all of these.
		// Arming after the scan loses no write: contents are read later.
		if first {
			t.empty = add(t.empty, b.index, off, pages)
		} else {
			err = uffdProtect(t.uffd, r.start, r.end-r.start)
		}
	case !written:
		// Armed and not mapped: swapped out, or (shared) dropped from the
		// page tables or from the file, or never there.
		if b.file != nil && !first {
			return b.punched(off, pages, dst)
		}
		return dst, nil
	}
	if first && (!there || b.file != nil) {
		return dst, err
	}
	if b.file != nil {
		b.known.set(off/PageSize, pages)
	}
	return add(dst, b.index, off, pages), err
}

// collectFirst arms all of b and reports what it holds.
func (t *uffdTracker) collectFirst(b *tracked, dst []Range) ([]Range, error) {
	t.empty = t.empty[:0]
	dst, err := t.scan(b, dst, scanAll, true)
	if err != nil {
		return dst, err
	}
	for _, r := range t.empty {
		if err := uffdProtect(t.uffd, b.host+r.Off, uint64(r.Bytes())); err != nil {
			return dst, err
		}
	}
	if b.file != nil {
		// The file is the authority: it also holds pages that nobody has
		// touched through this mapping.
		return b.populated(dst)
	}
	// A page that came to be between the scan and the arming is armed, and
	// present. (It cannot be swapped out yet: that is for old pages.)
	for _, r := range t.empty {
		if dst, err = t.present(b, r, dst); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// present appends the pages of r that are there, without arming.
func (t *uffdTracker) present(b *tracked, r Range, dst []Range) ([]Range, error) {
	end := b.host + r.End()
	for at := b.host + r.Off; at < end; {
		*t.arg = scanArg(at, end, t.vec, scanAll)
		t.arg.flags, t.arg.inverted, t.arg.anyof = 0, 0, 0
		t.arg.mask, t.arg.ret = pageIsPresent, pageIsPresent
		n, err := ioctl(t.pagemap, pagemapScan, unsafe.Pointer(t.arg))
		if err != nil {
			return dst, err
		}
		t.dirty = max(t.dirty, n)
		for _, p := range t.vec[:n] {
			dst = add(dst, b.index, p.start-b.host, (p.end-p.start)/PageSize)
		}
		if t.arg.walkEnd <= at {
			return dst, errStuck
		}
		at = t.arg.walkEnd
	}
	return dst, nil
}

// add appends a range, or grows the last one when it is adjacent. maxBlockBytes
// keeps pages within 32 bits.
func add(dst []Range, block uint16, off, pages uint64) []Range {
	if n := len(dst); n > 0 {
		if l := &dst[n-1]; l.Block == block && l.End() == off {
			l.Pages += uint32(pages)
			return dst
		}
	}
	return append(dst, Range{Block: block, Pages: uint32(pages), Off: off})
}
