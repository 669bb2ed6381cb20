// Package hostmem keeps the books of a backup host's memory, so that a standby
// is refused while nobody depends on it, and not killed for lack of memory when
// it is needed.
//
// A standby's memory comes by and by: what its guest never used is a hole. What
// the kernel calls available is therefore not free to be given away, for earlier
// standbys may grow into it:
//
//	room = available - what is promised and not resident yet - what the host keeps
//
// Memory that is resident left "available" when it came, and is not counted a
// second time. The same sum is made for each control group that has a limit, and
// for each pool of huge pages; the least room counts.
//
// What other guests of the host may still grow into is not known here: it is
// what the host's operator gave away, as on any host of virtual machines.
package hostmem

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

const (
	mib = 1 << 20
	// floorMinBytes and floorShare are what the host keeps by default: the larger
	// of both.
	floorMinBytes = 512 * mib
	floorShare    = 20 // one in
	// reservationsMax bounds the ledger.
	reservationsMax = 1 << 14
	// needMaxBytes bounds a need: more than x86 can address is a mistake, and
	// sums of them do not overflow.
	needMaxBytes = 1 << 47
)

// Need is what a standby takes, in bytes.
type Need struct {
	Bytes uint64 // of ordinary pages
	// HugeBytes come from the pool of huge pages of HugePageBytes each. They are
	// not part of Bytes.
	HugeBytes, HugePageBytes uint64
}

func (n Need) check() error {
	switch {
	case n.Bytes > needMaxBytes || n.HugeBytes > needMaxBytes:
		return fmt.Errorf("hostmem: a need of %d and %d MiB", n.Bytes/mib, n.HugeBytes/mib)
	case n.HugeBytes > 0 && n.HugePageBytes == 0:
		return fmt.Errorf("hostmem: %d MiB of huge pages of no size", n.HugeBytes/mib)
	}
	return nil
}

// Memory is a host's memory at one moment, in bytes.
type Memory struct {
	TotalBytes     uint64
	AvailableBytes uint64 // without swapping, as the kernel estimates it
	Huge           []Pool
	Groups         []Group // those that have a limit
}

// Pool is what there is of huge pages of one size.
type Pool struct {
	PageBytes  uint64
	TotalBytes uint64
	FreeBytes  uint64 // and not reserved by a mapping
}

// Group is a control group with a limit of memory.
type Group struct {
	Path      string // in the file system
	MaxBytes  uint64
	UsedBytes uint64 // without what the kernel can drop
}

// Options of a Ledger. Zero values mean the defaults in brackets.
type Options struct {
	FloorBytes uint64                 // what the host keeps [512 MiB, or a twentieth of its memory if that is more]
	Read       func() (Memory, error) // asked at each question [Read]
}

// Ledger knows what is promised to whom. Its methods may be called concurrently.
type Ledger struct {
	floorBytes uint64
	read       func() (Memory, error)

	mu   sync.Mutex
	held map[string]*reservation
}

type reservation struct {
	need     Need
	resident func() uint64 // of need.Bytes; nil: nothing is there yet
}

// promised is what the reservation may still take of ordinary memory.
func (r *reservation) promised() uint64 {
	if r.resident == nil {
		return r.need.Bytes
	}
	return r.need.Bytes - min(r.need.Bytes, r.resident())
}

// New returns an empty ledger.
func New(o Options) *Ledger {
	if o.Read == nil {
		o.Read = Read
	}
	return &Ledger{floorBytes: o.FloorBytes, read: o.Read, held: map[string]*reservation{}}
}

// Reserve promises memory to a standby and returns what ends the promise, which
// may be called more than once. A promise of the same id is replaced. The error
// is a ShortError if there is not enough; nothing has changed then.
func (l *Ledger) Reserve(id string, need Need) (release func(), err error) {
	if err := need.check(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m, err := l.read()
	if err != nil {
		return nil, err
	}
	if l.held[id] == nil && len(l.held) >= reservationsMax {
		return nil, fmt.Errorf("hostmem: %d standbys have memory promised already", len(l.held))
	}
	if err := l.report(m, id).fits(id, need); err != nil {
		return nil, err
	}
	r := &reservation{need: need}
	l.held[id] = r
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.held[id] == r {
			delete(l.held, id)
		}
	}, nil
}

