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
	pages, err = s.live(ctx, emit)
	s.livePages += pages
	return pages, err
}

func (s *Session) live(ctx context.Context, emit func(*Batch) error) (pages int, err error) {
	if s.closed {
		return 0, os.ErrClosed
	}
	if s.pipe.gone() {
		return 0, ErrGuestGone
	}
	s.scratch = append(s.scratch[:0], s.carry...)
	s.carry = s.carry[:0]
	if s.o.PinnedIO {
		var ph Phases
		_, err = s.underBrake(ctx, &ph, func(func() bool) (err error) {
			s.scratch, err = s.tracker.Collect(s.scratch)
			return err
		}, nil)
		s.livePausedNs += ph.PausedNs
	} else {
		s.scratch, err = s.tracker.Collect(s.scratch)
	}
	rs := s.scratch
	if err != nil {
		s.keep(rs)
		return 0, s.explain(fmt.Errorf("live pass: %w", err))
	}
	rs = once(rs)
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
	b := a.fill(&Batch{}, head, n)
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
// monotonic clock, and how much was copied. Stop, AtPause, Scan, Copy, Hold, Clock
// and Device follow each other and make up Total.
type Phases struct {
	StopNs    int64 // from the command to the first byte: monitor, stop, disks
	AtPauseNs int64 // in Options.AtPause
	ScanNs    int64
	CopyNs    int64
	HoldNs    int64 // for which a throttled guest was held on after that
	ClockNs   int64 // for which Options.Clock was waited for after that
	DeviceNs  int64 // from letting go to the monitor's reply
	TotalNs   int64
	// PausedNs is from the first byte to the reply. The guest's own pause is
	// longer by what QEMU needs from stopping to the first byte, and shorter
	// by the way of the reply; it is never longer than TotalNs.
	PausedNs int64
	// LivePausedNs is for how long live passes had stopped the guest before, with
	// Options.PinnedIO only.
	LivePausedNs int64
	Pages        int
	DeviceBytes  int
}

// CheckpointOptions of one checkpoint. The zero value is good.
type CheckpointOptions struct {
	// Early, if not nil, gets the Batch as soon as it is copied, so that it can
	// be on its way while QEMU still writes its device state; it is called
	// while the guest is held, and must not block. Should the checkpoint fail
	// after that, its pages are part of the next one all the same: a later copy
	// of a page is the one that counts.
	Early func(*Batch)
	// Whole, if not nil, may get the device state before Checkpoint returns,
	// when it is all there and only the monitor's word is awaited; it must not
	// block. Should Checkpoint return an error after that, the device state
	// must not be used: what was made of it is to be given up.
	Whole func(device []byte)
	// Hold is for how long the guest is held at least, from the moment at which
	// it is known to stand still: the brake on a guest that writes faster than
	// its pages can be sent. It is bounded by Options.PauseMax, ends at once
	// when QEMU ends, and begins to cost only when all is copied and Early has
	// returned. 0 holds no longer than the copy takes.
	Hold time.Duration
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
func (s *Session) Checkpoint(ctx context.Context, o CheckpointOptions) (*Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	a, err := s.arenas.checkpoint.get(ctx)
	if err != nil {
		return nil, err
	}
	w := s.prepare(a, o)
	c := w.c
	c.Device, err = s.underBrake(ctx, &c.Phases, w.do, o.Whole)
	s.carry = s.carry[:0]
	if err != nil {
		s.keep(w.rs)
		if !w.gone {
			a.fill(w.batch, w.rs, w.copied).Free()
		}
		return nil, s.explain(fmt.Errorf("checkpoint: %w", err))
	}
	s.copiedBytes, s.rangesCopied = w.copied, len(w.rs)
	if !w.gone {
		c.Batch = a.fill(w.batch, w.rs, w.copied)
	}
	c.Phases.Pages, c.Phases.DeviceBytes = w.copied/guestram.PageSize, len(c.Device)
	s.recent = [recentEpochs]int{s.recent[1], s.livePages + c.Phases.Pages}
	c.Phases.LivePausedNs = s.livePausedNs
	s.epochs, s.livePages, s.converged, s.livePausedNs = min(s.epochs+1, recentEpochs), 0, 0, 0
	_ = s.arenas.tidy(time.Now()) // what fails only costs memory
	return c, nil
}

// rangesRoom is how many ranges the next pause gets room for beforehand: twice
// what the last one had, and those that are kept for it.
func (s *Session) rangesRoom() int { return max(rangesRoomMin, 2*s.rangesCopied) + 2*len(s.carry) }

// rangesRoomMin is 8,000 pages far from each other.
const rangesRoomMin = 8192

// pauseWork is what a checkpoint does while the guest stands still. All that it
// needs is there before: it allocates nothing, but for ranges if there are more
// than twice as many as in the last pause.
type pauseWork struct {
	s      *Session
	o      CheckpointOptions
	arena  *arena
	c      *Checkpoint
	batch  *Batch
	rs     []guestram.Range
	copied int  // bytes
	gone   bool // the batch was handed out
}

func (s *Session) prepare(a *arena, o CheckpointOptions) *pauseWork {
	a.warmUp(max(arenaWarmBytes, 2*s.copiedBytes))
	w := &pauseWork{s: s, o: o, arena: a, c: &Checkpoint{}, batch: &Batch{}}
	w.rs = append(slices.Grow(a.ranges[:0], s.rangesRoom()), s.carry...)
	s.own = slices.Grow(s.own[:0], cap(w.rs))
	return w
}

func (w *pauseWork) do(overdue func() bool) (err error) {
	s, ph := w.s, &w.c.Phases
	still := time.Now()
	if s.o.AtPause != nil {
		s.o.AtPause()
	}
	start := time.Now()
	ph.AtPauseNs = start.Sub(still).Nanoseconds()
	w.rs, err = s.tracker.Collect(w.rs)
	scanned := time.Now()
	ph.ScanNs = scanned.Sub(start).Nanoseconds()
	if err == nil {
		w.rs = once(w.rs)
	}
	if err == nil {
		w.copied, err = s.copyPaused(w.rs, w.arena.mem, overdue)
	}
	if err == nil && w.o.Early != nil && w.copied > 0 {
		w.gone = true
		s.own = append(s.own[:0], w.rs...) // who has the batch may free it any time
		w.o.Early(w.arena.fill(w.batch, w.rs, w.copied))
		w.rs = s.own
	}
	copied := time.Now()
	ph.CopyNs = copied.Sub(scanned).Nanoseconds()
	if err == nil && w.o.Hold > 0 {
		err = s.pipe.hold(min(w.o.Hold, s.o.PauseMax-s.o.PauseMax/8) - copied.Sub(still))
		ph.HoldNs = time.Since(copied).Nanoseconds()
	}
	return err
}

// copyChunkRanges is after how many ranges, some milliseconds, the watchdog is
// looked at.
const copyChunkRanges = 4096

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
