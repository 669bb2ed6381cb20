package diskrep

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// journal is the writing side of the format drawn in journal.go. Positions are
// bytes since it was opened; they go on over segments.
//
// append and drop are called by one goroutine at a time; everything else is
// safe beside them.
type journal struct {
	dir     string
	hook    hook
	lock    *os.File
	segment int64 // bytes after which the next epoch begins a new segment

	mu     sync.Mutex
	id     uint64
	segs   []*segment // alive; the last one is appended to
	next   uint64     // number of the next one
	chain  uint32
	end    int64  // position behind the last record
	open   uint64 // epoch that has records and no end; 0: none
	heads  []byte // scratch of append
	broken error  // an append failed: nothing may come behind what it left

	syncing sync.Mutex
	synced  int64 // all before this position is on disk; under mu
	syncs   syncStats

	stating sync.Mutex // one writer of the state at a time
	state   *file
	slot    slot
}

// segment is one file of the journal.
type segment struct {
	f        *file
	number   uint64
	from, to int64  // positions; the header counts
	last     uint64 // latest epoch that has records here
	named    bool   // its name is on disk
}

// syncStats counts what syncs took.
type syncStats struct {
	n        uint64
	all, max time.Duration
}

func (s *syncStats) add(d time.Duration) {
	s.n++
	s.all += d
	s.max = max(s.max, d)
}

func segmentName(number uint64) string { return fmt.Sprintf("%s%016x", segmentPrefix, number) }

// openJournalDir makes the directory if it is missing, and locks it.
func openJournalDir(dir string, h hook) (*os.File, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%q is not an absolute path", dir)
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if err := syncDir(filepath.Dir(dir), h); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openState reads the state, making its file if there is none. A directory
// that never was a journal has none; found is false then.
func openState(dir string, h hook) (f *file, s slot, found bool, err error) {
	path := filepath.Join(dir, stateName)
	osf, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if f, err = createFile(path, h); err != nil {
			return nil, s, false, err
		}
	} else if err != nil {
		return nil, s, false, err
	} else {
		f = &file{f: osf, path: path, hook: h}
	}
	defer func() {
		if err != nil {
			f.f.Close()
		}
	}()
	size, err := f.size()
	if err != nil {
		return nil, s, false, err
	}
	if size < stateBytes { // new, or its making was cut short: no segment was made behind it
		if err := errors.Join(f.write([][]byte{make([]byte, stateBytes)}, 0), f.sync(), syncDir(dir, h)); err != nil {
			return nil, s, false, err
		}
	}
	b := make([]byte, stateBytes)
	if err := f.readFull(b, 0); err != nil {
		return nil, s, false, err
	}
	s, err = decodeState(b)
	if errors.Is(err, errNoSlot) {
		return f, slot{}, false, nil
	}
	return f, s, true, err
}

// writeState makes change true on disk, before it returns. The slot that
// counts now stays until then, so it is all or nothing.
func (j *journal) writeState(change func(*slot)) error {
	j.stating.Lock()
	defer j.stating.Unlock()
	s := j.slot
	change(&s)
	if s == j.slot {
		return nil
	}
	s.count++
	if err := j.state.write([][]byte{s.encode()}, int64(s.count%2)*slotDistance); err != nil {
		return err
	}
	// A page of a file that is there already: no metadata, so this is one
	// write and one flush of the disk.
	if err := j.state.sync(); err != nil {
		return err
	}
	j.slot = s
	return nil
}

// begin makes an empty journal of a new number. What was there is void when it
// returns, and its names are not used again.
func (j *journal) begin(disks [16]byte, whole bool) error {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails, says crypto/rand
	// Never 0. Random, so that no data of a guest looks like a record of it.
	j.id = binary.BigEndian.Uint64(id[:]) | 1
	return j.writeState(func(s *slot) {
		s.journal, s.first, s.disks, s.whole = j.id, j.next, disks, whole
	})
}

// append writes the records of ws, which are checked and hold at most
// recordDataMax each. at[i] is the position of the data of ws[i]. After an
// error nothing can be appended any more.
func (j *journal) append(epoch uint64, ws []Write) (at []int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.room(epoch); err != nil {
		return nil, err
	}
	if need := len(ws) * recordHeader; cap(j.heads) < need {
		j.heads = make([]byte, need)
	}
	at, bufs := make([]int64, len(ws)), make([][]byte, 0, 2*len(ws))
	chain, end := j.chain, j.end
	for i, w := range ws {
		r := record{kind: recordWrite, disk: uint16(w.Disk), epoch: epoch, off: uint64(w.Off), len: uint64(w.Len)}
		if w.Data == nil {
			r.flags = recordZero
		}
		b := j.heads[i*recordHeader : (i+1)*recordHeader]
		chain = r.put(b, chain, w.Data)
		bufs = append(bufs, b)
		end += recordHeader
		at[i] = end
		if len(w.Data) > 0 {
			bufs = append(bufs, w.Data)
			end += int64(len(w.Data))
		}
	}
	if err := j.write(bufs, chain, end); err != nil {
		return nil, err
	}
	j.open = epoch
	s := j.segs[len(j.segs)-1]
	s.last = max(s.last, epoch)
	return at, nil
}

// endEpoch says that the epoch is whole, and returns the position behind it.
func (j *journal) endEpoch(epoch, writes uint64) (int64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.mark(record{kind: recordEnd, epoch: epoch, off: writes}); err != nil {
		return 0, err
	}
	j.open = 0
	return j.end, nil
}

