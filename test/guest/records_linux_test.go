package main

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// memoryDisk is a device whose faults a test chooses.
type memoryDisk struct {
	mu     sync.Mutex
	bytes  []byte
	synced int
	lose   bool // writes are acknowledged and dropped
	fail   error
}

func (m *memoryDisk) ReadAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(b, m.bytes[off:]), m.fail
}

func (m *memoryDisk) WriteAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil && !m.lose {
		copy(m.bytes[off:], b)
	}
	return len(b), m.fail
}

func (m *memoryDisk) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced++
	return m.fail
}

func (m *memoryDisk) Discard(int64, int64) error { return m.fail }

func (m *memoryDisk) WriteZeroes(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil && !m.lose {
		clear(m.bytes[off : off+n])
	}
	return m.fail
}

const testGeneration = 9

func testRecords(t *testing.T) (*recordDisk, *memoryDisk) {
	t.Helper()
	m := &memoryDisk{bytes: make([]byte, guestapi.DiskBytesMin)}
	d, err := newRecordDisk("vdx", m, guestapi.DiskBytesMin, testGeneration)
	if err != nil {
		t.Fatal(err)
	}
	return d, m
}

// fill lets the load write everywhere.
func (d *recordDisk) fill(t *testing.T) {
	t.Helper()
	d.size.Store(diskWriteMax)
	d.rate.Store(1)
	d.loadOnce(make([]byte, diskWriteMax))
	if n := d.writes.Load(); n == 0 {
		t.Fatal("the load wrote nothing")
	}
}

