package guestram

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// iovMax is how many ranges process_vm_readv takes at a time (UIO_MAXIOV).
const iovMax = 1024

// Read copies the pages of rs out of process pid into dst, one after the other,
// and returns how many bytes that were. Pages that do not exist are created in
// a shared block by being read; Reader avoids that.
func Read(pid int, blocks []Block, rs []Range, dst []byte) (int, error) {
	r := Reader{pid: pid, blocks: blocks}
	return r.Read(rs, dst)
}

// Reader copies pages of the blocks of one process. It is not safe for
// concurrent use. Reading does not make the process grow: anonymous pages that
// do not exist read as the kernel's zero page, and shared blocks are read
// through their file, where a hole stays a hole.
type Reader struct {
	pid    int
	blocks []Block
	files  []*os.File // per block, nil unless shared
	iov    [iovMax]unix.RemoteIovec
}

// NewReader opens what is needed to read blocks of pid.
func NewReader(pid int, blocks []Block) (*Reader, error) {
	r := &Reader{pid: pid, blocks: blocks, files: make([]*os.File, len(blocks))}
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
	return r, nil
}

// Close releases the files. It is idempotent.
func (r *Reader) Close() error {
	var errs []error
	for i, f := range r.files {
		if f != nil {
			errs = append(errs, f.Close())
			r.files[i] = nil
		}
	}
	return errors.Join(errs...)
}

// Read copies the pages of rs into dst, one after the other, and returns how
// many bytes that were. dst must be long enough. It does not allocate.
func (r *Reader) Read(rs []Range, dst []byte) (int, error) {
	done, pending, n := 0, 0, 0 // bytes copied; bytes and entries in iov
	for i := range rs {
		g := &rs[i]
		if int(g.Block) >= len(r.blocks) || g.End() > r.blocks[g.Block].Used {
			return done, fmt.Errorf("read %+v: beyond its block: %w", *g, ErrLayout)
		}
		size := g.Bytes()
		if size > len(dst)-done-pending {
			return done, fmt.Errorf("read %d ranges: %w", len(rs), io.ErrShortBuffer)
		}
		if r.files != nil && r.files[g.Block] != nil {
			if err := r.vector(n, dst[done:done+pending]); err != nil {
				return done, err
			}
			done, pending, n = done+pending, 0, 0
			if err := r.fromFile(g, dst[done:done+size]); err != nil {
				return done, err
			}
			done += size
			continue
		}
		r.iov[n] = unix.RemoteIovec{Base: uintptr(r.blocks[g.Block].Host + g.Off), Len: size}
		n, pending = n+1, pending+size
		if n == iovMax {
			if err := r.vector(n, dst[done:done+pending]); err != nil {
				return done, err
			}
			done, pending, n = done+pending, 0, 0
		}
	}
	if err := r.vector(n, dst[done:done+pending]); err != nil {
		return done, err
	}
	return done + pending, nil
}

// vector reads the first n entries of iov into dst, which is as long as they.
func (r *Reader) vector(n int, dst []byte) error {
	if n == 0 {
		return nil
	}
	local := [1]unix.Iovec{{Base: &dst[0]}}
	local[0].SetLen(len(dst))
	got, err := unix.ProcessVMReadv(r.pid, local[:], r.iov[:n], 0)
	if err != nil {
		return fmt.Errorf("copy %d bytes of process %d: %w", len(dst), r.pid, err)
	}
	if got == len(dst) {
		return nil
	}
	at := got
	for i := range r.iov[:n] {
		if at < r.iov[i].Len {
			return fmt.Errorf("copy %d bytes of process %d: %#x cannot be read: %w", len(dst), r.pid, uint64(r.iov[i].Base)+uint64(at), ErrLayout)
		}
		at -= r.iov[i].Len
	}
	return fmt.Errorf("copy %d bytes of process %d: got %d: %w", len(dst), r.pid, got, ErrLayout)
}

func (r *Reader) fromFile(g *Range, dst []byte) error {
	off := int64(r.blocks[g.Block].FileOff + g.Off)
	for len(dst) > 0 {
		n, err := unix.Pread(int(r.files[g.Block].Fd()), dst, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("read RAM block %s at %#x: %d bytes, %w", r.blocks[g.Block].Name, g.Off, n, errors.Join(err, io.ErrUnexpectedEOF))
		}
		dst, off = dst[n:], off+int64(n)
	}
	return nil
}
