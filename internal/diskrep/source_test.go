package diskrep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// stuck is a connection that takes one batch and moves no more.
func stuck(ctx context.Context, ws []Write) error {
	<-ctx.Done()
	freeAll(ws)
	return ctx.Err()
}

func freeAll(ws []Write) {
	for i := range ws {
		ws[i].Free()
	}
}

// recorder keeps what was shipped, as text.
type recorder struct{ got []string }

func (r *recorder) ship(_ context.Context, ws []Write) error {
	for i := range ws {
		kind := "data"
		if ws[i].Data == nil {
			kind = "zeros"
		}
		r.got = append(r.got, fmt.Sprintf("%d: %d %s at %d", ws[i].Disk, ws[i].Len, kind, ws[i].Off))
		ws[i].Free()
	}
	return nil
}

// shipped cuts an epoch, and returns what was shipped of it.
func (r *recorder) shipped(t *testing.T, s *Source) []string {
	t.Helper()
	s.Cut()
	if n, err := s.Shipped(t.Context()); err != nil || n != uint64(len(r.got)) {
		t.Fatalf("%d shipped, %v; want %v", n, err, r.got)
	}
	got := r.got
	r.got = nil
	s.Advance()
	return got
}

// write writes what the lender keeps an eye on.
func write(t *testing.T, l *lender, d *SourceDisk, off int64, data []byte) {
	t.Helper()
	b, release := l.lend(data)
	if err := d.Write(t.Context(), off, b, release, false); err != nil {
		t.Errorf("%d bytes at %d: %v", len(data), off, err)
	}
}

var page = bytes.Repeat([]byte{7}, 4096)

func TestSourceStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool lender
		var told []error
		s := NewSource([]Disk{{"vda", 1 << 30}, {"vdb", 1 << 30}}, SourceOptions{QueueBytesMax: 10000, StallMax: 3 * time.Second, Broken: func(err error) { told = append(told, err) }})
		s.Begin(t.Context(), stuck)
		s.Compared()
		write(t, &pool, s.Backend(0), 0, page)
		write(t, &pool, s.Backend(0), 4096, page)
		start := time.Now()
		if n := s.cur.Load().bytes; n != 2*(4096+writeCostBytes) {
			t.Errorf("%d bytes are queued", n)
		}
		go write(t, &pool, s.Backend(1), 0, page) // waits with us
		write(t, &pool, s.Backend(0), 8192, page)
		if waited := time.Since(start); waited != 3*time.Second {
			t.Errorf("a write that found no room was held up for %v", waited)
		}
		synctest.Wait()
		if len(told) != 1 || s.Whole() != told[0] || !strings.Contains(told[0].Error(), "found no room in the queue (10000 bytes) for 3s") {
			t.Errorf("Broken was told %v, Whole says %v", told, s.Whole())
		}
		write(t, &pool, s.Backend(1), 0, page)
		if waited := time.Since(start); waited != 3*time.Second {
			t.Errorf("the write after a stall was held up too: %v", waited)
		}
		s.Mark(errors.New("also"))
		s.End()
		synctest.Wait()
		if len(told) != 1 {
			t.Errorf("Broken was told %v", told)
		}
		pool.check(t)
	})
}

// TestSourceRoom: who waits is let in when there is room, in the order of
// arrival, and a write larger than the queue when nothing else waits.
func TestSourceRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool lender
		var r recorder
		next := make(chan struct{})
		s := NewSource([]Disk{{"vda", 1 << 30}, {"vdb", 1 << 30}, {"vdc", 1 << 30}}, SourceOptions{QueueBytesMax: 10000, StallMax: time.Hour})
		s.Begin(t.Context(), func(ctx context.Context, ws []Write) error {
			<-next
			return r.ship(ctx, ws)
		})
		s.Compared()
		write(t, &pool, s.Backend(0), 0, page)
		synctest.Wait() // it is being shipped, and still counts
		for i, data := range [][]byte{bytes.Repeat(page, 16), page, page} {
			go write(t, &pool, s.Backend(i), 4096*int64(i+1), data)
			synctest.Wait()
		}
		if n := len(s.cur.Load().writers); n != 3 {
			t.Fatalf("%d writers wait for room", n)
		}
		close(next)
		synctest.Wait()
		want := []string{"0: 4096 data at 0", "0: 65536 data at 4096", "1: 4096 data at 8192", "2: 4096 data at 12288"}
		if got := r.shipped(t, s); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		// Its time was up in the moment in which it was let in.
		w := &writer{done: make(chan struct{})}
		close(w.done)
		s.cur.Load().giveUp(w, errors.New("late"), true)
		if err := s.Whole(); err != nil {
			t.Error(err)
		}
		s.End()
		pool.check(t)
	})
}

