package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

const (
	slotBytes = guestapi.RecordBytes
	// stripeSlots is how many slots one lock covers, and the longest write.
	stripeSlots = 256
	stripeBytes = stripeSlots * slotBytes
	// syncEvery is after how many writes the load makes them durable.
	syncEvery = 32
)

// What a slot must hold, in the low bits of its entry in the table; above is the
// number of the write that made it so. A zero entry: nothing of this boot.
const (
	slotRecord  = 1 // that write's record
	slotZeroes  = 2
	slotLoose   = 3 // discarded: zeroes, or any older record
	slotUnknown = 4 // the write failed: anything
	slotKinds   = 7
	slotShift   = 3
)

// recordDisk is a disk full of records, see guestapi.Record, and the memory of
// what each slot must hold. Memory and disk are of the same moment whenever a
// stripe's lock is free.
//
// Its methods may be called concurrently.
type recordDisk struct {
	name       string
	dev        device
	bytes      int64
	layout     guestapi.DiskLayout
	generation uint64

	stripes []sync.Mutex
	table   []uint64 // by slot, each under its stripe's lock; outside the Go heap
	seq     atomic.Uint64

	scribbler sync.Mutex // holds block
	block     []byte     // of accept

	rate   atomic.Int64 // writes per second, 0: none
	size   atomic.Int64 // bytes of each
	loader sync.Once

	writes, failures atomic.Uint64
	firstError       atomic.Pointer[string]
}

func newRecordDisk(name string, dev device, bytes int64, generation uint64) (*recordDisk, error) {
	layout, err := guestapi.LayoutOf(bytes)
	if err != nil {
		return nil, err
	}
	d := &recordDisk{name: name, dev: dev, bytes: bytes, layout: layout, generation: generation,
		stripes: make([]sync.Mutex, layout.Slots()/stripeSlots)}
	table, err := anonymous(int(layout.Slots()) * 8)
	if err != nil {
		return nil, fmt.Errorf("table of slots: %w", err)
	}
	d.table = unsafe.Slice((*uint64)(unsafe.Pointer(&table[0])), layout.Slots())
	d.block, err = anonymous(slotBytes)
	return d, err
}

// put writes records into slots from the given one on, all in one stripe whose
// lock is held. buf has room for them. r gives what they have in common.
func (d *recordDisk) put(first uint64, buf []byte, r guestapi.Record) error {
	n := uint64(len(buf) / slotBytes)
	seq := d.seq.Add(n) - n
	for i := range n {
		seq++
		r.Generation, r.Slot, r.Seq = d.generation, first+i, seq
		r.Put(buf[i*slotBytes:])
		d.table[first+i] = seq<<slotShift | slotUnknown // until we know
	}
	if _, err := d.dev.WriteAt(buf, int64(first*slotBytes)); err != nil {
		return d.failed(err)
	}
	for i := range n {
		d.table[first+i] = d.table[first+i]&^slotKinds | slotRecord
	}
	d.writes.Add(1)
	return nil
}

func (d *recordDisk) failed(err error) error {
	d.failures.Add(1)
	text := err.Error()
	d.firstError.CompareAndSwap(nil, &text)
	return err
}

// accept writes the record of one request into its slot.
func (d *recordDisk) accept(r guestapi.Record) error {
	d.scribbler.Lock()
	defer d.scribbler.Unlock()
	slot := d.layout.SlotOf(r.Serial)
	stripe := &d.stripes[slot/stripeSlots]
	stripe.Lock()
	defer stripe.Unlock()
	return d.put(slot, d.block, r)
}

// Limits of the load.
const (
	diskLoaders  = 4 // writes under way at a time
	diskRateMax  = 100_000
	diskWriteMax = stripeBytes
)

// startLoad writes so many times a second from now on, 0: not at all.
func (d *recordDisk) startLoad(perSec, bytes int64) error {
	d.size.Store(bytes)
	d.rate.Store(perSec)
	var err error
	d.loader.Do(func() {
		for i := range int64(diskLoaders) {
			var buf []byte
			if buf, err = anonymous(diskWriteMax); err != nil {
				return
			}
			go pace(func() int64 { return (d.rate.Load() + i) / diskLoaders }, func() { d.loadOnce(buf) })
		}
	})
	return err
}

// loadOnce writes somewhere into one stripe of the load's.
func (d *recordDisk) loadOnce(buf []byte) {
	n := uint64(d.size.Load() / slotBytes)
	first := d.layout.Accept + rand.Uint64N(d.layout.Load/stripeSlots)*stripeSlots
	stripe := &d.stripes[first/stripeSlots]
	stripe.Lock()
	defer stripe.Unlock()
	if d.rate.Load() == 0 {
		return // quiet waits for our lock
	}
	if err := d.put(first+rand.Uint64N(stripeSlots-n+1), buf[:n*slotBytes], guestapi.Record{}); err != nil {
		return // counted
	}
	if d.writes.Load()%syncEvery == 0 {
		if err := d.dev.Sync(); err != nil {
			_ = d.failed(err) // counted
		}
	}
}

