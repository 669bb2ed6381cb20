package guestram

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/virt-ft/virt-ft/internal/ptracer"
	"golang.org/x/sys/unix"
)

// parallelScanNs is how long the last scan took, by all lanes together, from
// which on several of them share one. To wake a thread takes 50 µs on a quiet
// machine, and one that is put off with a piece in its hand costs more.
const parallelScanNs = 1_000_000

// tracked is a block and what is known of its pages.
type tracked struct {
	index      uint16
	host, size uint64
	regions    regions
	// Shared blocks only. A page that is punched out of the backing file
	// keeps its write-protection mark, so that the kernel does not report
	// it: known holds the pages whose content was reported, and those of
	// them that are not mapped any more are looked up in the file.
	file    *os.File
	fileOff uint64
	known   bitmap
	touched ctime
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
	// holesWritten: this kernel reports and arms page-table holes as written.
	holesWritten bool

	crew   *crew
	lanes  []lane
	pieces []piece // all armed blocks, in order; made anew when stale
	next   atomic.Int32
	stale  bool
	busyNs int64 // that the last scan of all pieces took, all lanes together

	parallelNs int64 // parallelScanNs, but in tests

	written query // how this kernel is asked for what was written

	scratch []Range // of the first pass, and of regions that came to be
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
	t := &uffdTracker{uffd: fd, pagemap: -1, parallelNs: parallelScanNs}
	if err := t.open(pid, blocks); err != nil {
		return nil, errors.Join(err, t.Close())
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
		tb := tracked{index: uint16(i), host: b.Host, size: b.Used, name: b.Name, regions: newRegions(b.Host, b.Used)}
		if b.Shared {
			if tb.file, err = openBacking(pid, b, os.O_RDONLY); err != nil {
				return err
			}
			tb.fileOff, tb.known = b.FileOff, newBitmap(b.Used/PageSize)
			// A page that came to be, and was swapped out before it was seen,
			// leaves no trace in page tables: only a mark would tell of it.
			tb.regions.fillAll()
		}
		t.blocks = append(t.blocks, tb)
	}
	t.written = writtenQuery()
	if t.holesWritten, err = holesAreWritten(t.written); err != nil {
		return err
	}
	return t.hire(lanesHere())
}

// hire prepares n lanes, and all memory that a Collect needs.
func (t *uffdTracker) hire(n int) error {
	most := 0
	for i := range t.blocks {
		most += t.blocks[i].regions.piecesMax()
	}
	t.pieces, t.stale = make([]piece, 0, most), true
	t.lanes = make([]lane, n)
	for i := range t.lanes {
		t.lanes[i] = newLane()
	}
	var err error
	t.crew, err = newCrew(n)
	return err
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
	err := errors.Join(t.crew.close(), unix.Close(t.uffd))
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
		b := &t.blocks[i]
		if b.pass == armed {
			continue
		}
		var err error
		if b.pass == neverScanned {
			b.pass = firstFailed
			dst, err = t.collectFirst(b, dst)
		} else {
			dst, err = t.collectAgain(b, dst)
		}
		if err != nil {
			return dst, b.explain(err)
		}
		b.pass, t.stale = armed, true
	}
	return t.collectArmed(dst)
}

func (b *tracked) explain(err error) error {
	return fmt.Errorf("scan RAM block %s: %w", b.name, err)
}

// add appends a range, or grows the last one when it is adjacent. maxBlockBytes
// keeps pages within 32 bits.
func add(dst []Range, block uint16, off, pages uint64) []Range {
	return addBehind(0, dst, block, off, pages)
}

// addBehind is add for ranges of which the first ones belong to somebody else.
func addBehind(first int, dst []Range, block uint16, off, pages uint64) []Range {
	if n := len(dst); n > first {
		if l := &dst[n-1]; l.Block == block && l.End() == off {
			l.Pages += uint32(pages)
			return dst
		}
	}
	return append(dst, Range{Block: block, Pages: uint32(pages), Off: off})
}
