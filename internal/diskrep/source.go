package diskrep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The way of a write on the primary:
//
//	QEMU's mirror ─► SourceDisk.Write ─► compare ─► queue ─► pump ─► ship
//	                 (its connection)               (order)  (one goroutine)
//
// A write is answered as soon as it is in the queue: what it costs the guest is
// one trip over a unix socket. That it reaches the backup before anybody hears
// of its epoch is the business of the epoch's acknowledgement.
//
// QEMU drains all its requests before a guest stands still, so that in the
// pause no write of the guest is without an answer. What is in the queue then,
// or left it, is exactly what the guest has written: Cut only has to remember
// how many that were.

const (
	// QueueBytesDefault is SourceOptions.QueueBytesMax if that is zero.
	QueueBytesDefault = 64 << 20
	// StallDefault is SourceOptions.StallMax if that is zero.
	StallDefault = 10 * time.Second
)

var (
	// ErrNoSession: there is no session with a backup, or it is over.
	ErrNoSession = errors.New("no session replicates the disks")
	errNotCut    = errors.New("the disks' writes were not cut")
	errCopying   = errors.New("the disks are still being copied")
)

// SourceOptions bound a Source; zero values mean the defaults.
type SourceOptions struct {
	// QueueBytesMax is how much may wait for the connection. A write that is
	// larger waits until nothing else does.
	QueueBytesMax int64
	// StallMax is how long a write may wait for room in the queue. Then the
	// session is given up, and the write answered as done: the guest goes on.
	StallMax time.Duration
	// Broken is told, at most once for each session and on a goroutine of its
	// own, why the copy on the backup is not whole any more. It may call every
	// method of the Source. A session that ends by End, or by its context, is
	// not broken: whoever ended it knows.
	Broken func(error)
	Log    *slog.Logger
}

