package diskrep

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// did is what happened to a file, or what the test noted in between.
type did struct {
	op
	begins, ends      int  // note of a step: its number + 1
	acked             bool // it acknowledged an epoch
	settling, settled bool
}

// trace records what a Target does to files.
type trace struct {
	mu  sync.Mutex
	ops []did
}

func (tr *trace) note(d did) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.ops = append(tr.ops, d)
}

func (tr *trace) see(o op) error {
	o.data = [][]byte{bytes.Join(o.data, nil)}
	tr.note(did{op: o})
	return nil
}

// disk is what a power cut leaves of the files: of each, and of their names,
// what was synced, and any part of the rest.
type disk struct {
	r     *rand.Rand
	files map[string][]byte
	names map[string]bool
}

// cut plays operations onto files that are as before, and takes the power away.
func cut(r *rand.Rand, before map[string][]byte, ops []did) *disk {
	// What came before a sync that ended began before the sync did.
	durable, began := map[string]int{}, map[string]int{}
	for i, o := range ops {
		switch o.kind {
		case opSync, opSyncDir:
			began[o.path] = i
		case opSynced, opSyncedDir:
			durable[o.path] = began[o.path]
		}
	}
	return left(r, before, ops, func(path string, i int) bool { return i < durable[path] })
}

// kill plays operations onto files that are as before, and loses none.
func kill(before map[string][]byte, ops []did) *disk {
	return left(nil, before, ops, func(string, int) bool { return true })
}

// left plays operations; sure tells which ones are not lost for a file, or for
// a directory.
func left(r *rand.Rand, before map[string][]byte, ops []did, sure func(path string, i int) bool) *disk {
	d := &disk{r: r, files: map[string][]byte{}, names: map[string]bool{}}
	for path, b := range before {
		d.files[path], d.names[path] = slices.Clone(b), true
	}
	for i, o := range ops {
		safe := sure(o.path, i)
		named := sure(filepath.Dir(o.path), i) || r.IntN(2) == 0
		switch o.kind {
		case opCreate:
			d.names[o.path] = d.names[o.path] || named
		case opUnlink:
			d.names[o.path] = d.names[o.path] && !named
		case opWrite:
			d.write(o.path, o.off, o.data[0], safe)
		case opZero:
			d.write(o.path, o.off, make([]byte, o.n), safe)
		}
	}
	return d
}

// write changes a file: what is not safe is lost, or comes to the disk sector
// by sector.
func (d *disk) write(path string, off int64, data []byte, sure bool) {
	if !sure && d.r.IntN(2) == 0 {
		return
	}
	tear := !sure && d.r.IntN(3) == 0
	f := d.files[path]
	if n := off + int64(len(data)); int64(len(f)) < n {
		f = append(f, make([]byte, n-int64(len(f)))...)
	}
	for len(data) > 0 {
		n := min(512-off%512, int64(len(data)))
		if !tear || d.r.IntN(2) == 0 {
			copy(f[off:], data[:n])
		}
		off, data = off+n, data[n:]
	}
	d.files[path] = f
}

