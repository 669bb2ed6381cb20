package diskrep

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Any life of a Target, closed and opened again, settled in the end: the images
// are those of the last epoch that ended and was not dropped.
func TestTargetModel(t *testing.T) {
	root := memoryDir(t)
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(root, "run")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		o := optionsIn(dir, rapid.SampledFrom([]Durability{DurabilityMemory, DurabilityFsync}).Draw(rt, "durability"))
		o.JournalBytesMax = rapid.SampledFrom([]int64{1, 32 << 10, 1 << 30}).Draw(rt, "journal max")
		o.held = rapid.SampledFrom([]int64{1, 16 << 10, 1 << 30}).Draw(rt, "held max")
		var l loans
		twin := newModelDriver(o.Disks)
		for range rapid.IntRange(1, 3).Draw(rt, "sessions") {
			target := mustOpen(t, o)
			steps := rapid.IntRange(1, 60).Draw(rt, "steps")
			play(rapid.Uint64().Draw(rt, "seed"), o.Disks, both{targetDriver{t, target, &l}, twin}, func(step int) bool { return step < steps })
			settle := rapid.Bool().Draw(rt, "settle")
			if settle {
				if err := target.Settle(t.Context(), target.Stats().EndedEpoch); err != nil {
					rt.Fatal(err)
				}
				if readImages(t, o).sum() != twin.now().sum() {
					rt.Fatal("settled images are not those of the last epoch")
				}
			}
			if err := target.Close(); err != nil {
				rt.Fatal(err)
			}
			if s := target.Stats(); s.HeldBytes != 0 || s.StagedBytes != 0 || slices.ContainsFunc(target.waiting, func(n int64) bool { return n != 0 }) {
				rt.Fatalf("left behind: %+v, room kept for %v", s, target.waiting)
			}
			// What ended is applied by the next one, if it was not by this.
			if err := Recover(t.Context(), o); err != nil {
				rt.Fatal(err)
			}
			if readImages(t, o).sum() != twin.now().sum() {
				rt.Fatal("the images are not those of the last epoch")
			}
			again := mustOpen(t, o)
			if !again.Whole() {
				rt.Fatal("not whole")
			}
			if err := again.Close(); err != nil {
				rt.Fatal(err)
			}
			twin = &modelDriver{at: map[uint64]disksModel{0: twin.now()}}
		}
		if n := l.out.Load(); n != 0 || l.doubly.Load() != 0 {
			rt.Fatalf("%d buffers were not given back, %d twice", n, l.doubly.Load())
		}
	})
}

// started is a Target with its initial copy behind it.
func started(t *testing.T, o TargetOptions) *Target {
	t.Helper()
	target := mustOpen(t, o)
	t.Cleanup(func() { target.Close() })
	if err := target.EndInitial(); err != nil {
		t.Fatal(err)
	}
	return target
}

func oneWrite(b byte) []Write {
	return []Write{{Disk: 0, Off: 512, Len: 3, Data: []byte{b, b, b}}}
}

