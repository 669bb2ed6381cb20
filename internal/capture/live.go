package capture

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/virt-ft/virt-ft/internal/guestram"
)

// Live copies the pages written since the last Live or Checkpoint while the
// guest runs, and hands them out in batches of at most 4 MiB. emit owns the
// batch it is given, also when it fails. The first pass over a guest copies all
// that its memory holds; what it leaves out is zero.
//
// It returns how many pages were handed out. On error all ranges not handed
// out, and those of the batch emit failed with, are kept for the next pass.
//
// At most 8 such batches exist at a time: Live waits until one is freed.
func (s *Session) Live(ctx context.Context, emit func(*Batch) error) (pages int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, os.ErrClosed
	}
	if s.pipe.gone() {
		return 0, ErrGuestGone
	}
	s.scratch = append(s.scratch[:0], s.carry...)
	carried := len(s.carry)
	s.carry = s.carry[:0]
	if s.o.PinnedIO {
		_, err = s.underBrake(ctx, &Phases{}, func(func() bool) (err error) {
			s.scratch, err = s.tracker.Collect(s.scratch)
			return err
		}, nil)
	} else {
		s.scratch, err = s.tracker.Collect(s.scratch)
	}
	rs := s.scratch
	if err != nil {
		s.keep(rs)
		return 0, s.explain(fmt.Errorf("live pass: %w", err))
	}
	if carried > 0 {
		rs = normalize(rs)
	}
	for len(rs) > 0 {
		b, rest, err := s.liveBatch(ctx, rs)
		if err == nil {
			n := len(b.Data) / guestram.PageSize
			if err = emit(b); err == nil {
				pages, rs = pages+n, rest
				continue
			}
		}
		s.keep(rs)
		return pages, s.explain(fmt.Errorf("live pass: %w", err))
	}
	return pages, nil
}

// liveBatch copies the first 4 MiB of rs. rs itself is not changed as long as
// the batch may fail.
func (s *Session) liveBatch(ctx context.Context, rs []guestram.Range) (*Batch, []guestram.Range, error) {
	a, err := s.arenas.live.get(ctx)
	if err != nil {
		return nil, nil, err
	}
	head, rest := cut(a.ranges[:0], rs, liveBytes/guestram.PageSize)
	n, err := s.reader.Read(head, a.mem)
	b := a.batch(head, n)
	if err != nil {
		b.Free()
		return nil, nil, err
	}
	return b, rest, nil
}

// cut moves the first pages of rs to dst, and returns what is left. A range
// that is cut in two costs rs a copy of its tail, so that the caller's rs stays
// whole.
func cut(dst, rs []guestram.Range, pages uint32) (head, rest []guestram.Range) {
	for i, r := range rs {
		if r.Pages > pages {
			if pages > 0 {
				dst = append(dst, guestram.Range{Block: r.Block, Pages: pages, Off: r.Off})
			}
			rest = append(make([]guestram.Range, 0, len(rs)-i), rs[i:]...)
			rest[0].Off += uint64(pages) * guestram.PageSize
			rest[0].Pages -= pages
			return dst, rest
		}
		dst, pages = append(dst, r), pages-r.Pages
	}
	return dst, nil
}

// Checkpoint is a guest at one instant: what its memory holds beyond the passes
// before, and its devices.
type Checkpoint struct {
	Batch  *Batch // nil if it was handed out early
	Device []byte // what xen-save-devices-state wrote; not part of the Batch
	Phases Phases
}

// Phases tell where the time of a checkpoint went, in nanoseconds of the
// monotonic clock, and how much was copied. Stop, Scan, Copy and Device follow
// each other and make up Total, AtPause apart.
type Phases struct {
	StopNs   int64 // from the command to the first byte: monitor, stop, disks
	ScanNs   int64 // AtPause is not counted in it, but in TotalNs and PausedNs
	CopyNs   int64
	DeviceNs int64 // from letting go to the monitor's reply
	TotalNs  int64
	// PausedNs is from the first byte to the reply. The guest's own pause is
	// longer by what QEMU needs from stopping to the first byte, and shorter
	// by the way of the reply; it is never longer than TotalNs.
	PausedNs    int64
	Pages       int
	DeviceBytes int
}

