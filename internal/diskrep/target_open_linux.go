package diskrep

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// OpenTarget opens the images, and makes those that are missing: sparse, mode
// 0600, in a directory that is there. It refuses ones of another size (a block
// device may be larger). What a killed predecessor left in the journal is
// applied first, as far as epochs are whole. The journal's directory and the
// images are locked until Close (ErrLocked).
func OpenTarget(ctx context.Context, o TargetOptions) (*Target, error) {
	t, err := openTarget(ctx, o, true)
	if err != nil {
		return nil, fmt.Errorf("open disks: %w", err)
	}
	return t, nil
}

// Recover applies what a killed predecessor left in the journal, and empties
// it; for a daemon that starts. It makes no image, and does nothing where there
// is no journal.
func Recover(ctx context.Context, o TargetOptions) error {
	left, err := leftBehind(o.JournalDir)
	if err == nil && !left {
		return nil
	}
	var t *Target
	if err == nil {
		t, err = openTarget(ctx, o, false)
	}
	if err == nil {
		err = t.Close()
	}
	if err != nil {
		return fmt.Errorf("recover disks: %w", err)
	}
	return nil
}

// leftBehind tells whether there are segments in dir that may be alive.
func leftBehind(dir string) (bool, error) {
	numbers, err := segmentNumbers(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(numbers) > 0, err
}

// RemoveJournal removes the directory of a journal, and whatever is in the
// journal. It fails while a Target uses it; there being none is no error.
func RemoveJournal(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := openJournalDir(dir, nil)
	if err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	defer lock.Close()
	numbers, err := segmentNumbers(dir)
	if err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	// Youngest first: what is left, should we be killed, is a journal that ends
	// early. The state goes last: segments without one are taken for damage.
	slices.Reverse(numbers)
	var errs []error
	for _, n := range numbers {
		errs = append(errs, os.Remove(filepath.Join(dir, segmentName(n))))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	if err := os.Remove(filepath.Join(dir, stateName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove journal: %w", err)
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	return syncDir(filepath.Dir(dir), nil)
}

// entriesMax bounds the names in a journal's directory.
const entriesMax = 1 << 16

// segmentNumbers lists the segments in dir, in order.
func segmentNumbers(dir string) ([]uint64, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(entriesMax)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(names) == entriesMax {
		return nil, fmt.Errorf("%s holds %d names or more: that is not a journal", dir, entriesMax)
	}
	var numbers []uint64
	for _, name := range names {
		hex, ok := strings.CutPrefix(name, segmentPrefix)
		if n, err := strconv.ParseUint(hex, 16, 64); ok && err == nil && segmentName(n) == name {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func (o *TargetOptions) check() error {
	switch {
	case len(o.Disks) == 0 || len(o.Disks) > DisksMax:
		return fmt.Errorf("%d disks: at least one and at most %d", len(o.Disks), DisksMax)
	case len(o.Paths) != len(o.Disks):
		return fmt.Errorf("%d disks and %d paths", len(o.Disks), len(o.Paths))
	case o.Durability != DurabilityMemory && o.Durability != DurabilityFsync:
		return errors.New(o.Durability.String())
	}
	for i, d := range o.Disks {
		if d.SizeBytes <= 0 {
			return fmt.Errorf("disk %s has %d bytes", d.Name, d.SizeBytes)
		}
		if slices.Contains(o.Paths[:i], o.Paths[i]) {
			return fmt.Errorf("disk %s: another disk has its image at %s, too; place it elsewhere", d.Name, o.Paths[i])
		}
	}
	if o.JournalBytesMax <= 0 {
		o.JournalBytesMax = journalBytesDefault
	}
	if o.pace == 0 {
		o.pace = applyPace
	}
	if o.held == 0 {
		o.held = heldBytesMax
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func openTarget(ctx context.Context, o TargetOptions, mayMake bool) (_ *Target, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	t := &Target{
		o: o, log: o.Log, waiting: make([]int64, len(o.Disks)), phase: phaseInitial,
		applying: make(chan struct{}, 1), wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	t.changed = sync.NewCond(&t.mu)
	lock, err := openJournalDir(o.JournalDir, o.hook)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	t.j = &journal{dir: o.JournalDir, hook: o.hook, lock: lock, segment: max(o.JournalBytesMax/segmentsPerJournal, 1)}
	defer func() {
		if err != nil {
			t.j.close()
			for _, im := range t.images {
				im.f.Close()
			}
		}
	}()
	info, err := lock.Stat()
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	t.journalOn = deviceOf(info)
	var was slot
	var found bool
	if t.j.state, was, found, err = openState(o.JournalDir, o.hook); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	t.j.slot = was
	numbers, err := segmentNumbers(o.JournalDir)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if len(numbers) > 0 && !found {
		return nil, fmt.Errorf("journal %s has segments and no state: it is damaged; remove it, the next initial copy makes the disks equal", o.JournalDir)
	}
	whole, err := t.survey(ctx, was, numbers)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", o.JournalDir, err)
	}
	if err := t.openImages(mayMake); err != nil {
		return nil, err
	}
	if err := t.replay(ctx, was, numbers, whole); err != nil {
		return nil, fmt.Errorf("journal %s: its epochs cannot be applied: %w", o.JournalDir, err)
	}
	t.j.next = was.first + 1
	if n := len(numbers); n > 0 {
		t.j.next = max(t.j.next, numbers[n-1]+1)
	}
	disks := digest(o.Disks, o.Paths)
	if err := t.j.begin(disks, t.j.whole() && was.disks == disks); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	for _, n := range numbers {
		if err := removeFile(filepath.Join(o.JournalDir, segmentName(n)), o.hook); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	go t.run()
	return t, nil
}

// openImages opens the images, and makes missing ones if it may.
func (t *Target) openImages(mayMake bool) error {
	for i, d := range t.o.Disks {
		path := t.o.Paths[i]
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && mayMake {
			// Before it is made: zeros are no epoch's disk.
			if err := t.j.writeState(func(s *slot) { s.whole = false }); err != nil {
				return fmt.Errorf("journal: %w", err)
			}
		}
		im, err := openImage(d, path, mayMake, t.o.hook)
		if err != nil {
			return err
		}
		t.images = append(t.images, im)
	}
	return nil
}

// survey finds the whole epochs that a predecessor left.
func (t *Target) survey(ctx context.Context, was slot, numbers []uint64) ([]span, error) {
	c := census{disks: t.o.Disks}
	foreign := was.disks != digest(t.o.Disks, t.o.Paths)
	if foreign {
		c.disks = nil
	}
	torn, err := t.readJournal(ctx, was, numbers, func(r record, _ []byte) error { return c.see(r) })
	if err != nil || len(c.whole) == 0 {
		return nil, err
	}
	if foreign {
		return nil, fmt.Errorf("%w, or of other places of them; recover it with those, or remove it", ErrForeignJournal)
	}
	t.log.Info("disks: applying what a predecessor left in the journal", "dir", t.o.JournalDir,
		"epochs", len(c.whole), "last", c.last(), "end", torn)
	return c.whole, nil
}

// replay applies whole epochs. It changes nothing of the journal, so it may be
// cut short anywhere, and done again.
func (t *Target) replay(ctx context.Context, was slot, numbers []uint64, whole []span) error {
	if len(whole) == 0 {
		return nil
	}
	// The images must not run ahead of what a power cut leaves of the journal.
	for _, n := range numbers {
		if err := t.syncOld(n); err != nil {
			return err
		}
	}
	if err := syncDir(t.o.JournalDir, t.o.hook); err != nil {
		return err
	}
	at := uint64(0)
	_, err := t.readJournal(ctx, was, numbers, func(r record, data []byte) error {
		here := at
		at++
		for len(whole) > 0 && here >= whole[0].to {
			whole = whole[1:]
		}
		if r.kind != recordWrite || len(whole) == 0 || here < whole[0].from {
			return nil
		}
		w := Write{Disk: int(r.disk), Off: int64(r.off), Len: int64(r.len)}
		if r.flags&recordZero == 0 {
			w.Data = data
		}
		t.images[w.Disk].fresh = false
		return t.images[w.Disk].put(w)
	})
	if err != nil {
		return err
	}
	return t.flushImages()
}

// readJournal gives all records to visit, up to the first that is torn or
// wrong. torn says why they end there, nil if it is where the journal ends.
func (t *Target) readJournal(ctx context.Context, was slot, numbers []uint64, visit func(record, []byte) error) (torn, err error) {
	numbers = slices.DeleteFunc(slices.Clone(numbers), func(n uint64) bool { return was.journal == 0 || n < was.first })
	want := segmentHead{journal: was.journal, number: was.first}
	for i, n := range numbers {
		if n != want.number {
			return fmt.Errorf("segment %d is missing", want.number), nil
		}
		f, size, err := t.openOld(n)
		if err != nil {
			return nil, err
		}
		chain, err := readSegment(bufio.NewReaderSize(f, 256<<10), size, want, i == 0, func(r record, data []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return visit(r, data)
		})
		f.Close()
		if errors.Is(err, errTorn) {
			return fmt.Errorf("segment %d: %w", n, err), nil
		}
		if err != nil {
			return nil, fmt.Errorf("segment %d: %w", n, err)
		}
		want.chain, want.number = chain, n+1
	}
	return nil, nil
}

func (t *Target) openOld(number uint64) (*os.File, int64, error) {
	f, err := os.OpenFile(filepath.Join(t.o.JournalDir, segmentName(number)), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (t *Target) syncOld(number uint64) error {
	f, _, err := t.openOld(number)
	if err != nil {
		return err
	}
	defer f.Close()
	return (&file{f: f, path: f.Name(), hook: t.o.hook}).sync()
}
