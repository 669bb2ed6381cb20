package guestram

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// region is memory of this process that plays a RAM block.
type region struct {
	mem  []byte
	file *os.File
	b    Block
}

func newRegion(t testing.TB, size int, shared, huge bool) *region {
	t.Helper()
	r := &region{}
	fd, flags := -1, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS
	if shared {
		var err error
		if fd, err = unix.MemfdCreate("ram", unix.MFD_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		r.file = os.NewFile(uintptr(fd), "ram")
		t.Cleanup(func() { r.file.Close() })
		if err := unix.Ftruncate(fd, int64(size)); err != nil {
			t.Fatal(err)
		}
		flags = unix.MAP_SHARED
	}
	const align = 2 << 20
	// Room to align, so that huge pages fit.
	all, err := unix.Mmap(-1, 0, size+align, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(all) })
	skip := -int(uintptr(unsafe.Pointer(&all[0]))) & (align - 1)
	at := unsafe.Pointer(&all[skip])
	if _, err := unix.MmapPtr(fd, 0, at, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_FIXED); err != nil {
		t.Fatal(err)
	}
	r.mem = all[skip : skip+size]
	advice := unix.MADV_NOHUGEPAGE
	if huge {
		advice = unix.MADV_HUGEPAGE
	}
	if err := unix.Madvise(r.mem, advice); err != nil {
		t.Fatal(err)
	}
	blocks := []Block{{Name: "ram", Host: uint64(uintptr(at)), Used: uint64(size), Max: uint64(size), PageSize: PageSize, Migratable: true}}
	if err := attachMappings(os.Getpid(), blocks); err != nil {
		t.Fatal(err)
	}
	if r.b = blocks[0]; r.b.Shared != shared {
		t.Fatalf("mapping taken for %+v", r.b)
	}
	return r
}

// track tracks a region of this very process.
func (r *region) track(t testing.TB) *uffdTracker {
	t.Helper()
	if err := ProbeUffd(); errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly, 0, 0)
	if e != 0 {
		t.Fatal(e)
	}
	tr := &uffdTracker{uffd: int(fd), pagemap: -1, parallelNs: parallelScanNs}
	t.Cleanup(func() { tr.Close() })
	if err := tr.open(os.Getpid(), []Block{r.b}); err != nil {
		t.Fatal(err)
	}
	return tr
}