func TestTargetRefuses(t *testing.T) {
	o := optionsIn(memoryDir(t), DurabilityMemory)
	target := mustOpen(t, o)
	defer target.Close()
	expect := func(what, want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	expect("stage before the end of the initial copy", "not complete", target.Stage(2, oneWrite(1)))
	expect("settle before it", "not complete", target.Settle(t.Context(), 1))
	expect("a write beyond the disk", "do not fit", target.WriteInitial([]Write{{Disk: 1, Off: 48 << 10, Len: 1, Data: []byte{1}}}))
	if err := target.EndInitial(); err != nil {
		t.Fatal(err)
	}
	expect("initial writes after the end", "is over", target.WriteInitial(oneWrite(1)))
	expect("the initial epoch again", "is over", target.Stage(1, oneWrite(1)))
	if err := target.Stage(2, oneWrite(1)); err != nil {
		t.Fatal(err)
	}
	expect("two epochs at once", "has not ended", target.Stage(3, oneWrite(1)))
	expect("the end of another epoch", "has not ended", target.EndEpoch(3))
	expect("settle at an epoch that is not whole", "not whole", target.Settle(t.Context(), 2))
	_, err := OpenTarget(t.Context(), o)
	if !errors.Is(err, ErrLocked) {
		t.Errorf("a second Target on the same journal: %v", err)
	}
	o2 := o
	o2.JournalDir += "2"
	if _, err = OpenTarget(t.Context(), o2); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Target on the same images: %v", err)
	}
	expect("removing a journal in use", "in use", RemoveJournal(o.JournalDir))
	if err := target.EndEpoch(2); err != nil {
		t.Fatal(err)
	}
	if err := target.Settle(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if err := target.Settle(t.Context(), 2); err != nil {
		t.Errorf("settled again: %v", err)
	}
	if err := target.Settle(t.Context(), 1); !errors.Is(err, ErrSettled) {
		t.Errorf("settled elsewhere: %v", err)
	}
	if err := target.Stage(3, oneWrite(3)); !errors.Is(err, ErrSettled) {
		t.Errorf("staged after Settle: %v", err)
	}
	if err := target.Sync(t.Context()); err != nil || !target.Whole() {
		t.Errorf("sync: %v, whole %v", err, target.Whole())
	}
	if err := target.Close(); err != nil {
		t.Error(err)
	}
	if err := target.Stage(3, oneWrite(3)); !errors.Is(err, ErrClosed) {
		t.Errorf("staged after Close: %v", err)
	}
	if err := RemoveJournal(o.JournalDir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(o.JournalDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is still there: %v", err)
	}
	if err := RemoveJournal(o.JournalDir); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
}

func TestTargetCommitOfPart(t *testing.T) {
	failed := make(chan error, 1)
	o := optionsIn(memoryDir(t), DurabilityMemory)
	o.Failed = func(err error) { failed <- err }
	target := started(t, o)
	if err := target.Stage(2, oneWrite(2)); err != nil {
		t.Fatal(err)
	}
	target.Commit(2)
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "not whole") {
		t.Fatal(err)
	}
}

func TestTargetImages(t *testing.T) {
	dir := memoryDir(t)
	o := optionsIn(dir, DurabilityFsync)
	target := mustOpen(t, o)
	for i, p := range o.Paths {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil || st.Size != o.Disks[i].SizeBytes || st.Blocks != 0 || st.Mode&0o777 != 0o600 {
			t.Errorf("%s: %v, %d bytes, %d sectors, mode %o", p, err, st.Size, st.Blocks, st.Mode)
		}
		if !target.Fresh(i) {
			t.Errorf("%s was made and is not fresh", p)
		}
	}
	if target.Whole() {
		t.Error("new images are whole")
	}
	if err := target.WriteInitial(oneWrite(7)); err != nil {
		t.Fatal(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	target = mustOpen(t, o)
	if target.Whole() || target.Fresh(0) || !target.Fresh(1) {
		t.Errorf("after half an initial copy: whole %v, fresh %v %v", target.Whole(), target.Fresh(0), target.Fresh(1))
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(o.Paths[1], 512); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTarget(t.Context(), o); err == nil || !strings.Contains(err.Error(), "has 512 bytes") {
		t.Errorf("an image of another size: %v", err)
	}
	if err := os.Remove(o.Paths[1]); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.Paths[1], 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTarget(t.Context(), o); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("a directory as an image: %v", err)
	}
}

// leftBy returns what a Target whose process died leaves: its journal holds
// epoch 2, whole, and a part of epoch 3.
func leftBy(t *testing.T, d Durability) TargetOptions {
	t.Helper()
	o := optionsIn(memoryDir(t), d)
	target := started(t, o)
	for e := uint64(2); e <= 3; e++ {
		if err := target.Stage(e, oneWrite(byte(e))); err != nil {
			t.Fatal(err)
		}
		if e == 2 {
			if err := target.EndEpoch(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := filepath.Dir(o.JournalDir)
	died := filepath.Join(memoryDir(t), "died")
	err := os.CopyFS(died, os.DirFS(dir))
	err = errors.Join(err, target.Close(), os.RemoveAll(dir), os.Rename(died, dir))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func byteAt512(t *testing.T, o TargetOptions) byte { t.Helper(); return readImages(t, o)[0][512] }

func TestRecover(t *testing.T) {
	o := leftBy(t, DurabilityMemory)
	if b := byteAt512(t, o); b != 0 {
		t.Fatalf("epoch %d is in the image, nobody committed it", b)
	}
	if err := Recover(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if b := byteAt512(t, o); b != 2 {
		t.Errorf("epoch %d is in the image, 2 was whole", b)
	}
	if err := Recover(t.Context(), o); err != nil {
		t.Errorf("again: %v", err)
	}
	empty := optionsIn(memoryDir(t), DurabilityMemory)
	if err := Recover(t.Context(), empty); err != nil {
		t.Errorf("nothing to recover: %v", err)
	}
	if _, err := os.Stat(empty.Paths[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Recover made an image: %v", err)
	}
}

func TestRecoverRefuses(t *testing.T) {
	o := leftBy(t, DurabilityMemory)
	moved := o
	moved.Paths = slices.Clone(o.Paths)
	moved.Paths[0] += ".elsewhere"
	if _, err := OpenTarget(t.Context(), moved); !errors.Is(err, ErrForeignJournal) {
		t.Errorf("other places: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Recover(gone, o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	state := filepath.Join(o.JournalDir, stateName)
	if err := os.Rename(state, state+".gone"); err != nil {
		t.Fatal(err)
	}
	if err := Recover(t.Context(), o); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("no state: %v", err)
	}
	if err := os.Rename(state+".gone", state); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(o.Paths[0]); err != nil {
		t.Fatal(err)
	}
	if err := Recover(t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no image: %v", err)
	}
}

func TestSettleDropsLater(t *testing.T) {
	for _, d := range []Durability{DurabilityMemory, DurabilityFsync} {
		o := optionsIn(memoryDir(t), d)
		target := started(t, o)
		for e := uint64(2); e <= 4; e++ {
			if err := errors.Join(target.Stage(e, oneWrite(byte(e))), target.EndEpoch(e)); err != nil {
				t.Fatal(err)
			}
		}
		target.Commit(2)
		if err := target.Settle(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		if b := byteAt512(t, o); b != 3 {
			t.Errorf("%v: epoch %d is in the image", d, b)
		}
		if target.Whole() != (d == DurabilityFsync) {
			t.Errorf("%v: whole %v before Sync", d, target.Whole())
		}
		// What the guest writes now stays, whatever is left of the journal.
		if err := os.WriteFile(o.Paths[1], make([]byte, o.Disks[1].SizeBytes), 0); err != nil {
			t.Fatal(err)
		}
		if err := target.Close(); err != nil {
			t.Error(err)
		}
		if numbers, err := segmentNumbers(o.JournalDir); err != nil || len(numbers) != 0 {
			t.Errorf("%v: segments stay: %v %v", d, numbers, err)
		}
	}
}

// The journal is emptied while epochs come, though none of them is left out.
func TestJournalIsEmptied(t *testing.T) {
	o := optionsIn(memoryDir(t), DurabilityMemory)
	target := started(t, o)
	data := make([]byte, 4096)
	for e := uint64(2); e < 200; e++ {
		pattern(data, e)
		if err := target.Stage(e, []Write{{Off: int64(e%40) * 4096, Len: 4096, Data: slices.Clone(data)}}); err != nil {
			t.Fatal(err)
		}
		if err := target.EndEpoch(e); err != nil {
			t.Fatal(err)
		}
		target.Commit(e)
		// EndEpoch waits for the applier when that much is behind, so the bound
		// is what may wait, what is being emptied, and an epoch.
		if n := target.Stats().JournalBytes; n > 3*o.JournalBytesMax {
			t.Fatalf("epoch %d: the journal has %d bytes", e, n)
		}
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	if numbers, err := segmentNumbers(o.JournalDir); err != nil || len(numbers) != 0 {
		t.Errorf("segments after Close: %v %v", numbers, err)
	}
	if got := readImages(t, o)[0][199%40*4096:][:4096]; !slices.Equal(got, data) {
		t.Error("the last epoch is not in the image")
	}
}

// What cannot be applied is told once, and Close leaves it for the next one.
func TestApplyFails(t *testing.T) {
	failed := make(chan error, 2)
	o := optionsIn(memoryDir(t), DurabilityFsync)
	bad := o.Paths[0]
	var sick bool // set before the goroutine that looks at it is woken
	o.hook = func(op op) error {
		if op.kind == opWrite && op.path == bad && sick {
			return unix.EIO
		}
		return nil
	}
	o.Failed = func(err error) { failed <- err }
	target := started(t, o)
	sick = true
	if err := errors.Join(target.Stage(2, oneWrite(2)), target.EndEpoch(2)); err != nil {
		t.Fatal(err)
	}
	target.Commit(2)
	err := <-failed
	if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), bad) || !strings.Contains(err.Error(), "epoch 2") {
		t.Errorf("told: %v", err)
	}
	if err := target.Stage(3, oneWrite(3)); !errors.Is(err, unix.EIO) {
		t.Errorf("staged after the failure: %v", err)
	}
	if err := target.Close(); !errors.Is(err, unix.EIO) {
		t.Errorf("closed: %v", err)
	}
	o.hook = nil
	if err := Recover(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if b := byteAt512(t, o); b != 2 {
		t.Errorf("epoch %d is in the image", b)
	}
	if len(failed) != 0 {
		t.Errorf("told again: %v", <-failed)
	}
}

func TestParseDurability(t *testing.T) {
	for _, d := range []Durability{DurabilityMemory, DurabilityFsync} {
		if got, err := ParseDurability(d.String()); err != nil || got != d {
			t.Errorf("%v: %v %v", d, got, err)
		}
	}
	if _, err := ParseDurability("disk"); err == nil {
		t.Error("disk is a durability")
	}
}
