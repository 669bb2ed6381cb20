package guestram

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tally counts which piece was done how often.
type tally struct {
	next  atomic.Int32
	done  []int32
	lanes [8]int
}

func (w *tally) work(lane int) {
	for {
		i := int(w.next.Add(1)) - 1
		if i >= len(w.done) {
			return
		}
		w.done[i]++
		w.lanes[lane]++
	}
}

// Each piece is done once, by whoever comes, and all are done when run returns.
func TestCrew(t *testing.T) {
	for _, lanes := range []int{1, 2, 5} {
		c, err := newCrew(lanes)
		if err != nil {
			t.Fatal(err)
		}
		for round := range 2000 {
			w := &tally{done: make([]int32, round%50)}
			c.run(w, round%5 != 0)
			for i, n := range w.done {
				if n != 1 {
					t.Fatalf("%d lanes, round %d: piece %d was done %d times", lanes, round, i, n)
				}
			}
		}
		if err := c.close(); err != nil {
			t.Error(err)
		}
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}
}

// A write to a huge page is reported as one page, and the rest of it stays as it
// was: hot memory is tracked by 4 KiB, cold memory by 2 MiB.
func TestWrittenHugePageIsOnePage(t *testing.T) {
	r := newRegion(t, 8*regionBytes, false, true)
	for i := range r.mem {
		r.mem[i] = 1
	}
	tr := r.track(t)
	collect(t, tr)
	r.mem[3*regionBytes+7*PageSize] = 2
	if rs := collect(t, tr); len(rs) != 1 || rs[0] != (Range{0, 1, 3*regionBytes + 7*PageSize}) {
		t.Errorf("one page was written: %v", rs)
	}
}

// Memory that was never touched is not armed: a guest that begins to use it gets
// what it would get without us.
func TestUntouchedMemoryStaysUnarmed(t *testing.T) {
	const empty = 4 * emptyRunMin
	r := newRegion(t, (1+empty)*regionBytes, false, false)
	r.mem[0] = 1
	tr := r.track(t)
	if rs := collect(t, tr); len(rs) != 1 || rs[0].Pages != 1 {
		t.Fatalf("first pass: %v", rs)
	}
	if rs := collect(t, tr); len(rs) != 0 {
		t.Fatalf("nothing was written: %v", rs)
	}
	if n := len(tr.pieces); n != 2 || !tr.pieces[1].empty {
		t.Fatalf("pieces: %+v", tr.pieces)
	}
	r.mem[5*regionBytes+9*PageSize] = 1
	if rs := collect(t, tr); len(rs) != 1 || rs[0] != (Range{0, 1, 5*regionBytes + 9*PageSize}) {
		t.Errorf("one page came to be: %v", rs)
	}
	if rs := collect(t, tr); len(rs) != 0 {
		t.Errorf("its neighbours are reported: %v", rs)
	}
	if n := len(tr.pieces); n != 4 {
		t.Errorf("pieces: %+v", tr.pieces)
	}
}

// Between two looks a second apart nothing hides: a hole that is punched changes
// the time of the file, and a time too young to tell is not trusted.
func TestPunchedHoleChangesTheTime(t *testing.T) {
	r := newRegion(t, regionBytes, true, false)
	r.mem[0] = 1
	changed := func(c *ctime, now time.Time) bool {
		t.Helper()
		y, err := c.changed(r.file, now)
		if err != nil {
			t.Fatal(err)
		}
		return y
	}
	var c ctime
	if !changed(&c, time.Now()) {
		t.Error("the first look says that nothing has changed")
	}
	if !changed(&c, time.Now().Add(time.Hour)) { // the look before was too soon
		t.Error("a file that has just been made is trusted")
	}
	r.mem[1] = 2
	if changed(&c, time.Now().Add(time.Hour)) {
		t.Error("writing to memory counts as a change of the file")
	}
	if err := unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, PageSize); err != nil {
		t.Fatal(err)
	}
	if !changed(&c, time.Now()) {
		t.Error("a punched hole does not change the time")
	}
	gone, _ := os.Open(os.DevNull)
	gone.Close()
	if _, err := c.changed(gone, time.Now()); err == nil {
		t.Error("no error of a closed file")
	}
}

// After a pass that failed in the middle, pages may be armed and unreported: the
// next one reports all that is there, and what is not there any more.
func TestPassAfterAFailedOne(t *testing.T) {
	kinds(t, func(t *testing.T, shared, huge bool) {
		r := newRegion(t, (2+2*emptyRunMin)*regionBytes, shared, huge)
		for i := range 2 * regionBytes {
			r.mem[i] = 1
		}
		tr := r.track(t)
		collect(t, tr)
		tr.blocks[0].pass = firstFailed
		if err := unix.Madvise(r.mem[:regionBytes], unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		rs := collect(t, tr)
		for _, page := range []int{0, 511, 512, 1023} {
			if !shared && !covers(rs, page) || shared && page > 511 && !covers(rs, page) {
				t.Errorf("page %d is not reported: %v", page, rs)
			}
		}
		if rs := collect(t, tr); len(rs) != 0 {
			t.Errorf("reported twice: %v", rs)
		}
	})
}

// While another thread writes, old pages and ones that were never touched, each
// scan may miss nothing: after a last one a copy of what was reported is equal.
func TestWritesDuringScans(t *testing.T) {
	kinds(t, func(t *testing.T, shared, huge bool) {
		const size = 24 * regionBytes
		for round := range 3 {
			r := newRegion(t, size, shared, huge)
			r.mem[0] = 1
			tr := r.track(t)
			tr.parallelNs = int64(round%2) * parallelScanNs
			rd, err := NewReader(os.Getpid(), []Block{r.b})
			if err != nil {
				t.Fatal(err)
			}
			defer rd.Close()
			twin, buf := make([]byte, size), make([]byte, size)
			epoch := func() {
				rs := collect(t, tr)
				if _, err := rd.Read(rs, buf); err != nil {
					t.Fatal(err)
				}
				at := 0
				for _, g := range rs {
					at += copy(twin[g.Off:g.End()], buf[at:])
				}
			}
			var ended atomic.Bool
			go func() {
				defer ended.Store(true)
				for i := range size / PageSize { // once each: nothing repairs what was missed
					r.mem[i*PageSize+i%PageSize]++
				}
			}()
			for !ended.Load() {
				epoch()
			}
			epoch()
			if p := differs(t, r, twin); p >= 0 {
				t.Fatalf("round %d: page %d differs", round, p)
			}
		}
	})
}