// putInto makes the files where they were, in a directory that has no others.
func (d *disk) putInto(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for path, there := range d.names {
		if !there {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, d.files[path], 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// recovery is what the next process does to the files.
func recovery(t *testing.T, o TargetOptions) []did {
	t.Helper()
	tr := &trace{}
	o.hook = tr.see
	if err := mustOpen(t, o).Close(); err != nil {
		t.Fatal(err)
	}
	return tr.ops
}

// guestMark is what the guest writes, and syncs, when it runs on the image.
const guestMark = "the guest was here"

// traced plays a script on a Target, settles, and lets a guest write. It
// returns the trace and the sums of the disks after each step.
func traced(t *testing.T, o TargetOptions, seed uint64, steps int) (before map[string][]byte, ops []did, states [][32]byte) {
	t.Helper()
	before = map[string][]byte{}
	for i, d := range o.Disks {
		if err := os.WriteFile(o.Paths[i], nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(o.Paths[i], d.SizeBytes); err != nil {
			t.Fatal(err)
		}
		before[o.Paths[i]] = make([]byte, d.SizeBytes)
	}
	tr := &trace{}
	o.hook = tr.see
	target := mustOpen(t, o)
	var l loans
	twin := newModelDriver(o.Disks)
	play(seed, o.Disks, both{targetDriver{t, target, &l}, twin}, func(step int) bool {
		if step > 0 {
			tr.note(did{ends: step, acked: twin.acked})
			twin.acked = false
			states = append(states, twin.now().sum())
		}
		if step < steps {
			tr.note(did{begins: step + 1})
		}
		return step < steps
	})
	tr.note(did{settling: true})
	if err := target.Settle(t.Context(), target.Stats().EndedEpoch); err != nil {
		t.Fatal(err)
	}
	tr.note(did{settled: true})
	guest := &file{path: o.Paths[0], hook: tr.see}
	f, err := os.OpenFile(o.Paths[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	guest.f = f
	if err := guest.write([][]byte{[]byte(guestMark)}, 0); err != nil {
		t.Fatal(err)
	}
	if err := guest.sync(); err != nil {
		t.Fatal(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return before, tr.ops, states
}

// A power cut anywhere leaves the disks of an epoch: under fsync the last one
// that ended, unless it hit within a step; under memory some earlier one. Once
// the guest runs on the image, what it synced stays.
func TestTargetPowerCut(t *testing.T) {
	const runs, cuts, steps, judgedMin = 12, 24, 60, 96
	for _, durability := range []Durability{DurabilityMemory, DurabilityFsync} {
		t.Run(durability.String(), func(t *testing.T) {
			judged, older, guests := 0, 0, 0
			for run := range uint64(runs) {
				r := rand.New(rand.NewPCG(run, 99))
				dir := memoryDir(t)
				o := optionsIn(dir, durability)
				o.JournalBytesMax = []int64{1, 64 << 10, 512 << 10}[run%3]
				before, ops, states := traced(t, o, run, steps)
				for i := range cuts {
					at := r.IntN(len(ops) + 1)
					switch {
					case i == 0:
						at = len(ops) // the guest has synced
					case r.IntN(8) == 0:
						at = len(ops) - r.IntN(20) // around Settle
					}
					all := ops[:at]
					if r.IntN(3) == 0 {
						// The process was killed, and the power was cut while the
						// next one recovered, or later.
						kill(before, all).putInto(t, dir)
						all = slices.Concat(all, recovery(t, o))
						all = all[:at+r.IntN(len(all)-at+1)]
					}
					cut(r, before, all).putInto(t, dir)
					c := judgeCut(t, o, all, states)
					if c.bad != "" {
						t.Fatalf("run %d, cut before operation %d of %d: %s", run, at, len(ops), c.bad)
					}
					judged += c.judged
					older += c.older
					guests += c.guest
				}
			}
			if judged < judgedMin || guests == 0 || durability == DurabilityMemory && older == 0 {
				t.Errorf("%d judged, %d older than what had ended, %d with a guest: the test proves little", judged, older, guests)
			}
			t.Logf("%d power cuts: %d left an epoch's disks, %d of them older than the last that had ended; %d hit a guest that ran on the image",
				runs*cuts, judged, older, guests)
		})
	}
}

type cutVerdict struct {
	bad                  string
	judged, older, guest int
}

// judgeCut opens what a power cut left and compares it to the states.
func judgeCut(t *testing.T, o TargetOptions, ops []did, states [][32]byte) (v cutVerdict) {
	t.Helper()
	last, acked, begun, settling, settled := -1, -1, -1, false, false
	guestWrote, guestSyncs, guestSynced := false, false, false
	for _, d := range ops {
		last, begun = max(last, d.ends-1), max(begun, d.begins-1)
		if d.acked {
			acked = last
		}
		settling = settling || d.settling
		settled = settled || d.settled
		if d.path == o.Paths[0] { // a sync of ours that began before the guest's write may end after it
			guestWrote = guestWrote || settled && d.kind == opWrite
			guestSyncs = guestSyncs || guestWrote && d.kind == opSync
			guestSynced = guestSynced || guestSyncs && d.kind == opSynced
		}
	}
	target := mustOpen(t, o)
	whole := target.Whole()
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	got := readImages(t, o)
	switch {
	case settled:
		if guestSynced {
			v.guest = 1
			if string(got[0][:len(guestMark)]) != guestMark {
				v.bad = "the guest's own write is gone"
			}
		}
		return v
	case last < 0:
		return v // within the initial copy
	case settling && o.Durability == DurabilityMemory:
		return v // it did not wait for the journal, on purpose
	case !whole && o.Durability == DurabilityFsync:
		v.bad = "not whole"
		return v
	case !whole:
		return v // the initial copy was not on disk yet
	}
	v.judged = 1
	sum := got.sum()
	found := slices.Index(states, sum)
	newest := slices.Contains(states[acked:max(last, begun)+1], sum) // a Drop may be lost
	switch {
	case found < 0:
		v.bad = fmt.Sprintf("the disks are not those of any epoch; the last step was %d", last)
	case found > begun:
		v.bad = fmt.Sprintf("the disks are those of step %d, which had not begun", found)
	case !newest && o.Durability == DurabilityFsync:
		v.bad = fmt.Sprintf("the disks are those of step %d, and %d was acknowledged", found, acked)
	case !newest:
		v.older = 1
	}
	return v
}
