// Package guestram finds the RAM blocks of a running QEMU, tracks which of
// their pages are written, and copies pages out of them, without QEMU's help
// and without stopping the guest.
//
// The life of a page here:
//
//	Blocks     names, sizes and host addresses of QEMU's RAM blocks
//	TrackUffd  asks the kernel to note writes to them (userfaultfd, WP_ASYNC)
//	Collect    which pages were written; each is re-armed as it is reported
//	Reader     copies those pages into memory of ours
//
// A page is always re-armed before it is read. A write that races with the
// copy is therefore reported by the next Collect, and a Collect and Read made
// while the guest is stopped leave nothing behind.
//
// What a scan costs, seen on Linux 6.18 (PAGEMAP_SCAN that re-arms), for each GiB:
//
//	huge pages          35-70 µs   one entry for 2 MiB
//	small pages         310-340 µs for "written" alone, for which the kernel has
//	                    a fast path; 710-790 µs for any other question
//	nothing, unarmed    12-17 µs   asked for what is new: scanNew
//	nothing, armed      830 µs     page tables full of marks, and slow ones
//	memfd, small pages  270-340 µs
//
// A write to an armed huge page splits its mapping and is reported as one page,
// not as 2 MiB; so cold memory stays at 2 MiB, and hot memory comes down to
// 4 KiB, by itself. What was split stays so: the kernel does not collapse a
// range with armed pages, and to disarm, collapse and arm it takes the guest
// 5 ms and sends 2 MiB again. That is not done: it pays only after thousands of
// epochs.
//
// Hence one walk, by the fast path. Pages that were thrown away (MADV_DONTNEED)
// are in it, because the fast path takes an empty entry for a written one, and
// this kernel a page-table hole too (holesAreWritten tries; kernels for which
// that is not so get a second walk). A shared block's pages keep their mark when
// they are punched out of the file: there the file's time of change tells
// whether a second walk is due. Long stretches where nothing ever was are left
// unarmed and asked for what came to be there; memory that a guest begins to use
// may so come as huge pages, and is then reported by 2 MiB once. Pieces are
// scanned, and much is copied, by several threads (crew).
//
// What this cannot see: writes that do not go through QEMU's page tables, that
// is by other processes that map the same memory (vhost-user), by devices
// (VFIO), and by block I/O into pages that were pinned before they were
// re-armed (O_DIRECT requests in flight during a Collect on a running guest).
package guestram

import (
	"context"
	"errors"
	"fmt"
)

// PageSize is the unit of tracking and copying, in bytes.
const PageSize = 4096

const (
	// maxBlocks bounds how many RAM blocks a QEMU may have here. A guest
	// with 256 hot-plugged DIMMs and a rich set of devices stays below it.
	maxBlocks = 4096
	// maxBlockBytes bounds one block; Range.Pages and x86 addressing allow
	// no more than this anyway.
	maxBlockBytes = 1 << 43
	// idstrBytes is the size of RAMBlock.idstr, its terminating NUL included.
	idstrBytes = 256
)

var (
	// ErrUnsupported is matched by every error that says that this host or
	// this guest cannot be tracked. See UnsupportedError.
	ErrUnsupported = errors.New("not supported")
	// ErrLayout means that what QEMU's monitor says of its RAM blocks and
	// what its memory holds do not agree.
	ErrLayout = errors.New("RAM block layout does not match")
	// ErrNoSymbol means that the QEMU binary exports no ram_list and its
	// monitor prints no host addresses (before 8.2), so that blocks cannot
	// be found.
	ErrNoSymbol = errors.New("QEMU binary has no ram_list symbol")
)

// UnsupportedError tells what cannot be tracked, and why. It matches
// ErrUnsupported.
type UnsupportedError struct {
	What   string // "RAM block ram-node0", "userfaultfd write tracking"
	Reason string
}

func (e *UnsupportedError) Error() string { return e.What + ": " + e.Reason }

