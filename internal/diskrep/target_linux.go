package diskrep

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Target keeps the disks of one guest on the backup. All its methods may be
// called concurrently, but writes count in the order in which they are given:
// Stage and EndEpoch belong to one goroutine.
//
// The life of an epoch's writes:
//
//	Stage ──▶ journal and memory
//	EndEpoch ──▶ its end in the journal [fsync: fdatasync] ──▶ may be acknowledged
//	Commit ──▶ fdatasync of the journal ──▶ images ──▶ memory is freed
//	            … the journal is long, or nothing happens: fdatasync of the
//	              images ──▶ state: first segment needed ──▶ segments unlinked
//
// What a death at any instant leaves. "Killed" is this process; what it gave to
// the kernel stays. A power cut takes, of what was not synced, any part.
//
//	at                         killed                          power cut
//	Stage                      no end: void                    the same
//	EndEpoch, before its end   the same                        the same
//	after its end was written  whole: applied by OpenTarget    memory: perhaps lost, with all behind it
//	                                                           fsync, once EndEpoch returned: applied
//	images are being written   applied again, all of it, in    the same: the journal up to the last epoch
//	                           order: same result              that touches the images was synced before
//	images are synced          the same                        the same
//	state says "first: n"      older segments are void: what   the same; it was synced before the first
//	                           they hold is in the images      name was removed, and whatever names come back
//	OpenTarget applies         it does so again                the same: it syncs the journal first
//	Settle, before the state   applied by OpenTarget           fsync: the same. memory: it did not wait for
//	                                                           the journal, so the images may be torn
//	Settle, after the state    the journal is void, the        the same: the state is synced under either
//	                           images are the guest's          policy, before Settle returns. memory: until
//	                                                           Sync the images may be torn, and Whole says so
//	initial sync               not whole, and Whole says so    the same: the state says it before the first write
type Target struct {
	o         TargetOptions
	log       *slog.Logger
	images    []*image
	j         *journal
	journalOn uint64 // file system of the journal

	staging  sync.Mutex    // whoever appends to the journal
	applying chan struct{} // holds one token: whoever writes epochs into the images takes it
	wake     chan struct{} // the applier looks again
	stop     chan struct{} // the applier applies what is committed, and ends
	stopOnce sync.Once
	stopped  chan struct{}
	work     sync.WaitGroup // of Settle and Sync

	mu        sync.Mutex
	changed   *sync.Cond // applied, err or phase
	phase     phase
	err       error    // the first failure
	open      *epoch   // arrives now; nil: nothing of it is here yet
	epochs    []*epoch // whole and not applied, in order
	ended     uint64
	committed uint64
	applied   uint64
	dropping  *uint64 // a Drop that is not in the journal yet
	waiting   []int64 // by disk: bytes that are not applied, in blocks of a file system
	held      int64   // bytes of data in memory
	behind    int64   // bytes of data that are committed and not applied
	imageSync syncStats
	settle    *settlement

	closeOnce sync.Once
	closeErr  error
}

// phase is the life of a Target:
//
//	initial ──EndInitial──▶ staging ──Settle──▶ settled
//	   └───────────┬───────────┴──────────────────┘
//	               └──Close──▶ closed
type phase int

const (
	phaseInitial phase = iota + 1
	phaseStaging
	phaseSettled // from the moment Settle begins
	phaseClosed
)

// epoch is one that is staged.
type epoch struct {
	number      uint64
	writes      []staged
	bytes       int64 // data
	end         int64 // position in the journal behind it
	committedAt time.Time
}

// staged is a write that waits. Its data may be in the journal alone.
type staged struct {
	Write
	at      int64 // position of its data in the journal
	spilled bool
}

const (
	// applyPace is the least time between two syncs of the journal under
	// DurabilityMemory: many epochs share one, and the disk has other work.
	applyPace = 50 * time.Millisecond
	// hurryBytes may wait for that; more does not.
	hurryBytes = 32 << 20
	// heldBytesMax bounds the data in memory. What comes then is read back
	// from the journal when it is applied.
	heldBytesMax = 256 << 20
	// idleAfter is when the images are synced and the journal is emptied,
	// though it is short.
	idleAfter = 2 * time.Second
	// segmentsPerJournal: the journal is emptied by whole segments.
	segmentsPerJournal = 4
	initialEpoch       = 1
)