// TestSourceEnd: End frees who is stuck in ship and who waits for room.
func TestSourceEnd(t *testing.T) {
	for _, how := range []string{"End", "context", "Mark"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var pool lender
				var told atomic.Int64
				s := NewSource([]Disk{{"vda", 1 << 30}, {"vdb", 1 << 30}}, SourceOptions{QueueBytesMax: 5000, StallMax: time.Hour, Broken: func(error) { told.Add(1) }})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				for range 2 { // a session like the other
					s.Begin(ctx, stuck)
					write(t, &pool, s.Backend(0), 0, page)
					go write(t, &pool, s.Backend(0), 4096, page)
					go write(t, &pool, s.Backend(1), 0, page)
					s.Cut()
					go func() {
						if _, err := s.Shipped(t.Context()); err == nil {
							t.Error("what is stuck was shipped")
						}
					}()
					synctest.Wait()
					start := time.Now()
					switch how {
					case "context":
						cancel()
						synctest.Wait()
					case "Mark":
						s.Mark(nil)
					}
					if how != "End" && s.Whole() == nil {
						t.Error("all is whole")
					}
					s.End()
					s.End()
					synctest.Wait()
					if !time.Now().Equal(start) {
						t.Error("somebody waited")
					}
					if how != "Mark" && !errors.Is(s.Whole(), ErrNoSession) {
						t.Error(s.Whole())
					}
					pool.check(t)
					write(t, &pool, s.Backend(0), 0, page)
					pool.check(t)
				}
				if n := told.Load(); (how == "Mark") != (n == 2) || how != "Mark" && n != 0 {
					t.Errorf("Broken was told %d times", n)
				}
			})
		})
	}
}

// TestSourceConnectionDies: a write that waits ends with its connection.
func TestSourceConnectionDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool lender
		told := make(chan error, 1)
		s := NewSource([]Disk{{"vda", 1 << 30}}, SourceOptions{QueueBytesMax: 5000, StallMax: time.Hour, Broken: func(err error) { told <- err }})
		s.Begin(t.Context(), stuck)
		write(t, &pool, s.Backend(0), 0, page)
		ctx, cancel := context.WithCancel(t.Context())
		answer := make(chan error)
		go func() {
			b, release := pool.lend(page)
			answer <- s.Backend(0).Write(ctx, 4096, b, release, false)
		}()
		synctest.Wait()
		cancel()
		if err := <-answer; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := <-told; err != s.Whole() {
			t.Errorf("%v, %v", err, s.Whole())
		}
		// One of a closed connection is not kept by a session that follows.
		s.Begin(t.Context(), stuck)
		b, release := pool.lend(page)
		if err := s.Backend(0).Write(ctx, 0, b, release, false); !errors.Is(err, context.Canceled) || s.Whole() == nil {
			t.Errorf("%v, %v", err, s.Whole())
		}
		s.End()
		pool.check(t)
	})
}

func TestSourceShipFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := make(chan error, 1)
		s := NewSource([]Disk{{"vda", 1 << 30}}, SourceOptions{Broken: func(err error) { told <- err }})
		s.Begin(t.Context(), func(_ context.Context, ws []Write) error {
			freeAll(ws)
			return syscall.EPIPE
		})
		var pool lender
		write(t, &pool, s.Backend(0), 0, page) // too little to be shipped before the cut
		s.Cut()
		if _, err := s.Shipped(t.Context()); !errors.Is(err, syscall.EPIPE) {
			t.Error(err)
		}
		if err := <-told; !errors.Is(err, syscall.EPIPE) || !errors.Is(s.Whole(), syscall.EPIPE) {
			t.Error(err)
		}
		s.End()
		pool.check(t)
	})
}

