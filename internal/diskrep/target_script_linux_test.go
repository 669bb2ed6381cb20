package diskrep

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
)

// memoryDir avoids a disk's syncs where their order matters and not that they
// are made.
func memoryDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "diskrep")
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// someDisks are small, and not whole blocks.
func someDisks() []Disk {
	return []Disk{{Name: "vda", SizeBytes: 192<<10 + 512}, {Name: "vdb", SizeBytes: 48 << 10}}
}

func optionsIn(dir string, d Durability) TargetOptions {
	disks := someDisks()
	o := TargetOptions{JournalDir: filepath.Join(dir, "journal"), Disks: disks, Durability: d, JournalBytesMax: 64 << 10, pace: -1}
	for _, disk := range disks {
		o.Paths = append(o.Paths, filepath.Join(dir, disk.Name+".raw"))
	}
	return o
}

func mustOpen(tb testing.TB, o TargetOptions) *Target {
	tb.Helper()
	target, err := OpenTarget(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	return target
}

// disksModel is a dumb twin of the images.
type disksModel [][]byte

func newModel(disks []Disk) disksModel {
	m := make(disksModel, len(disks))
	for i, d := range disks {
		m[i] = make([]byte, d.SizeBytes)
	}
	return m
}

func (m disksModel) apply(ws []Write) {
	for _, w := range ws {
		clear(m[w.Disk][w.Off : w.Off+w.Len])
		copy(m[w.Disk][w.Off:], w.Data)
	}
}

func (m disksModel) clone() disksModel {
	c := make(disksModel, len(m))
	for i := range m {
		c[i] = slices.Clone(m[i])
	}
	return c
}

func (m disksModel) sum() [32]byte { return sha256.Sum256(bytes.Join(m, nil)) }

// readImages returns what is on the backup.
func readImages(tb testing.TB, o TargetOptions) disksModel {
	tb.Helper()
	m := make(disksModel, len(o.Paths))
	for i, p := range o.Paths {
		b, err := os.ReadFile(p)
		if err != nil {
			tb.Fatal(err)
		}
		if int64(len(b)) != o.Disks[i].SizeBytes {
			tb.Fatalf("%s has %d bytes", p, len(b))
		}
		m[i] = b
	}
	return m
}

// loans counts what it lent, and spoils what comes back, so that nobody uses
// it afterwards without being found out.
type loans struct {
	out    atomic.Int64
	doubly atomic.Int64
}

// lend returns ws with buffers of its own.
func (l *loans) lend(ws []Write) []Write {
	ws = slices.Clone(ws)
	for i := range ws {
		if ws[i].Data == nil {
			continue
		}
		b := slices.Clone(ws[i].Data)
		var back atomic.Bool
		l.out.Add(1)
		ws[i].Data, ws[i].Release = b, func() {
			if back.Swap(true) {
				l.doubly.Add(1)
			}
			l.out.Add(-1)
			for j := range b {
				b[j] ^= 0x5a
			}
		}
	}
	return ws
}

func (l *loans) check(tb testing.TB) {
	tb.Helper()
	if n := l.out.Load(); n != 0 {
		tb.Errorf("%d buffers were not given back", n)
	}
	if n := l.doubly.Load(); n != 0 {
		tb.Errorf("%d buffers were given back twice", n)
	}
}

// someWrites draws the writes of a part of an epoch.
func someWrites(r *rand.Rand, disks []Disk) []Write {
	ws := make([]Write, r.IntN(8))
	for i := range ws {
		disk := r.IntN(len(disks))
		size := disks[disk].SizeBytes
		n := 512 * (1 + r.Int64N(16))
		if r.IntN(10) == 0 {
			n = 1 + r.Int64N(3000)
		}
		off := r.Int64N(size-n+1) / 512 * 512
		if i > 0 && r.IntN(3) == 0 && ws[i-1].Off+ws[i-1].Len+n <= disks[ws[i-1].Disk].SizeBytes {
			disk, off = ws[i-1].Disk, ws[i-1].Off+ws[i-1].Len // behind the last one
		}
		ws[i] = Write{Disk: disk, Off: off, Len: n}
		if r.IntN(6) == 0 {
			continue // zeros
		}
		ws[i].Data = make([]byte, n)
		pattern(ws[i].Data, r.Uint64())
	}
	return ws
}

// pattern makes bytes that tell where they come from.
func pattern(b []byte, seed uint64) {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	rand.NewChaCha8(key).Read(b)
}

// driver is what a script is played on.
type driver interface {
	initial(ws []Write)
	stage(epoch uint64, ws []Write)
	end(epoch uint64)
	commit(epoch uint64)
	drop(after uint64)
}

// play draws a life of a Target from a seed: step 0 is the initial copy. more
// is asked before each step. The draws depend on the seed alone.
func play(seed uint64, disks []Disk, d driver, more func(step int) bool) {
	r := rand.New(rand.NewPCG(seed, 1))
	ended, committed := uint64(initialEpoch), uint64(initialEpoch)
	for step := 0; more(step); step++ {
		if step == 0 {
			d.initial(someWrites(r, disks))
			continue
		}
		switch n := r.IntN(20); {
		case n < 11:
			before := ended
			ended += 1 + uint64(r.IntN(8)/7) // now and then a number is left out
			for range r.IntN(4) {
				d.stage(ended, someWrites(r, disks))
			}
			if r.IntN(12) == 0 {
				ended = before // broken off
				d.drop(ended)
				continue
			}
			d.end(ended)
		case n < 18:
			if committed < ended {
				committed += 1 + uint64(r.Int64N(int64(ended-committed)))
				d.commit(committed)
			}
		default:
			ended = committed + uint64(r.Int64N(int64(ended-committed)+1))
			d.drop(ended)
		}
	}
}

// modelDriver plays a script on the twin. states[step] is what the images must
// be if nothing after the step was done.
type modelDriver struct {
	at    map[uint64]disksModel // by ended epoch
	ended uint64
	open  []Write
	acked bool // an epoch ended; who wants to know resets it
}

func newModelDriver(disks []Disk) *modelDriver {
	return &modelDriver{at: map[uint64]disksModel{0: newModel(disks)}}
}

func (m *modelDriver) initial(ws []Write) {
	s := m.at[0].clone()
	s.apply(ws)
	m.at[initialEpoch], m.ended, m.acked = s, initialEpoch, true
}
func (m *modelDriver) stage(_ uint64, ws []Write) {
	m.open = append(m.open, ws...)
}
func (m *modelDriver) end(epoch uint64) {
	s := m.at[m.ended].clone()
	s.apply(m.open)
	m.at[epoch], m.ended, m.open, m.acked = s, epoch, nil, true
}
func (m *modelDriver) commit(uint64) {}
func (m *modelDriver) drop(after uint64) {
	m.open = nil
	if after >= m.ended {
		return
	}
	// The last epoch that is left may have a lower number: some are left out.
	best := uint64(initialEpoch)
	for e := range m.at {
		if e <= after && e > best {
			best = e
		}
	}
	for e := range m.at {
		if e > best {
			delete(m.at, e)
		}
	}
	m.ended = best
}
func (m *modelDriver) now() disksModel { return m.at[m.ended] }

// targetDriver plays a script on a Target.
type targetDriver struct {
	tb     testing.TB
	target *Target
	loans  *loans
}

func (d targetDriver) must(err error) {
	if err != nil {
		d.tb.Helper()
		d.tb.Fatal(err)
	}
}
func (d targetDriver) initial(ws []Write) {
	d.must(d.target.WriteInitial(d.loans.lend(ws)))
	d.must(d.target.EndInitial())
}
func (d targetDriver) stage(epoch uint64, ws []Write) {
	d.must(d.target.Stage(epoch, d.loans.lend(ws)))
}
func (d targetDriver) end(epoch uint64)    { d.must(d.target.EndEpoch(epoch)) }
func (d targetDriver) commit(epoch uint64) { d.target.Commit(epoch) }
func (d targetDriver) drop(after uint64)   { d.target.Drop(after) }

// both plays on two drivers.
type both struct{ a, b driver }

func (d both) initial(ws []Write)         { d.a.initial(ws); d.b.initial(ws) }
func (d both) stage(e uint64, ws []Write) { d.a.stage(e, ws); d.b.stage(e, ws) }
func (d both) end(e uint64)               { d.a.end(e); d.b.end(e) }
func (d both) commit(e uint64)            { d.a.commit(e); d.b.commit(e) }
func (d both) drop(after uint64)          { d.a.drop(after); d.b.drop(after) }