// Is makes errors.Is(err, ErrUnsupported) true.
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }

// Block is one RAM block of a QEMU process. Sizes and addresses are in bytes.
type Block struct {
	Name       string // QEMU's idstr, as migration streams name it
	Host       uint64 // address in QEMU's address space
	Used, Max  uint64 // Used <= Max; they differ for resizable blocks
	PageSize   uint64 // of the backing; 4096 unless hugetlb
	Migratable bool   // part of a migration stream
	Shared     bool   // mapped MAP_SHARED
	MemfdInode uint64 // inode of the shared backing, 0 when not Shared
	MemfdDev   uint64 // device of that inode
	FileOff    uint64 // where in the backing the block starts
}

// Range is a run of pages of one block.
type Range struct {
	Block uint16 // index into the slice of blocks the tracker was made with
	Pages uint32 // of 4096 bytes
	Off   uint64 // bytes from the start of the block
}

// Bytes returns the length of r in bytes.
func (r Range) Bytes() int { return int(r.Pages) * PageSize }

// End returns the offset of the first byte behind r.
func (r Range) End() uint64 { return r.Off + uint64(r.Pages)*PageSize }

// HMP runs one human monitor command and returns what it prints.
type HMP func(ctx context.Context, cmd string) (string, error)

// Tracker notes written pages. It is not safe for concurrent use.
type Tracker interface {
	// Collect appends to dst the ranges written since the last Collect and
	// re-arms them atomically. The first Collect reports every page that
	// holds anything; pages it leaves out read as zero. A page whose content
	// was thrown away (balloon, MADV_DONTNEED, punched hole) counts as
	// written. A page that was written while its block was looked at may be in
	// two ranges. Ranges returned beside an error are re-armed already: they
	// must not be lost.
	Collect(dst []Range) ([]Range, error)
	// Close ends the tracking and leaves no trace in the process. It is
	// idempotent.
	Close() error
}

// Blocks returns the RAM blocks of the QEMU with the given pid. Blocks without
// a name are left out: QEMU gives a block its name and marks it migratable in
// one step (vmstate_register_ram in softmmu/memory.c), so they are never part
// of a migration stream. It fails with ErrUnsupported if a migratable block
// cannot be tracked.
func Blocks(ctx context.Context, pid int, hmp HMP) ([]Block, error) {
	text, err := hmp(ctx, "info ramblock")
	if err != nil {
		return nil, fmt.Errorf("info ramblock: %w", err)
	}
	rows, err := parseRamblock(text)
	if err != nil {
		return nil, err
	}
	var blocks []Block
	if rows.hasHost {
		blocks = rows.blocks()
	} else {
		walked, err := walkRAMList(pid)
		if err != nil {
			return nil, err
		}
		if blocks, err = crossCheck(rows, walked); err != nil {
			return nil, err
		}
	}
	if err := attachMappings(pid, blocks); err != nil {
		return nil, err
	}
	for i := range blocks {
		if err := trackable(&blocks[i]); err != nil {
			return nil, err
		}
	}
	return blocks, nil
}

// trackable checks what is needed of a block that is to be replicated.
func trackable(b *Block) error {
	if !b.Migratable {
		return nil
	}
	what := "RAM block " + b.Name
	switch {
	case b.PageSize != PageSize:
		return &UnsupportedError{what, fmt.Sprintf("pages of %d bytes (hugetlb); only guests with ordinary pages can be protected", b.PageSize)}
	case b.Host == 0 || b.Host%PageSize != 0 || b.Used%PageSize != 0:
		return fmt.Errorf("%s: host %#x, used %#x: %w", what, b.Host, b.Used, ErrLayout)
	case b.Used > b.Max || b.Max > maxBlockBytes:
		return fmt.Errorf("%s: used %#x, max %#x: %w", what, b.Used, b.Max, ErrLayout)
	}
	return nil
}