// ready tells what the Target takes now. mu is held.
func (t *Target) ready(want phase) error {
	switch {
	case t.phase == phaseClosed:
		return ErrClosed
	case t.phase == phaseSettled:
		return ErrSettled
	case t.err != nil:
		return t.err
	case t.phase != want && want == phaseInitial:
		return errors.New("the initial copy of the disks is over")
	case t.phase != want:
		return errors.New("the initial copy of the disks is not complete")
	}
	return nil
}

// fail keeps the first failure, and tells of it.
func (t *Target) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return
	}
	t.err = err
	t.changed.Broadcast()
	t.log.Error("disks are not replicated any more", "err", err)
	if t.o.Failed != nil {
		go t.o.Failed(err)
	}
}

// Fresh tells that the image of a disk reads as zeros: it was made just now,
// or nothing was ever written to it.
func (t *Target) Fresh(disk int) bool { return t.images[disk].fresh }

// Whole tells that the images, together with what the journal held, were those
// of some epoch when the Target was opened, and are again since EndInitial
// once its writes are on disk. They are not after an initial copy that did not
// end, and after a power cut that followed a Settle under DurabilityMemory.
func (t *Target) Whole() bool { return t.j.whole() }

// WriteInitial writes a part of the first epoch into the images. It owns ws,
// and has freed them when it returns.
func (t *Target) WriteInitial(ws []Write) error {
	defer freeWrites(ws)
	t.mu.Lock()
	err := t.ready(phaseInitial)
	t.mu.Unlock()
	for i := range ws {
		err = errors.Join(err, ws[i].check(t.o.Disks))
	}
	if err != nil || len(ws) == 0 {
		return err
	}
	// On disk before the first write: what is there now is nobody's disk.
	if err := t.j.writeState(func(s *slot) { s.whole = false }); err != nil {
		return err
	}
	var g gather
	for _, w := range ws {
		if err := t.put(&g, staged{Write: w}); err != nil {
			return err
		}
	}
	return g.flush()
}