func TestSourceCutAllocatesNothing(t *testing.T) {
	s := NewSource([]Disk{{"vda", 1 << 30}}, SourceOptions{})
	s.Begin(t.Context(), stuck)
	defer s.End()
	var pool lender
	for i := range int64(100) {
		write(t, &pool, s.Backend(0), i*4096, page)
	}
	if n := testing.AllocsPerRun(1000, s.Cut); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestSourceOrderOfCalls: an epoch cannot be ended that was not cut or not
// shipped.
func TestSourceOrderOfCalls(t *testing.T) {
	s := NewSource([]Disk{{"vda", 1 << 30}}, SourceOptions{})
	// Without a session nothing happens.
	s.Cut()
	s.Uncut()
	s.Advance()
	s.Compared()
	s.Mark(nil)
	s.End()
	if _, err := s.Shipped(t.Context()); !errors.Is(err, ErrNoSession) || !errors.Is(s.Whole(), ErrNoSession) {
		t.Errorf("%v, %v", err, s.Whole())
	}
	if err := s.Fresh(0); !errors.Is(err, ErrNoSession) {
		t.Error(err)
	}
	var pool lender
	for _, cut := range []bool{false, true} {
		s.Begin(t.Context(), stuck)
		if _, err := s.Shipped(t.Context()); !errors.Is(err, errNotCut) {
			t.Error(err)
		}
		write(t, &pool, s.Backend(0), 0, page)
		if cut {
			s.Cut()
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Shipped(ctx); cut && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		s.Advance()
		if err := s.Whole(); err == nil || !strings.Contains(err.Error(), "before its writes were shipped") {
			t.Error(err)
		}
	}
	s.End()
	pool.check(t)
}

// TestSourceUncut: what a failed checkpoint had cut stays in its epoch.
func TestSourceUncut(t *testing.T) {
	var pool lender
	var r recorder
	s := NewSource([]Disk{{"vda", 1 << 30}}, SourceOptions{})
	s.Begin(t.Context(), r.ship)
	defer s.End()
	write(t, &pool, s.Backend(0), 0, page)
	s.Cut()
	write(t, &pool, s.Backend(0), 4096, page)
	if n, err := s.Shipped(t.Context()); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	s.Uncut()
	want := []string{"0: 4096 data at 0", "0: 4096 data at 4096"}
	if got := r.shipped(t, s); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := r.shipped(t, s); len(got) != 0 {
		t.Errorf("%q in the epoch after", got)
	}
}

func TestSourceRefuses(t *testing.T) {
	s := NewSource([]Disk{{"vda", 1 << 20}}, SourceOptions{})
	d := s.Backend(0)
	if d.SizeBytes() != 1<<20 {
		t.Error(d.SizeBytes())
	}
	if err := d.Read(t.Context(), make([]byte, 512), 0); !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "disk vda") {
		t.Error(err)
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	for _, x := range []struct{ off, n int64 }{{-1, 512}, {1 << 20, 512}, {1<<20 - 256, 512}, {1<<63 - 1, 512}, {0, -1}, {0, 1 << 62}} {
		s.Begin(t.Context(), stuck)
		if err := d.Zero(t.Context(), x.off, x.n, true, false); !errors.Is(err, syscall.EINVAL) || s.Whole() == nil {
			t.Errorf("%+v: %v, %v", x, err, s.Whole())
		}
		if x.n != 512 {
			continue
		}
		var pool lender
		s.Begin(t.Context(), stuck)
		b, release := pool.lend(page[:512])
		if err := d.Write(t.Context(), x.off, b, release, false); !errors.Is(err, syscall.EINVAL) || s.Whole() == nil {
			t.Errorf("%+v: %v, %v", x, err, s.Whole())
		}
		pool.check(t)
	}
	s.Begin(t.Context(), stuck)
	var pool lender
	write(t, &pool, d, 0, nil)
	if err := errors.Join(d.Zero(t.Context(), 0, 0, false, false), s.Whole()); err != nil {
		t.Error(err)
	}
	pool.check(t)
	s.End()
}

// TestSourceRaces: nobody gets in another's way, whatever is called when.
func TestSourceRaces(t *testing.T) {
	var pool lender
	var told, begun atomic.Int64
	disks := []Disk{{"vda", 1 << 20}, {"vdb", 1 << 20}}
	s := NewSource(disks, SourceOptions{QueueBytesMax: 20000, StallMax: time.Hour, Broken: func(error) { told.Add(1) }})
	var guest sync.WaitGroup
	stop := make(chan struct{})
	for i := range disks {
		for j := range int64(2) { // two connections of an export
			guest.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						write(t, &pool, s.Backend(i), j*4096, page)
					}
				}
			})
		}
	}
	guest.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.Stats()
				s.Whole()
				s.Compared()
			}
		}
	})
	for i := range 200 {
		begun.Add(1)
		s.Begin(t.Context(), func(_ context.Context, ws []Write) error {
			freeAll(ws)
			return nil
		})
		for range 5 {
			s.Cut()
			if _, err := s.Shipped(t.Context()); err != nil {
				t.Error(err)
			}
			s.Advance()
		}
		if err := s.Whole(); err != nil {
			t.Error(err)
		}
		switch i % 3 {
		case 0:
			s.Mark(nil)
		case 1:
			s.End()
		}
	}
	s.End()
	close(stop)
	guest.Wait()
	pool.check(t)
	if told.Load() > begun.Load() {
		t.Errorf("Broken was told %d times in %d sessions", told.Load(), begun.Load())
	}
}
