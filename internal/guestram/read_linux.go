package guestram

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// iovMax is how many ranges process_vm_readv takes at a time (UIO_MAXIOV).
const iovMax = 1024

// Read copies the pages of rs out of process pid into dst, one after the other,
// and returns how many bytes that were. Pages that do not exist are created in
// a shared block by being read; Reader avoids that.
func Read(pid int, blocks []Block, rs []Range, dst []byte) (int, error) {
	r := Reader{pid: pid, blocks: blocks, copiers: make([]copier, 1), stints: make([]stint, 0, stintsMax)}
	return r.Read(rs, dst)
}

// parallelCopyBytes is from how many bytes on several threads share a copy, and
// stintBytes how many of them one takes at a time.
const (
	parallelCopyBytes = 4 << 20
	stintBytes        = 256 << 10
	// stintsMax bounds how many there are; longer ones are made for more.
	stintsMax = 4096
)

// Reader copies pages of the blocks of one process. It is not safe for
// concurrent use. Reading does not make the process grow: anonymous pages that
// do not exist read as the kernel's zero page, and shared blocks are read
// through their file, where a hole stays a hole. Much is copied by several
// threads.
type Reader struct {
	pid    int
	blocks []Block
	files  []*os.File // per block, nil unless shared
	crew   *crew      // nil: the caller alone

	copiers  []copier
	ranges   []Range // of the read that goes on
	dst      []byte
	stints   []stint
	next     atomic.Int32
	parallel int // parallelCopyBytes, but in tests
}

// stint is a part of a read.
type stint struct {
	first int    // index of its first range
	skip  uint64 // bytes of it that belong to the stint before
	at    int    // where it begins in dst
	bytes int
	err   error
}

// copier is what one thread needs to copy.
type copier struct{ iov [iovMax]unix.RemoteIovec }

// NewReader opens what is needed to read blocks of pid.
func NewReader(pid int, blocks []Block) (*Reader, error) {
	lanes := lanesHere()
	r := &Reader{pid: pid, blocks: blocks, files: make([]*os.File, len(blocks)), parallel: parallelCopyBytes,
		copiers: make([]copier, lanes), stints: make([]stint, 0, stintsMax)}
	for i := range blocks {
		if !blocks[i].Shared || !blocks[i].Migratable {
			continue
		}
		f, err := openBacking(pid, &blocks[i], os.O_RDONLY)
		if err != nil {
			r.Close()
			return nil, err
		}
		r.files[i] = f
	}
	var err error
	if r.crew, err = newCrew(lanes); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close releases files and threads. It is idempotent.
func (r *Reader) Close() error {
	errs := []error{r.crew.close()}
	for i, f := range r.files {
		if f != nil {
			errs = append(errs, f.Close())
			r.files[i] = nil
		}
	}
	return errors.Join(errs...)
}

// Read copies the pages of rs into dst, one after the other, and returns how
// many bytes that were, from the start of dst without a gap. dst must be long
// enough. It does not allocate.
func (r *Reader) Read(rs []Range, dst []byte) (int, error) {
	if err := r.plan(rs, dst); err != nil {
		return 0, err
	}
	if len(r.stints) == 0 {
		return 0, nil
	}
	r.ranges, r.dst = rs, dst
	r.next.Store(0)
	last := &r.stints[len(r.stints)-1]
	bytes := last.at + last.bytes
	if r.crew == nil || bytes < r.parallel {
		r.work(0)
	} else {
		r.crew.run(r, true)
	}
	r.ranges, r.dst = nil, nil
	for i := range r.stints {
		if p := &r.stints[i]; p.err != nil {
			return p.at, p.err
		}
	}
	return bytes, nil
}

// plan cuts rs into stints.
func (r *Reader) plan(rs []Range, dst []byte) error {
	r.stints = r.stints[:0]
	total := 0
	for i := range rs {
		g := &rs[i]
		if int(g.Block) >= len(r.blocks) || g.End() > r.blocks[g.Block].Used {
			return fmt.Errorf("read %+v: beyond its block: %w", *g, ErrLayout)
		}
		if g.Bytes() > len(dst)-total {
			return fmt.Errorf("read %d ranges: %w", len(rs), io.ErrShortBuffer)
		}
		total += g.Bytes()
	}
	most := max(stintBytes, (total/stintsMax+PageSize)/PageSize*PageSize)
	at := 0
	for i := range rs {
		for size, skip := rs[i].Bytes(), 0; skip < size; {
			n := len(r.stints)
			if n == 0 || r.stints[n-1].bytes == most {
				r.stints = append(r.stints, stint{first: i, skip: uint64(skip), at: at})
				n++
			}
			take := min(size-skip, most-r.stints[n-1].bytes)
			r.stints[n-1].bytes += take
			skip, at = skip+take, at+take
		}
	}
	return nil
}

// work copies stints until none is left. It implements task.
func (r *Reader) work(lane int) {
	for {
		i := int(r.next.Add(1)) - 1
		if i >= len(r.stints) {
			return
		}
		p := &r.stints[i]
		p.err = r.copy(&r.copiers[lane], p, r.dst[p.at:p.at+p.bytes])
	}
}

// copy fills dst, which is as long as p.
func (r *Reader) copy(c *copier, p *stint, dst []byte) error {
	done, pending, n := 0, 0, 0 // bytes copied; bytes and entries in iov
	skip := p.skip
	for i := p.first; done+pending < len(dst); i++ {
		g := &r.ranges[i]
		b := &r.blocks[g.Block]
		off, size := g.Off+skip, min(g.Bytes()-int(skip), len(dst)-done-pending)
		skip = 0
		shared := r.files != nil && r.files[g.Block] != nil
		if shared || n == iovMax {
			if err := r.vector(c.iov[:n], dst[done:done+pending]); err != nil {
				return err
			}
			done, pending, n = done+pending, 0, 0
		}
		if shared {
			if err := r.fromFile(g.Block, off, dst[done:done+size]); err != nil {
				return err
			}
			done += size
			continue
		}
		c.iov[n] = unix.RemoteIovec{Base: uintptr(b.Host + off), Len: size}
		n, pending = n+1, pending+size
	}
	return r.vector(c.iov[:n], dst[done:done+pending])
}

// vector reads iov into dst, which is as long as they.
func (r *Reader) vector(iov []unix.RemoteIovec, dst []byte) error {
	if len(iov) == 0 {
		return nil
	}
	local := [1]unix.Iovec{{Base: &dst[0]}}
	local[0].SetLen(len(dst))
	got, err := unix.ProcessVMReadv(r.pid, local[:], iov, 0)
	if err != nil {
		return fmt.Errorf("copy %d bytes of process %d: %w", len(dst), r.pid, err)
	}
	if got == len(dst) {
		return nil
	}
	at := got
	for i := range iov {
		if at < iov[i].Len {
			return fmt.Errorf("copy %d bytes of process %d: %#x cannot be read: %w", len(dst), r.pid, uint64(iov[i].Base)+uint64(at), ErrLayout)
		}
		at -= iov[i].Len
	}
	return fmt.Errorf("copy %d bytes of process %d: got %d: %w", len(dst), r.pid, got, ErrLayout)
}

func (r *Reader) fromFile(block uint16, at uint64, dst []byte) error {
	off := int64(r.blocks[block].FileOff + at)
	for len(dst) > 0 {
		n, err := unix.Pread(int(r.files[block].Fd()), dst, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("read RAM block %s at %#x: %d bytes, %w", r.blocks[block].Name, at, n, errors.Join(err, io.ErrUnexpectedEOF))
		}
		dst, off = dst[n:], off+int64(n)
	}
	return nil
}
