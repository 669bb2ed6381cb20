// Package capture takes checkpoints of a running QEMU guest: its memory, as
// pages written since the last time, and the state of its devices, both as of
// one instant.
//
// How a checkpoint goes. QEMU's command xen-save-devices-state stops the guest,
// writes the state of its devices to a file and lets the guest go on. The file
// is a pipe of ours, shrunk to one page: it is the brake.
//
//	session                      QEMU
//	   |  xen-save-devices-state   |
//	   |-------------------------->|  stops vCPUs, drains disks
//	   |      first 4 KiB          |
//	   |<--------------------------|  blocked: the pipe is full
//	   |  AtPause; collect, copy   |
//	   |  pages; Early; hold       |
//	   |  grow the pipe, drain     |
//	   |<==========================|  rest of the state
//	   |         reply             |
//	   |<--------------------------|  guest runs
//
// What is done in that time is done by threads, in memory and with structures
// that exist before: see pauseWork. Phases tell what each part took. QEMU goes on
// with its device state meanwhile, until it has filled the pipe, which therefore
// holds half to three quarters of the last one; QEMU writes 32 KiB at a time, so
// that the first bytes come when so much of it is there.
//
// If we die anywhere in this, the pipe breaks, QEMU fails the command and
// starts the guest by itself. If the monitor fails us in the middle, we drain
// until query-status tells what became of the guest, and close the pipe if
// nobody ever tells.
//
// The pipe is known to QEMU by the number of a descriptor, and QEMU opens
// /proc/self/fd/NUMBER with O_TRUNC. A number that has come to mean a disk
// image would be the end of that disk. So the number is a high one that QEMU
// itself does not hand out, and before every command it is checked to be our
// pipe.
package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/guestram"
)

// Monitor is QEMU's monitor. Errors of QMP and HMP are taken to mean that the
// outcome of the command is unknown. Every call must end when its context does.
type Monitor interface {
	HMP(ctx context.Context, cmd string) (string, error)
	// QMP returns the member "return" of the answer.
	QMP(ctx context.Context, execute string, args any) (json.RawMessage, error)
	QMPWithFiles(ctx context.Context, execute string, args any, files ...*os.File) (json.RawMessage, error)
}

var (
	// ErrLostPipe means that QEMU no longer holds our pipe under the number
	// we gave it. Nothing was sent. The session must be opened anew.
	ErrLostPipe = errors.New("QEMU no longer holds the checkpoint pipe")
	// ErrGuestGone means that the QEMU process has ended.
	ErrGuestGone = errors.New("QEMU has ended")
	// ErrPauseExceeded means that the guest was let go before its memory was
	// copied, because that took longer than Options.PauseMax.
	ErrPauseExceeded = errors.New("checkpoint took longer than allowed")
	// ErrNoBrake means that the guest went on before we let it: its device
	// state fits into one page. No PC has so little.
	ErrNoBrake = errors.New("guest did not wait for the checkpoint")
	// ErrNotWhole means that QEMU wrote on after its device state had seemed to
	// be all there, and had been handed out.
	ErrNotWhole = errors.New("device state went on after its end")
	// ErrOutcomeUnknown means that the monitor did not tell whether the guest
	// runs, and the pipe was closed to make QEMU let it go.
	ErrOutcomeUnknown = errors.New("monitor does not answer")
	// ErrLayoutChanged means that RAM blocks came, went or were resized.
	ErrLayoutChanged = errors.New("RAM blocks of the guest have changed")
)

// DefaultPauseMax is how long a guest may be held for its memory to be copied
// when Options say nothing else.
const DefaultPauseMax = time.Second

// Options of a session. The zero value is good.
type Options struct {
	// PauseMax bounds the time for which we hold the guest ourselves, that
	// is without QEMU's own time to stop it and to write its device state.
	PauseMax time.Duration
	// PinnedIO says that the guest has disks whose requests write straight
	// into guest pages (cache=none or directsync). Such a write is invisible
	// to the kernel's tracking if it was under way when the page was
	// re-armed. Live then stops the guest for the scan (not for the copy),
	// because stopping waits for all requests.
	PinnedIO bool
	// AtPause, if not nil, is called once in each Checkpoint when the guest
	// is known to stand still, before its memory is looked at. What the guest
	// sent before is part of this checkpoint, whatever comes later is not. It
	// must be quick and must not block; the checkpoint may still fail after it.
	AtPause func()
	// Clock, if not nil, keeps the guest's clock true over the pauses.
	Clock Clock
	// Logger gets what is worth telling about opening, closing and monitor
	// failures; never anything while the guest is held. nil discards.
	Logger *slog.Logger
}

// Clock is told of each time that the guest is stopped, live passes with
// Options.PinnedIO included: in this order, from one goroutine at a time.
type Clock interface {
	// Paused says that the guest stands still; it must not wait.
	Paused()
	// Resuming says that the guest is about to be let go. It may wait, for what
	// Paused began: that is part of the pause.
	Resuming()
	// Resumed says that the guest was let go and that the monitor has told so,
	// or has failed to.
	Resumed()
}