// Fits tells, as Reserve would, whether a standby's memory could be promised now; it
// promises nothing.
func (l *Ledger) Fits(id string, need Need) error {
	if err := need.check(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m, err := l.read()
	if err != nil {
		return err
	}
	return l.report(m, id).fits(id, need)
}

// Follow tells how much of what is promised to id is resident by now, in bytes
// of ordinary memory; it is asked whenever somebody needs to know, one call at a
// time, and must not call the ledger. From now on the huge pages are taken for
// reserved by the kernel, as they are when QEMU has mapped them. An id without a
// promise is left alone.
func (l *Ledger) Follow(id string, resident func() uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.held[id]; r != nil {
		r.resident = resident
	}
}

// Report is the state of the books.
func (l *Ledger) Report() (Report, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m, err := l.read()
	if err != nil {
		return Report{}, err
	}
	return l.report(m, ""), nil
}

// report adds up all promises but that of except. l.mu is held.
func (l *Ledger) report(m Memory, except string) Report {
	r := Report{Memory: m, FloorBytes: l.floorBytes, huge: map[uint64]uint64{}}
	if r.FloorBytes == 0 {
		r.FloorBytes = max(floorMinBytes, m.TotalBytes/floorShare)
	}
	for id, held := range l.held {
		if id == except {
			continue
		}
		r.Standbys++
		r.PromisedBytes += held.promised()
		if held.resident == nil {
			r.huge[held.need.HugePageBytes] += held.need.HugeBytes
		}
	}
	return r
}

// Report is what there is and what is promised, in bytes.
type Report struct {
	Memory
	FloorBytes    uint64 // kept for the host
	PromisedBytes uint64 // of ordinary memory, and not resident yet
	Standbys      int    // that have a promise

	huge map[uint64]uint64 // promised, by size of page
}

// RoomBytes is how much ordinary memory can be promised, and the control group
// whose limit says so; none if it is the host's memory.
func (r Report) RoomBytes() (room uint64, group string) {
	room = less(r.AvailableBytes, r.PromisedBytes, r.FloorBytes)
	for _, g := range r.Groups {
		// The host's floor is not the group's.
		if in := less(g.MaxBytes, g.UsedBytes, r.PromisedBytes); in < room {
			room, group = in, g.Path
		}
	}
	return room, group
}

// HugeRoomBytes is how much can be promised of huge pages of that many bytes.
func (r Report) HugeRoomBytes(page uint64) uint64 {
	i := slices.IndexFunc(r.Huge, func(p Pool) bool { return p.PageBytes == page })
	if i < 0 {
		return 0
	}
	return less(r.Huge[i].FreeBytes, r.huge[page])
}

// less subtracts, and stops at 0.
func less(from uint64, what ...uint64) uint64 {
	for _, w := range what {
		from -= min(from, w)
	}
	return from
}

func (r Report) fits(id string, need Need) error {
	room, group := r.RoomBytes()
	if need.Bytes > room {
		return &ShortError{ID: id, NeedBytes: need.Bytes, RoomBytes: room, Group: group, Report: r}
	}
	if room := r.HugeRoomBytes(need.HugePageBytes); need.HugeBytes > room {
		return &ShortError{ID: id, NeedBytes: need.HugeBytes, RoomBytes: room, HugePageBytes: need.HugePageBytes, Report: r}
	}
	return nil
}

// String says it in a line for people.
func (r Report) String() string {
	room, group := r.RoomBytes()
	var b strings.Builder
	fmt.Fprintf(&b, "room for %d MiB of standbys: %s", room/mib, r.sum(group, ""))
	for _, p := range r.Huge {
		if p.TotalBytes > 0 {
			fmt.Fprintf(&b, "; %d MiB of %d KiB pages", r.HugeRoomBytes(p.PageBytes)/mib, p.PageBytes>>10)
		}
	}
	return b.String()
}

// sum is how the room comes about. other is " other" when somebody is left out.
func (r Report) sum(group, other string) string {
	promised := fmt.Sprintf("%d MiB promised to %d%s standbys", r.PromisedBytes/mib, r.Standbys, other)
	if r.Standbys == 1 {
		promised = strings.TrimSuffix(promised, "s")
	}
	for _, g := range r.Groups {
		if g.Path == group {
			return fmt.Sprintf("limit of %s %d MiB, %d MiB used, %s", group, g.MaxBytes/mib, g.UsedBytes/mib, promised)
		}
	}
	return fmt.Sprintf("%d MiB available, %s, %d MiB kept for the host", r.AvailableBytes/mib, promised, r.FloorBytes/mib)
}

// ShortError says that a host has too little memory for a standby, with the
// numbers behind it.
type ShortError struct {
	ID                   string
	NeedBytes, RoomBytes uint64
	HugePageBytes        uint64 // of which there are too few; 0: ordinary memory
	Group                string // control group whose limit it is; empty: the host's memory
	Report               Report
}

// Error implements error.
func (e *ShortError) Error() string {
	if e.HugePageBytes > 0 {
		return fmt.Sprintf("%s needs %d MiB of %d KiB pages here, %d MiB are free and not promised to other standbys",
			e.ID, up(e.NeedBytes), e.HugePageBytes>>10, e.RoomBytes/mib)
	}
	return fmt.Sprintf("%s needs %d MiB here, %d MiB are free and not promised to other standbys (%s)",
		e.ID, up(e.NeedBytes), e.RoomBytes/mib, e.Report.sum(e.Group, " other"))
}

// Remedy says what to do.
func (e *ShortError) Remedy() string {
	switch {
	case e.HugePageBytes > 0:
		return fmt.Sprintf("give this host %d more pages of %d KiB (nr_hugepages)",
			(e.NeedBytes-e.RoomBytes+e.HugePageBytes-1)/e.HugePageBytes, e.HugePageBytes>>10)
	case e.Group != "":
		return "raise the limit of " + e.Group
	}
	return "free memory on this host, or protect the guest to another one"
}

// up rounds to MiB so that a need never looks smaller than it is.
func up(bytes uint64) uint64 { return (bytes + mib - 1) / mib }