func (o SourceOptions) withDefaults() SourceOptions {
	if o.QueueBytesMax <= 0 {
		o.QueueBytesMax = QueueBytesDefault
	}
	if o.StallMax <= 0 {
		o.StallMax = StallDefault
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Source is the primary's side: it takes what QEMU mirrors, and ships it in the
// order in which it came. Between two sessions writes are accepted and
// forgotten: the next session begins with a copy of everything.
//
// All methods may be called at any time from any goroutine, but End and Begin
// not from ship.
type Source struct {
	disks    []Disk
	o        SourceOptions
	backends []*SourceDisk

	life sync.Mutex              // of Begin and End
	cur  atomic.Pointer[session] // the last one begun; nil before the first
}

// NewSource returns a Source without a session.
func NewSource(disks []Disk, o SourceOptions) *Source {
	s := &Source{disks: slices.Clone(disks), o: o.withDefaults()}
	for i := range disks {
		s.backends = append(s.backends, &SourceDisk{source: s, index: i})
	}
	return s
}

// Backend returns what an NBD server exports for a disk.
func (s *Source) Backend(i int) *SourceDisk { return s.backends[i] }

// Begin starts a session, and ends the one before. Of the backup's images
// nothing is known: see Fresh and AddSums.
//
// ship is called from one goroutine, with at most 4 MiB of data and 1024
// writes, none longer than 1 MiB of data or 1 GiB of zeros. It may block, owns
// the writes from then on, also when it fails, and frees each of them once.
// Its failure, and the end of ctx, end the keeping of writes.
//
// A connection of the session before must be closed, and its context done,
// before Begin: what it brings is older than what a new mirror has copied.
func (s *Source) Begin(ctx context.Context, ship func(ctx context.Context, ws []Write) error) {
	s.life.Lock()
	defer s.life.Unlock()
	if old := s.cur.Load(); old != nil {
		old.end()
	}
	n := newSession(ctx, s.disks, s.o, ship)
	s.cur.Store(n)
	go n.pump()
}

// End ends the session: what waits is forgotten and freed, who waits is
// answered, and the context of ship is done. It returns when ship does not run.
// Broken may still be running. Ending twice does nothing.
func (s *Source) End() {
	s.life.Lock()
	defer s.life.Unlock()
	if n := s.cur.Load(); n != nil {
		n.end()
	}
}

// Fresh says that the backup's image of a disk reads as zeros. It must be
// called before the first write of that disk.
func (s *Source) Fresh(disk int) error {
	return s.learn(disk, (*comparer).allFresh)
}

// AddSums says what the backup's image of a disk holds: sums is a sequence of
// Sums, beginning with that of block firstBlock. It must be called before the
// first write of that disk; blocks of which nothing is said are shipped.
func (s *Source) AddSums(disk int, firstBlock uint64, sums []byte) error {
	return s.learn(disk, func(c *comparer) error { return c.add(firstBlock, sums) })
}

func (s *Source) learn(disk int, f func(*comparer) error) error {
	if disk < 0 || disk >= len(s.disks) {
		return fmt.Errorf("the backup's image: disk %d of %d", disk, len(s.disks))
	}
	n := s.cur.Load()
	if n == nil || n.gone.Load() {
		return ErrNoSession
	}
	d := n.disks[disk]
	d.turn.Lock()
	defer d.turn.Unlock()
	c := d.compare.Load()
	if c == nil {
		return fmt.Errorf("disk %s: the backup's image was described after the first epoch", s.disks[disk].Name)
	}
	if err := f(c); err != nil {
		return fmt.Errorf("disk %s: the backup's image: %w", s.disks[disk].Name, err)
	}
	return nil
}

// Copying says that QEMU's mirrors are about to copy all of each disk. A mirror
// of a disk that passes discards on begins with zeros for all of it, and only
// then copies what is there (mirror_dirty_init in QEMU's block/mirror.c). So
// zeros of whole blocks are kept back until it is known what follows them, or
// Copied: else nothing on the backup would be equal any more.
func (s *Source) Copying() {
	if n := s.cur.Load(); n != nil {
		n.copying.Store(true)
		for _, d := range n.disks {
			d.turn.Lock()
			if c := d.compare.Load(); c != nil {
				c.copying = true
			}
			d.turn.Unlock()
		}
	}
}

// Copied says that the mirrors have copied everything: the zeros that were kept
// back are shipped. An epoch can end after that only. It waits for room in the
// queue, as a write does.
func (s *Source) Copied(ctx context.Context) error {
	n := s.cur.Load()
	if n == nil {
		return ErrNoSession
	}
	for i, d := range n.disks {
		var err error
		d.turn.Lock()
		if c := d.compare.Load(); c != nil {
			err = c.settle(i, func(parts []Write) error { return n.put(ctx, s.disks[i].Name, parts) })
			d.stats.compared(0, c.newDebt())
		}
		d.turn.Unlock()
		if err != nil {
			return err
		}
	}
	n.copying.Store(false)
	return n.whole()
}

// Compared ends the comparing, and frees what it needed: the first epoch was
// cut and shipped.
func (s *Source) Compared() {
	n := s.cur.Load()
	if n == nil || n.copying.Load() { // zeros that are owed would be forgotten
		return
	}
	for _, d := range n.disks {
		d.compare.Store(nil)
	}
}

// Cut is called while the guest stands still: what came before is of this
// epoch, what comes later of the next and held back until Advance. It waits for
// nothing and allocates nothing. A second Cut takes the place of the first.
func (s *Source) Cut() {
	if n := s.cur.Load(); n != nil {
		n.cutNow()
	}
}

// Shipped waits until ship has taken everything that came before the cut. It
// returns how many writes it took in this epoch.
func (s *Source) Shipped(ctx context.Context) (writes uint64, err error) {
	n := s.cur.Load()
	if n == nil {
		return 0, ErrNoSession
	}
	if n.copying.Load() {
		return 0, errCopying
	}
	return n.waitShipped(ctx)
}

// Advance says that the end of the epoch was queued behind what ship took: what
// came since the cut is of the next epoch. Shipped must have returned.
func (s *Source) Advance() {
	if n := s.cur.Load(); n != nil {
		n.advance()
	}
}

// Uncut says that the checkpoint failed: the epoch goes on, with what was cut
// and with what came since.
func (s *Source) Uncut() {
	if n := s.cur.Load(); n != nil {
		n.uncut()
	}
}

// Mark says that the mirror broke, so that writes may have passed us by. The
// session can only be ended.
func (s *Source) Mark(err error) {
	if err == nil {
		err = errors.New("the mirror broke")
	}
	if n := s.cur.Load(); n != nil {
		n.fail(err, true)
	}
}

// Whole returns nil while every write since Begin was kept, else why it was
// not.
func (s *Source) Whole() error {
	n := s.cur.Load()
	if n == nil {
		return ErrNoSession
	}
	return n.whole()
}

// DiskStats counts what happened to a disk since Begin. What was written is
// shipped, equal, zero, still in the queue, or was forgotten because the
// session is not whole.
type DiskStats struct {
	Writes       uint64 // requests taken: writes, zeros and trims
	WrittenBytes uint64 // of all of them
	ShippedBytes uint64 // handed to ship as data
	ZeroBytes    uint64 // handed to ship as zeros
	EqualBytes   uint64 // not shipped: the backup has them
}

// Stats returns the counts of each disk, for the session that runs or ran last.
func (s *Source) Stats() []DiskStats {
	stats := make([]DiskStats, len(s.disks))
	if n := s.cur.Load(); n != nil {
		for i, d := range n.disks {
			stats[i] = d.stats.load()
		}
	}
	return stats
}