// EndInitial says that the first epoch is here. It is as durable as the policy
// says when it returns.
func (t *Target) EndInitial() error {
	t.mu.Lock()
	err := t.ready(phaseInitial)
	t.mu.Unlock()
	if err != nil {
		return err
	}
	if t.o.Durability == DurabilityFsync {
		if err := t.flushImages(); err != nil {
			return err
		}
		if err := t.j.writeState(func(s *slot) { s.whole = true }); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ready(phaseInitial); err != nil {
		return err
	}
	t.phase = phaseStaging
	t.ended, t.committed, t.applied = initialEpoch, initialEpoch, initialEpoch
	t.nudge() // memory: the applier syncs the images
	return nil
}

// Stage takes a part of the epoch that arrives now, into the journal and into
// memory. It owns ws: their data is freed when it is applied, or forgotten.
func (t *Target) Stage(number uint64, ws []Write) error {
	if err := t.stage(number, ws); err != nil {
		freeWrites(ws)
		return fmt.Errorf("disk writes of epoch %d: %w", number, err)
	}
	return nil
}

func (t *Target) stage(number uint64, ws []Write) error {
	for i := range ws {
		if err := ws[i].check(t.o.Disks); err != nil {
			return err
		}
	}
	t.staging.Lock()
	defer t.staging.Unlock()
	e, err := t.arriving(number, len(ws) > 0)
	if err != nil || len(ws) == 0 {
		return err
	}
	if err := t.journalDrop(); err != nil {
		return err
	}
	parts := split(ws)
	at, err := t.j.append(number, parts)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open != e {
		return errDropped
	}
	total := int64(0)
	for i := range parts {
		total += int64(len(parts[i].Data))
	}
	// All of a call or nothing: its writes may share a buffer.
	spill := t.held+total > t.o.held
	for i := range parts {
		w := staged{Write: parts[i], at: at[i]}
		if len(w.Data) > 0 {
			t.waiting[w.Disk] += blocksOf(w.Off, w.Len)
			w.spilled = spill
		}
		if spill {
			w.Data, w.Release = nil, nil
		}
		e.writes = append(e.writes, w)
	}
	e.bytes += total
	if spill {
		freeWrites(ws)
	} else {
		t.held += total
	}
	return nil
}

var errDropped = errors.New("it was dropped meanwhile")

// arriving returns the epoch that a write belongs to; nil, if make is not set
// and it has none so far. Epochs come one after the other.
func (t *Target) arriving(number uint64, mayBegin bool) (*epoch, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ready(phaseStaging); err != nil {
		return nil, err
	}
	switch {
	case number <= t.ended:
		return nil, fmt.Errorf("epoch %d is over", t.ended)
	case t.open != nil && t.open.number != number:
		return nil, fmt.Errorf("epoch %d has not ended", t.open.number)
	case t.open == nil && mayBegin:
		t.open = &epoch{number: number}
	}
	return t.open, nil
}

// split cuts writes into ones that fit into a record.
func split(ws []Write) []Write {
	if !slices.ContainsFunc(ws, func(w Write) bool { return len(w.Data) > recordDataMax }) {
		return ws
	}
	var parts []Write
	for _, w := range ws {
		for len(w.Data) > recordDataMax {
			parts = append(parts, Write{Disk: w.Disk, Off: w.Off, Len: recordDataMax, Data: w.Data[:recordDataMax]})
			w.Off, w.Len, w.Data = w.Off+recordDataMax, w.Len-recordDataMax, w.Data[recordDataMax:]
		}
		parts = append(parts, w) // the last one gives all of them back
	}
	return parts
}

// EndEpoch says that the epoch is whole. It is as durable as the policy says
// when it returns nil, and may be acknowledged: it is sure then that the images
// have room for it. Epochs end in order, and numbers may be left out.
func (t *Target) EndEpoch(number uint64) error {
	if err := t.endEpoch(number); err != nil {
		return fmt.Errorf("end of epoch %d on the disks: %w", number, err)
	}
	return nil
}

func (t *Target) endEpoch(number uint64) error {
	t.staging.Lock()
	defer t.staging.Unlock()
	e, err := t.arriving(number, false)
	if err != nil {
		return err
	}
	// An epoch without a write has no records, but must not end behind others
	// that are not void yet.
	if err := t.journalDrop(); err != nil {
		return err
	}
	if e != nil {
		if err := t.checkRoom(); err != nil {
			return err
		}
		if e.end, err = t.j.endEpoch(number, uint64(len(e.writes))); err != nil {
			return err
		}
	}
	if t.o.Durability == DurabilityFsync {
		if err := t.j.syncAll(); err != nil {
			t.fail(err) // nobody knows what is on disk
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ready(phaseStaging); err != nil {
		return err
	}
	if t.open != e {
		return errDropped
	}
	if e != nil {
		t.epochs, t.open = append(t.epochs, e), nil
	}
	t.ended = number
	// The journal must not grow faster than it is applied. The applier does
	// not depend on us, so this ends.
	for t.err == nil && t.phase == phaseStaging && t.behind > t.o.JournalBytesMax {
		t.changed.Wait()
	}
	return nil
}

// Commit lets an epoch, and all before it, into the images: in order, in the
// background. It must have ended.
func (t *Target) Commit(number uint64) {
	t.mu.Lock()
	beyond := number > t.ended
	if !beyond && number > t.committed {
		t.commit(number)
		t.nudge()
	}
	t.mu.Unlock()
	if beyond {
		t.fail(fmt.Errorf("epoch %d of the disks was committed and is not whole", number))
	}
}

// commit is Commit of an epoch that has ended. mu is held.
func (t *Target) commit(number uint64) {
	now := time.Now()
	for i := len(t.epochs) - 1; i >= 0 && t.epochs[i].number > t.committed; i-- {
		if e := t.epochs[i]; e.number <= number {
			e.committedAt = now
			t.behind += e.bytes
		}
	}
	t.committed = number
	t.advance()
}

// advance notes that the committed epochs without a write are applied. mu is
// held.
func (t *Target) advance() {
	if len(t.epochs) == 0 || t.epochs[0].number > t.committed {
		t.applied = t.committed
	}
}

// nudge wakes the applier.
func (t *Target) nudge() {
	select {
	case t.wake <- struct{}{}:
	default: // it was woken already, and has not looked yet
	}
}