// Session captures one guest. Its methods may be called from any goroutine,
// and wait for each other.
type Session struct {
	pid    int
	mon    Monitor
	o      Options
	log    *slog.Logger
	blocks []guestram.Block

	mu      sync.Mutex
	pipe    *pipe
	tracker guestram.Tracker
	reader  *guestram.Reader
	arenas  *arenas
	scratch []guestram.Range
	carry   []guestram.Range // collected, not delivered
	closed  bool

	deviceBytes int                   // of the last checkpoint
	deviceTail  [deviceTailBytes]byte // of its device state

	// Of the last checkpoint, under pause.
	copiedBytes, rangesCopied int
	own                       []guestram.Range // its ranges, while the batch is out early
	// Pages of the last epochs, live passes included, newest last; of epochs of
	// them; and those of the live passes of the epoch to come.
	recent    [recentEpochs]int
	epochs    int
	livePages int
	converged int // of those, by Converge
	ramPages  int

	livePausedNs int64 // of those, with PinnedIO
}

// Open prepares the guest in process pid for checkpoints and starts to track
// its writes. It first removes what a predecessor that was killed has left in
// QEMU. Errors match guestram.ErrUnsupported when this host or guest cannot be
// captured at all.
func Open(ctx context.Context, pid int, mon Monitor, o Options) (*Session, error) {
	if o.PauseMax <= 0 {
		o.PauseMax = DefaultPauseMax
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := guestram.ProbeUffd(); err != nil {
		return nil, err
	}
	s := &Session{pid: pid, mon: mon, o: o, log: o.Logger.With("qemuPid", pid)}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open capture of process %d: %w", pid, err), s.Close(context.WithoutCancel(ctx)))
	}
	return s, nil
}

func (s *Session) open(ctx context.Context) error {
	blocks, err := migratable(ctx, s.pid, s.mon)
	if err != nil {
		return err
	}
	s.blocks = blocks
	total := 0
	for i := range blocks {
		total += int(blocks[i].Used)
	}
	s.arenas, s.ramPages = newArenas(total), total/guestram.PageSize
	if s.pipe, err = installPipe(ctx, s.pid, s.mon, s.log); err != nil {
		return err
	}
	if s.reader, err = guestram.NewReader(s.pid, blocks); err != nil {
		return err
	}
	s.tracker, err = guestram.TrackUffd(ctx, s.pid, blocks)
	return err
}

func migratable(ctx context.Context, pid int, mon Monitor) ([]guestram.Block, error) {
	all, err := guestram.Blocks(ctx, pid, mon.HMP)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(b guestram.Block) bool { return !b.Migratable }), nil
}

// Blocks returns the RAM blocks that are captured; Range.Block is an index into
// it. The caller must not change it.
func (s *Session) Blocks() []guestram.Block { return s.blocks }

// CheckLayout asks QEMU for its RAM blocks again and fails with
// ErrLayoutChanged if they are not those of Open (hot-plug, or a firmware table
// that was resized by a guest reset). It costs a few milliseconds of QEMU.
func (s *Session) CheckLayout(ctx context.Context) error {
	now, err := migratable(ctx, s.pid, s.mon)
	if err != nil {
		return s.explain(err)
	}
	if !slices.Equal(now, s.blocks) {
		return ErrLayoutChanged
	}
	return nil
}

// Keep puts ranges back that were handed out but did not arrive: they are part
// of the next Live or Checkpoint.
func (s *Session) Keep(rs []guestram.Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(rs)
}

func (s *Session) keep(rs []guestram.Range) { s.carry = normalize(append(s.carry, rs...)) }

// Close ends the session and leaves nothing in QEMU. It is idempotent. Batches
// that are still out stay valid until they are freed.
func (s *Session) Close(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if s.tracker != nil {
		errs = append(errs, s.tracker.Close())
	}
	if s.reader != nil {
		errs = append(errs, s.reader.Close())
	}
	if s.pipe != nil {
		errs = append(errs, s.pipe.remove(ctx))
	}
	if s.arenas != nil {
		errs = append(errs, s.arenas.close())
	}
	return errors.Join(errs...)
}

// dyingMs is how long a QEMU whose connections broke may take to be gone.
const dyingMs = 200

// explain turns an error into ErrGuestGone if that is what is behind it.
func (s *Session) explain(err error) error {
	if err == nil || errors.Is(err, ErrGuestGone) {
		return err
	}
	wait := dyingMs
	for _, known := range []error{ErrPauseExceeded, ErrNoBrake, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			wait = 0
		}
	}
	if s.pipe.pidfd >= 0 && !s.pipe.waitGone(wait) && !Ending(s.pid) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrGuestGone, err)
}

// once returns rs with each page in it once. What is kept from before, and pages that
// were written while their block was looked at, the tracker reports beside each
// other. Who reads a message of pages straight into their places must not find
// one twice: there would be one content for two checksums.
func once(rs []guestram.Range) []guestram.Range {
	for i := 1; i < len(rs); i++ {
		if a, b := &rs[i-1], &rs[i]; b.Block < a.Block || b.Block == a.Block && b.Off < a.End() {
			return normalize(rs)
		}
	}
	return rs
}

// normalize sorts rs and merges ranges that touch or overlap.
func normalize(rs []guestram.Range) []guestram.Range {
	slices.SortFunc(rs, func(a, b guestram.Range) int {
		switch {
		case a.Block != b.Block:
			return int(a.Block) - int(b.Block)
		case a.Off < b.Off:
			return -1
		case a.Off > b.Off:
			return 1
		}
		return 0
	})
	out := rs[:0]
	for _, r := range rs {
		if n := len(out); n > 0 && out[n-1].Block == r.Block && r.Off <= out[n-1].End() {
			if r.End() > out[n-1].End() {
				out[n-1].Pages = uint32((r.End() - out[n-1].Off) / guestram.PageSize)
			}
			continue
		}
		out = append(out, r)
	}
	return out
}