func collect(t testing.TB, tr Tracker) []Range {
	t.Helper()
	rs, err := tr.Collect(nil)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func covers(rs []Range, page int) bool {
	for _, r := range rs {
		if off := uint64(page) * PageSize; r.Off <= off && off < r.End() {
			return true
		}
	}
	return false
}

func kinds(t *testing.T, f func(t *testing.T, shared, huge bool)) {
	for name, k := range map[string][2]bool{"anonymous": {}, "huge": {false, true}, "memfd": {true, false}} {
		t.Run(name, func(t *testing.T) { f(t, k[0], k[1]) })
	}
}

// Everything the tracker may be told by the kernel, in random order, against a
// copy that knows only what was reported.
func TestTrackerKeepsACopyEqual(t *testing.T) {
	kinds(t, func(t *testing.T, shared, huge bool) {
		t.Run("alone", func(t *testing.T) { keepsEqual(t, shared, huge, func(*uffdTracker, *Reader) {}) })
		t.Run("together", func(t *testing.T) {
			keepsEqual(t, shared, huge, func(tr *uffdTracker, rd *Reader) { tr.parallelNs, rd.parallel = 0, 0 })
		})
		t.Run("before Linux 6.9", func(t *testing.T) {
			keepsEqual(t, shared, huge, func(tr *uffdTracker, _ *Reader) { tr.written = scanWrittenSure })
		})
		t.Run("holes apart", func(t *testing.T) {
			keepsEqual(t, shared, huge, func(tr *uffdTracker, _ *Reader) { tr.holesWritten = false })
		})
	})
}

func keepsEqual(t *testing.T, shared, huge bool, tune func(*uffdTracker, *Reader)) {
	const pages = 12288 // 48 MiB, and long enough a run of them untouched
	const epochs = 120
	r := newRegion(t, pages*PageSize, shared, huge)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		r.mem[rng.IntN(pages/4)*PageSize+7] = 1
	}
	tr := r.track(t)
	rd, err := NewReader(os.Getpid(), []Block{r.b})
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	tune(tr, rd)
	twin, buf := make([]byte, len(r.mem)), make([]byte, len(r.mem))
	for epoch := range epochs {
		reach := pages/4 + epoch*pages*3/4/epochs // memory that was untouched comes into use
		rs := collect(t, tr)
		n, err := rd.Read(rs, buf)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for _, g := range rs {
			at += copy(twin[g.Off:g.End()], buf[at:])
		}
		if at != n {
			t.Fatalf("epoch %d: read %d bytes, ranges hold %d", epoch, n, at)
		}
		if epoch%10 == 0 || epoch > epochs-10 {
			if p := differs(t, r, twin[:reach*PageSize]); p >= 0 {
				t.Fatalf("epoch %d: page %d differs", epoch, p)
			}
		}
		for range rng.IntN(40) {
			r.mem[rng.IntN(reach*PageSize)] = byte(rng.Uint32())
		}
		from, n2 := rng.IntN(reach-1), 1
		if rng.IntN(2) == 0 { // also whole page tables
			from, n2 = from&^511, 512
		}
		part := r.mem[from*PageSize:][:n2*PageSize]
		switch rng.IntN(6) {
		case 0:
			err = unix.Madvise(part, unix.MADV_DONTNEED)
		case 1:
			if shared {
				err = unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(from*PageSize), int64(len(part)))
			}
		case 2:
			_ = unix.Madvise(part, unix.MADV_PAGEOUT) // without swap: drops shared mappings at most
		case 3:
			_ = unix.Madvise(part, unix.MADV_COLLAPSE) // may be refused
		case 4:
			_ = part[0] + part[len(part)-1]
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// differs compares as much as twin has. It touches no memory behind that, and in
// shared memory none at all.
func differs(t *testing.T, r *region, twin []byte) int {
	t.Helper()
	mem := r.mem[:len(twin)]
	if r.file != nil {
		mem = make([]byte, len(twin))
		if _, err := r.file.ReadAt(mem, 0); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Equal(mem, twin) {
		return -1
	}
	p := 0
	for bytes.Equal(mem[p:p+PageSize], twin[p:p+PageSize]) {
		p += PageSize
	}
	return p / PageSize
}

func TestThrownAwayPagesAreReported(t *testing.T) {
	kinds(t, func(t *testing.T, shared, huge bool) {
		r := newRegion(t, 1024*PageSize, shared, huge)
		for i := range r.mem {
			r.mem[i] = 1
		}
		tr := r.track(t)
		if rs := collect(t, tr); len(rs) != 1 || rs[0].Pages != 1024 {
			t.Fatalf("first pass: %v", rs)
		}
		if rs := collect(t, tr); len(rs) != 0 {
			t.Fatalf("nothing was written: %v", rs)
		}
		drop := func(off, n int) {
			if shared {
				if err := unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Madvise(r.mem[off:off+n], unix.MADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
		}
		drop(3*PageSize, PageSize)
		if rs := collect(t, tr); !covers(rs, 3) || covers(rs, 600) {
			t.Errorf("one page: %v", rs)
		}
		drop(512*PageSize, 512*PageSize) // a page table, or a huge page
		if rs := collect(t, tr); !covers(rs, 512) || !covers(rs, 1023) || covers(rs, 0) {
			t.Errorf("512 pages: %v", rs)
		}
		if rs := collect(t, tr); len(rs) != 0 {
			t.Errorf("reported twice: %v", rs)
		}
		r.mem[700*PageSize] = 1
		if rs := collect(t, tr); len(rs) != 1 || !covers(rs, 700) {
			t.Errorf("written again: %v", rs)
		}
	})
}

// A first pass over a memfd that others have written, and reading it, must not
// allocate pages in it.
func TestReadingDoesNotGrow(t *testing.T) {
	r := newRegion(t, 8192*PageSize, true, false)
	if _, err := r.file.WriteAt(make([]byte, 10*PageSize), 100*PageSize); err != nil {
		t.Fatal(err)
	}
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(r.file.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	before := blocks()
	tr := r.track(t)
	rs := collect(t, tr)
	if len(rs) != 1 || rs[0] != (Range{0, 10, 100 * PageSize}) {
		t.Fatalf("first pass: %v", rs)
	}
	rd, err := NewReader(os.Getpid(), []Block{r.b})
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if _, err := rd.Read([]Range{{0, 8192, 0}}, make([]byte, 8192*PageSize)); err != nil {
		t.Fatal(err)
	}
	if now := blocks(); now != before {
		t.Errorf("backing grew from %d to %d blocks of 512 bytes", before, now)
	}
}

func TestCloseLeavesNoRegistration(t *testing.T) {
	r := newRegion(t, 64*PageSize, false, false)
	tr := r.track(t)
	collect(t, tr)
	if err := errors.Join(tr.Close(), tr.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Collect(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Collect after Close: %v", err)
	}
	if rs := collect(t, r.track(t)); len(rs) != 0 {
		t.Errorf("marks were left behind: %v", rs)
	}
}

func TestCollectFailsOnForeignMapping(t *testing.T) {
	r := newRegion(t, 64*PageSize, false, false)
	r.mem[0] = 1
	tr := r.track(t)
	collect(t, tr)
	r.mem[0] = 2
	at := unsafe.Pointer(&r.mem[32*PageSize])
	if _, err := unix.MmapPtr(-1, 0, at, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED); err != nil {
		t.Fatal(err)
	}
	rs, err := tr.Collect(nil)
	if err == nil {
		t.Fatal("a block that was mapped anew is not tracked, and no error says so")
	}
	if !covers(rs, 0) {
		t.Errorf("the range before the failure is lost: %v", rs)
	}
}

func TestReadRefuses(t *testing.T) {
	r := newRegion(t, 16*PageSize, false, false)
	dst := make([]byte, 16*PageSize)
	if _, err := Read(os.Getpid(), []Block{r.b}, []Range{{0, 17, 0}}, dst); !errors.Is(err, ErrLayout) {
		t.Errorf("beyond the block: %v", err)
	}
	if _, err := Read(os.Getpid(), []Block{r.b}, []Range{{0, 2, 0}}, dst[:PageSize]); err == nil {
		t.Error("short buffer accepted")
	}
	if err := unix.Mprotect(r.mem[4*PageSize:5*PageSize], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(os.Getpid(), []Block{r.b}, []Range{{0, 2, 0}, {0, 4, 2 * PageSize}}, dst); !errors.Is(err, ErrLayout) {
		t.Errorf("unreadable page: %v", err)
	}
}

func TestTrackUffdOfDeadProcess(t *testing.T) {
	if _, err := TrackUffd(context.Background(), 1<<22-1, nil); err == nil {
		t.Error("tracked a process that does not exist")
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	r := newRegion(t, 1024*PageSize, false, false)
	tr := r.track(t)
	collect(t, tr)
	rd, err := NewReader(os.Getpid(), []Block{r.b})
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	rs, buf := make([]Range, 0, 1024), make([]byte, len(r.mem))
	n := testing.AllocsPerRun(100, func() {
		r.mem[5*PageSize]++
		r.mem[9*PageSize]++
		if rs, err = tr.Collect(rs[:0]); err == nil {
			_, err = rd.Read(rs, buf)
		}
	})
	if err != nil || n != 0 {
		t.Errorf("%v allocations, %v", n, err)
	}
}

func TestQueryForKernel(t *testing.T) {
	for release, want := range map[string]query{"6.18.0": scanWritten, "6.9.0-rc1": scanWritten, "7.0": scanWritten, "6.8.12-generic": scanWrittenSure,
		"6.7.0": scanWrittenSure, "": scanWrittenSure, "something": scanWrittenSure} {
		if got := queryFor(release); got != want {
			t.Errorf("Linux %q is asked by query %d, want %d", release, got, want)
		}
	}
}