// quiet ends the load and returns when nothing is under way and all is durable.
func (d *recordDisk) quiet() error {
	d.rate.Store(0)
	for i := range d.stripes {
		d.stripes[i].Lock()
		d.stripes[i].Unlock() //nolint:staticcheck // whoever held it is done
	}
	return d.dev.Sync()
}

// erase discards a range, or makes it zero. The acceptance service's slots are
// not for that: what was acknowledged stays.
func (d *recordDisk) erase(zero bool, off, n int64) error {
	from := int64(d.layout.Accept) * slotBytes
	if off < from || n <= 0 || off > d.bytes-n || off%stripeBytes != 0 || n%stripeBytes != 0 {
		return fmt.Errorf("range %d+%d is not made of whole MiB between %d and %d", off, n, from, d.bytes)
	}
	first := uint64(off / slotBytes)
	last := min(first+uint64(n/slotBytes), d.layout.Slots())
	for i := first / stripeSlots; i*stripeSlots < last; i++ {
		d.stripes[i].Lock()
		defer d.stripes[i].Unlock()
	}
	entry := d.seq.Add(1) << slotShift
	do, kind := d.dev.Discard, uint64(slotLoose)
	if zero {
		do, kind = d.dev.WriteZeroes, slotZeroes
	}
	err := do(off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return err // nothing happened
	}
	if err != nil {
		kind = slotUnknown
		_ = d.failed(err) // returned too: who asked for it wants to know
	}
	for slot := first; slot < last; slot++ {
		d.table[slot] = entry | kind
	}
	return err
}

// findings is what a check of a disk found.
type findings struct {
	Whole   uint64   `json:"whole"`   // what is as it must be, of what was written since boot
	Missing uint64   `json:"missing"` // the last write is not there
	Foreign uint64   `json:"foreign"` // a write is there that memory does not know
	Torn    uint64   `json:"torn"`    // part of a write is there
	Texts   []string `json:"findings,omitempty"`
}

// textsMax bounds how many findings are told in words.
const textsMax = 16

func (f *findings) find(count *uint64, format string, args ...any) {
	*count++
	if len(f.Texts) < textsMax {
		f.Texts = append(f.Texts, fmt.Sprintf(format, args...))
	}
}

func (f *findings) add(o findings) {
	f.Whole += o.Whole
	f.Missing += o.Missing
	f.Foreign += o.Foreign
	f.Torn += o.Torn
	f.Texts = append(f.Texts, o.Texts[:min(len(o.Texts), textsMax-min(textsMax, len(f.Texts)))]...)
}

// check reads all slots and compares them with memory. Writes may go on: it
// locks one stripe after the other.
func (d *recordDisk) check() (findings, error) {
	var f findings
	buf, err := anonymous(stripeBytes)
	if err != nil {
		return f, err
	}
	defer func() { _ = release(buf) }()
	for i := range d.stripes {
		if err := d.checkStripe(uint64(i), buf, &f); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (d *recordDisk) checkStripe(i uint64, buf []byte, f *findings) error {
	d.stripes[i].Lock()
	defer d.stripes[i].Unlock()
	if _, err := d.dev.ReadAt(buf, int64(i*stripeBytes)); err != nil {
		return d.failed(err)
	}
	for n := range uint64(stripeSlots) {
		slot := i*stripeSlots + n
		d.judge(slot, buf[n*slotBytes:(n+1)*slotBytes], f)
	}
	return nil
}

// judge compares one slot's content with its entry.
func (d *recordDisk) judge(slot uint64, b []byte, f *findings) {
	want, kind := d.table[slot]>>slotShift, d.table[slot]&slotKinds
	if kind == slotUnknown {
		return
	}
	r, err := guestapi.ParseRecord(b)
	ours := err == nil && r.Generation == d.generation
	switch {
	case err != nil && guestapi.PartOfRecord(b):
		f.find(&f.Torn, "%s slot %d: %v", d.name, slot, err)
	case ours && r.Slot != slot:
		f.find(&f.Foreign, "%s slot %d: a record of slot %d", d.name, slot, r.Slot)
	case ours && r.Seq > want, ours && kind == 0:
		f.find(&f.Foreign, "%s slot %d: write %d, memory knows %d", d.name, slot, r.Seq, want)
	case kind == slotRecord && (!ours || r.Seq < want):
		f.find(&f.Missing, "%s slot %d: write %d is not there, but %+v, %v", d.name, slot, want, r, err)
	case kind == slotZeroes && !zero(b):
		f.find(&f.Missing, "%s slot %d: zeroes of write %d are not there, but %+v, %v", d.name, slot, want, r, err)
	case kind != 0:
		f.Whole++
	}
}

func zero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