// Checkpoint pauses the guest, copies the pages written since the last pass and
// its device state, and lets it go on. A guest that its user has suspended
// stays so. If memory is not copied within PauseMax, the guest goes on and the
// error is ErrPauseExceeded.
//
// On error the ranges collected are kept and are part of the next Live or
// Checkpoint. ctx is not looked at between pausing and resuming. At most 8
// checkpoints may be out: Checkpoint waits, before the pause, until one is
// freed.
//
// early, if not nil, gets the Batch as soon as it is copied, so that it can be
// on its way while QEMU still writes its device state; it is called while the
// guest is held, and must not block. Should the checkpoint fail after that, its
// pages are part of the next one all the same: a later copy of a page is the
// one that counts.
//
// whole, if not nil, may get the device state before Checkpoint returns, when it
// is all there and only the monitor's word is awaited; it must not block. Should
// Checkpoint return an error after that, the device state must not be used: what
// was made of it is to be given up.
func (s *Session) Checkpoint(ctx context.Context, early func(*Batch), whole func(device []byte)) (*Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	a, err := s.arenas.checkpoint.get(ctx)
	if err != nil {
		return nil, err
	}
	a.warmUp(max(arenaWarmBytes, 2*s.copiedBytes))
	c := &Checkpoint{}
	rs := append(a.ranges[:0], s.carry...)
	carried := len(rs)
	n, gone := 0, false
	c.Device, err = s.underBrake(ctx, &c.Phases, func(overdue func() bool) (err error) {
		if s.o.AtPause != nil {
			s.o.AtPause()
		}
		start := time.Now()
		rs, err = s.tracker.Collect(rs)
		c.Phases.ScanNs = time.Since(start).Nanoseconds()
		if err == nil && carried > 0 {
			rs = normalize(rs)
		}
		if err == nil {
			n, err = s.copyPaused(rs, a.mem, overdue)
		}
		c.Phases.CopyNs = time.Since(start).Nanoseconds() - c.Phases.ScanNs
		if err == nil && early != nil && n > 0 {
			gone = true
			own := slices.Clone(rs) // who has the batch may free it any time
			early(a.batch(rs, n))
			rs = own
		}
		return err
	}, whole)
	s.carry = s.carry[:0]
	if err != nil {
		s.keep(rs)
		if !gone {
			a.batch(rs, n).Free()
		}
		return nil, s.explain(fmt.Errorf("checkpoint: %w", err))
	}
	s.copiedBytes = n
	if !gone {
		c.Batch = a.batch(rs, n)
	}
	c.Phases.Pages, c.Phases.DeviceBytes = n/guestram.PageSize, len(c.Device)
	return c, nil
}

// copyChunkRanges is after how many ranges the watchdog is looked at.
const copyChunkRanges = 1024

// copyPaused copies rs to dst unless the watchdog has let the guest go.
func (s *Session) copyPaused(rs []guestram.Range, dst []byte, overdue func() bool) (n int, err error) {
	for len(rs) > 0 {
		if overdue() {
			return n, ErrPauseExceeded
		}
		k := chunk(rs)
		m, err := s.reader.Read(rs[:k], dst[n:])
		if n += m; err != nil {
			return n, err
		}
		rs = rs[k:]
	}
	return n, nil
}

// chunk is how many of rs to copy in one go: no more than copyChunkRanges, and
// no more once they hold 16 MiB.
func chunk(rs []guestram.Range) int {
	bytes := 0
	for i := range rs[:min(len(rs), copyChunkRanges)] {
		if bytes += rs[i].Bytes(); bytes > 4*liveBytes {
			return i + 1
		}
	}
	return min(len(rs), copyChunkRanges)
}