func (d *recordDisk) found(t *testing.T) findings {
	t.Helper()
	f, err := d.check()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRecordsAreFoundOut(t *testing.T) {
	slot := func(d *recordDisk, m *memoryDisk) []byte { // the load's first
		return m.bytes[d.layout.Accept*slotBytes:][:slotBytes]
	}
	for name, c := range map[string]struct {
		harm                   func(d *recordDisk, m *memoryDisk)
		missing, foreign, torn uint64
	}{
		"nothing":      {harm: func(*recordDisk, *memoryDisk) {}},
		"a lost write": {harm: func(d *recordDisk, m *memoryDisk) { clear(slot(d, m)) }, missing: 1},
		"an old write": {harm: func(d *recordDisk, m *memoryDisk) {
			guestapi.Record{Generation: testGeneration, Slot: d.layout.Accept}.Put(slot(d, m))
		}, missing: 1},
		"an earlier boot's": {harm: func(d *recordDisk, m *memoryDisk) {
			guestapi.Record{Generation: 8, Slot: d.layout.Accept, Seq: 1 << 30}.Put(slot(d, m))
		}, missing: 1},
		"one from the future": {harm: func(d *recordDisk, m *memoryDisk) {
			guestapi.Record{Generation: testGeneration, Slot: d.layout.Accept, Seq: 1 << 30}.Put(slot(d, m))
		}, foreign: 1},
		"one where none was": {harm: func(d *recordDisk, m *memoryDisk) { guestapi.Record{Generation: testGeneration, Seq: 1}.Put(m.bytes) }, foreign: 1},
		"another slot's":     {harm: func(d *recordDisk, m *memoryDisk) { copy(slot(d, m), m.bytes[(d.layout.Accept+1)*slotBytes:]) }, foreign: 1},
		"a torn one":         {harm: func(d *recordDisk, m *memoryDisk) { clear(slot(d, m)[:slotBytes-512]) }, torn: 1},
		"lost writes":        {harm: func(d *recordDisk, m *memoryDisk) { m.lose = true; d.loadOnce(make([]byte, diskWriteMax)) }, missing: 256},
	} {
		d, m := testRecords(t)
		d.fill(t)
		c.harm(d, m)
		if f := d.found(t); f.Missing != c.missing || f.Foreign != c.foreign || f.Torn != c.torn || len(f.Texts) > textsMax {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestErasedRangesAreChecked(t *testing.T) {
	d, m := testRecords(t)
	d.fill(t)
	from := int64(d.layout.Accept) * slotBytes
	if err := d.erase(false, from, 1<<20); err != nil {
		t.Fatal(err)
	}
	if f := d.found(t); f.Whole != 256 || f.Missing+f.Foreign+f.Torn != 0 {
		t.Errorf("discarded, and as before: %+v", f)
	}
	clear(m.bytes[from:][:slotBytes])
	if f := d.found(t); f.Missing+f.Foreign+f.Torn != 0 {
		t.Errorf("discarded, and zero in part: %+v", f)
	}
	guestapi.Record{Generation: testGeneration, Slot: d.layout.Accept, Seq: d.seq.Load() + 1}.Put(m.bytes[from:])
	if f := d.found(t); f.Foreign != 1 {
		t.Errorf("discarded, and newer: %+v", f)
	}
	if err := d.erase(true, from, 1<<20); err != nil {
		t.Fatal(err)
	}
	if f := d.found(t); f.Whole != 256 || f.Missing+f.Foreign+f.Torn != 0 {
		t.Errorf("zeroed: %+v", f)
	}
	m.bytes[from+5000] = 1
	if f := d.found(t); f.Missing != 1 {
		t.Errorf("zeroed, and not zero: %+v", f)
	}
	for _, bad := range [][2]int64{{0, 1 << 20}, {from, 0}, {from, 1 << 19}, {from, -1 << 20}, {from, 1 << 40}, {from + 4096, 1 << 20}, {1 << 62, 1 << 62}} {
		if err := d.erase(true, bad[0], bad[1]); err == nil {
			t.Errorf("%v may be erased", bad)
		}
	}
}

func TestFailedWritesAreNotJudged(t *testing.T) {
	d, m := testRecords(t)
	d.fill(t)
	m.fail = errors.New("broken")
	d.loadOnce(make([]byte, diskWriteMax))
	if err := d.erase(true, int64(d.layout.Accept)*slotBytes, 1<<20); err == nil {
		t.Error("a broken disk was zeroed")
	}
	m.fail = nil
	if f := d.found(t); d.failures.Load() != 2 || f.Whole+f.Missing+f.Foreign+f.Torn != 0 {
		t.Errorf("%d failures, %+v", d.failures.Load(), f)
	}
}

func TestQuietDiskIsQuiet(t *testing.T) {
	d, m := testRecords(t)
	if err := d.startLoad(diskRateMax, slotBytes); err != nil {
		t.Fatal(err)
	}
	for d.writes.Load() < 100 {
		_ = d.found(t) // beside the writers
	}
	if err := d.quiet(); err != nil || m.synced == 0 {
		t.Fatal(m.synced, err)
	}
	writes := d.writes.Load()
	d.loadOnce(make([]byte, diskWriteMax)) // one that was about to
	if f := d.found(t); d.writes.Load() != writes || f.Whole == 0 || f.Missing+f.Foreign+f.Torn != 0 {
		t.Errorf("%d writes since, %+v", d.writes.Load()-writes, f)
	}
}

// TestAnswersWaitForTheDisk lets clients ask while the acceptance service begins
// to write.
func TestAnswersWaitForTheDisk(t *testing.T) {
	d, m := testRecords(t)
	l, _ := testLedger()
	a := &acceptance{ledger: l}
	early, ok := a.answer(guestapi.Request{Op: guestapi.OpApply, Session: 1, Seq: 1})
	if !ok || m.synced != 0 {
		t.Fatal("without a disk: no answer, or a write")
	}
	if since := a.writeTo(d); since != early.Serial {
		t.Errorf("writes since %d, want %d", since, early.Serial)
	}
	durable := func(a guestapi.Answer) {
		m.mu.Lock()
		defer m.mu.Unlock()
		r, err := guestapi.ParseRecord(m.bytes[d.layout.SlotOf(a.Serial)*slotBytes:][:slotBytes])
		if err != nil || r.Serial < a.Serial || r.Serial == a.Serial && (r.Session != a.Session || r.Request != a.Seq || r.Nonce != a.Nonce || r.Hash != a.Hash) || m.synced == 0 {
			t.Errorf("%+v was answered, the disk has %+v, %v", a, r, err)
		}
	}
	var clients sync.WaitGroup
	for session := range uint64(8) {
		clients.Go(func() {
			for seq := range uint64(20) {
				answer, ok := a.answer(guestapi.Request{Op: guestapi.OpApply, Session: session + 2, Seq: seq + 1, Nonce: seq})
				if !ok || answer.Status != guestapi.StatusApplied {
					t.Errorf("%+v, %v", answer, ok)
				}
				durable(answer)
			}
		})
	}
	clients.Wait()
	again, ok := a.answer(guestapi.Request{Op: guestapi.OpApply, Session: 2, Seq: 20, Nonce: 19})
	if !ok || again.Status != guestapi.StatusApplied {
		t.Errorf("asked again: %+v, %v", again, ok)
	}
	a.scribe.Load().idle()
	if f := d.found(t); f.Whole != 160 || f.Missing+f.Foreign+f.Torn != 0 {
		t.Errorf("%+v", f)
	}
	m.mu.Lock()
	m.fail = errors.New("broken")
	m.mu.Unlock()
	for range 2 { // the one that fails, and whoever comes after
		if answer, ok := a.answer(guestapi.Request{Op: guestapi.OpApply, Session: 99, Seq: 1}); ok {
			t.Errorf("a broken disk keeps %+v", answer)
		}
	}
	a.writeTo(nil)
	if answer, ok := a.answer(guestapi.Request{Op: guestapi.OpApply, Session: 98, Seq: 1}); !ok || answer.Status != guestapi.StatusApplied {
		t.Errorf("without the disk again: %+v, %v", answer, ok)
	}
}

func TestDiskCommands(t *testing.T) {
	d, m := testRecords(t)
	all := &disks{accept: &acceptance{}, records: []*recordDisk{d}}
	d.fill(t)
	for _, line := range []string{"status", "vdx status", "check", "vdx check", "trim", "zero 2 1", "quiet", "load 0"} {
		if _, err := all.run(strings.Fields(line)); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	for _, line := range []string{"", "vdx", "vdy check", "nonsense", "load", "load x", "load -1", "load 1 4095", "load 1 0", "load 1000000",
		"load 1 2097152", "trim 1", "zero 0 1", "zero 99999999999 1", "bench", "bench 0", "bench 61", "accept on"} {
		if answer, err := all.run(strings.Fields(line)); err == nil {
			t.Errorf("%q was obeyed: %v", line, answer)
		}
	}
	if _, err := (&disks{}).run([]string{"status"}); err == nil {
		t.Error("a guest without disks has some")
	}
	d.fill(t)
	clear(m.bytes)
	if answer, err := all.run([]string{"check"}); err != nil || answer["missing"] != uint64(256) {
		t.Errorf("an empty disk: %v, %v", answer, err)
	}
}