// drop makes the records of later epochs void.
func (j *journal) drop(after uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segs) == 0 || j.segs[len(j.segs)-1].last <= after {
		return nil // there is none: what is alive was whole and stays
	}
	if err := j.mark(record{kind: recordDrop, epoch: after}); err != nil {
		return err
	}
	j.open = 0
	for _, s := range j.segs {
		s.last = min(s.last, after)
	}
	return nil
}

// mark appends a record without data. mu is held.
func (j *journal) mark(r record) error {
	var b [recordHeader]byte
	chain := r.put(b[:], j.chain, nil)
	return j.write([][]byte{b[:]}, chain, j.end+recordHeader)
}

// room sees to it that there is a segment to append to. An epoch stays in one.
// mu is held.
func (j *journal) room(epoch uint64) error {
	if j.broken != nil {
		return j.broken
	}
	if n := len(j.segs); n > 0 {
		s := j.segs[n-1]
		if j.open == epoch || s.to-s.from < j.segment {
			return nil
		}
	}
	f, err := createFile(filepath.Join(j.dir, segmentName(j.next)), j.hook)
	if err != nil {
		j.broken = err
		return err
	}
	b, crc := segmentHead{journal: j.id, number: j.next, chain: j.chain}.encode()
	if err := f.write([][]byte{b}, 0); err != nil {
		f.f.Close()
		j.broken = err
		return err
	}
	j.segs = append(j.segs, &segment{f: f, number: j.next, from: j.end, to: j.end + segmentHeader})
	j.next++
	j.chain, j.end = crc, j.end+segmentHeader
	return nil
}

// write appends bufs to the last segment. What a failed write leaves ends the
// reading of the journal, so nothing may come behind it, in this segment or in
// the next. mu is held.
func (j *journal) write(bufs [][]byte, chain uint32, end int64) error {
	if j.broken != nil {
		return j.broken
	}
	s := j.segs[len(j.segs)-1]
	if err := s.f.write(bufs, j.end-s.from); err != nil {
		j.broken = err
		return err
	}
	j.chain, j.end, s.to = chain, end, end
	return nil
}

// sync returns when everything before a position is on disk. Whoever comes
// while another syncs finds most of its work done.
func (j *journal) sync(upTo int64) error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	end, names := j.end, false
	var todo []*segment
	if j.synced < upTo {
		for _, s := range j.segs {
			if s.to > j.synced {
				todo = append(todo, s)
				names = names || !s.named
			}
		}
	}
	j.mu.Unlock()
	if len(todo) == 0 {
		return nil
	}
	began := time.Now()
	for _, s := range todo {
		if err := s.f.sync(); err != nil {
			return err
		}
	}
	if names {
		if err := syncDir(j.dir, j.hook); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range todo {
		s.named = true
	}
	j.synced = end
	j.syncs.add(time.Since(began))
	return nil
}

// syncAll is sync up to here.
func (j *journal) syncAll() error {
	j.mu.Lock()
	end := j.end
	j.mu.Unlock()
	return j.sync(end)
}

// trim lets go of the segments that hold no epoch after applied, which the
// images have on disk. The state says so first: with a segment missing in the
// middle, older epochs would be applied again and newer ones not.
func (j *journal) trim(applied uint64, whole bool) error {
	j.mu.Lock()
	n := 0
	for n < len(j.segs) && j.segs[n].last <= applied && j.segs[n].to <= j.synced && !(n == len(j.segs)-1 && j.open != 0) {
		n++
	}
	first := j.next
	if n < len(j.segs) {
		first = j.segs[n].number
	}
	void := j.segs[:n]
	j.segs = slices.Clone(j.segs[n:])
	j.mu.Unlock()
	err := j.writeState(func(s *slot) {
		if s.journal != 0 { // not retired meanwhile
			s.first, s.whole = max(s.first, first), s.whole || whole
		}
	})
	if err != nil {
		return err
	}
	return j.unlink(void)
}

// retire ends the journal for good: nothing of it is ever applied again, also
// if the next thing that happens is a power cut. Its files are void, and stay
// until discard.
func (j *journal) retire(whole bool) error {
	return j.writeState(func(s *slot) { s.journal, s.whole = 0, whole })
}

// whole is what the state says of the images.
func (j *journal) whole() bool {
	j.stating.Lock()
	defer j.stating.Unlock()
	return j.slot.whole
}

// discard removes the files of a retired journal. Nobody may sync it any more.
func (j *journal) discard() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	void := j.segs
	j.segs = nil
	if j.broken == nil {
		j.broken = ErrSettled
	}
	return j.unlink(void)
}

// unlink removes segments that the state does not need any more, and that
// nobody uses: what is applied is not read, what is synced is not synced again.
func (j *journal) unlink(void []*segment) error {
	var errs []error
	for _, s := range void {
		if err := removeFile(s.f.path, j.hook); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		s.f.f.Close()
	}
	return errors.Join(errs...)
}

// readAt fills p from a position within a record's data.
func (j *journal) readAt(p []byte, at int64) error {
	j.mu.Lock()
	var in *segment
	for _, s := range j.segs {
		if s.from <= at && at+int64(len(p)) <= s.to {
			in = s
		}
	}
	j.mu.Unlock()
	if in == nil {
		return fmt.Errorf("journal %s: %d bytes at %d are not in it", j.dir, len(p), at)
	}
	return in.f.readFull(p, at-in.from)
}

// bytes is what the segments take.
func (j *journal) bytes() (n int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segs {
		n += s.to - s.from
	}
	return n
}

// close closes the files and the lock. What is on disk stays as it is.
func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segs {
		s.f.f.Close()
	}
	j.segs = nil
	if j.state != nil {
		j.state.f.Close()
	}
	j.lock.Close()
}
