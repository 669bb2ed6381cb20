package diskrep

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
)

// TestSourcePieces: no Write is larger than the wire allows, and a piece is not
// a copy.
func TestSourcePieces(t *testing.T) {
	var pool lender
	var r recorder
	var first []*byte
	s := NewSource([]Disk{{"vda", 1 << 40}}, SourceOptions{})
	s.Begin(t.Context(), func(ctx context.Context, ws []Write) error {
		for i := range ws {
			if ws[i].Data != nil {
				first = append(first, &ws[i].Data[0])
			}
		}
		return r.ship(ctx, ws)
	})
	defer s.End()
	s.Compared()
	data := make([]byte, 2<<20+512)
	if err := s.Backend(0).Write(t.Context(), 512, data, nil, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Backend(0).Trim(t.Context(), 4096, 2<<30, false); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"0: 1048576 data at 512", "0: 1048576 data at 1049088", "0: 512 data at 2097664",
		"0: 1073737728 zeros at 4096", "0: 1073741824 zeros at 1073741824", "0: 4096 zeros at 2147483648",
	}
	if got := r.shipped(t, s); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if !slices.Equal(first, []*byte{&data[0], &data[1<<20], &data[2<<20]}) {
		t.Error("the pieces are not in the buffer that was written")
	}
	for _, p := range s.cur.Load().disks[0].parts[:3] {
		if p.Data != nil {
			t.Error("a buffer that was given back is still referred to")
		}
	}
	want = slices.Repeat([]string{"0: 4096 data at 0"}, 1500) // more than one batch
	for range want {
		write(t, &pool, s.Backend(0), 0, page)
	}
	if got := r.shipped(t, s); !slices.Equal(got, want) {
		t.Errorf("%d of %d", len(got), len(want))
	}
	pool.check(t)
	st := s.Stats()[0]
	if want := (DiskStats{Writes: 1502, WrittenBytes: 2<<20 + 512 + 2<<30 + 1500*4096, ShippedBytes: 2<<20 + 512 + 1500*4096, ZeroBytes: 2 << 30}); st != want {
		t.Errorf("%+v, want %+v", st, want)
	}
}

// TestSourceQueue: what is taken is what came, in pieces of bounded size.
func TestSourceQueue(t *testing.T) {
	var q sourceQueue
	large := slices.Repeat([]Write{{Len: writeBytesMax, Data: make([]byte, writeBytesMax)}}, 9)
	q.add(large)
	for _, want := range []int{4, 4, 1, 0} {
		if got := q.take(9); len(got) != want {
			t.Errorf("%d writes of 1 MiB were taken, want %d", len(got), want)
		}
	}
	next, taken := int64(0), int64(0)
	add := func(n int) {
		for range n {
			q.add([]Write{{Off: next, Len: 1}})
			next++
		}
	}
	take := func(until, want int) {
		t.Helper()
		got := q.take(uint64(until))
		if len(got) != want {
			t.Fatalf("%d writes were taken, want %d", len(got), want)
		}
		for _, w := range got {
			if w.Off != taken {
				t.Fatalf("write %d was taken, want %d", w.Off, taken)
			}
			taken++
		}
	}
	add(shipWritesMax - 9) // a chunk is full to the last
	take(1<<30, shipWritesMax-9)
	take(1<<30, 0)
	add(3)
	take(shipWritesMax+2, 2)
	take(shipWritesMax+2, 0)
	add(2 * shipWritesMax)
	take(1<<30, shipWritesMax-2)
	take(1<<30, shipWritesMax)
	take(1<<30, 3)
	if taken != next {
		t.Errorf("%d of %d were taken", taken, next)
	}
}

// TestSourceGathers: small writes wait for each other, at most until the cut,
// and never in the way of one that waits for room.
func TestSourceGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool lender
		var r recorder
		s := NewSource([]Disk{{"vda", 1 << 30}}, SourceOptions{QueueBytesMax: 1 << 20})
		s.Begin(t.Context(), r.ship)
		defer s.End()
		s.Compared()
		expect := func(when string, want int) {
			t.Helper()
			synctest.Wait()
			if len(r.got) != want {
				t.Errorf("%s: %d writes are shipped, want %d", when, len(r.got), want)
			}
		}
		synctest.Wait() // the pump sleeps
		const few = shipBytesMin / (4096 + writeCostBytes)
		for range few {
			write(t, &pool, s.Backend(0), 0, page)
		}
		expect("a few small ones", 0)
		write(t, &pool, s.Backend(0), 0, page)
		expect("one more", few+1)
		write(t, &pool, s.Backend(0), 0, page)
		s.Cut()
		expect("the cut", few+2)
		write(t, &pool, s.Backend(0), 0, page)
		expect("one behind the cut", few+2)
		if n, err := s.Shipped(t.Context()); n != few+2 || err != nil {
			t.Errorf("%d shipped, %v", n, err)
		}
		s.Advance()
		expect("the next epoch", few+3)
		write(t, &pool, s.Backend(0), 0, page)
		expect("a small one in it", few+3)
		write(t, &pool, s.Backend(0), 0, make([]byte, 1<<20)) // finds no room
		expect("one that waited", few+5)
		pool.check(t)
	})
}
