package diskrep

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

func sumsOf(blocks ...[]byte) (sums []byte) {
	for _, b := range blocks {
		s := SumOf(b)
		sums = append(sums, s[:]...)
	}
	return sums
}

// TestSourceSums: what the backup says of its image is checked before anything
// is made of it.
func TestSourceSums(t *testing.T) {
	block := bytes.Repeat([]byte{1}, BlockBytes)
	one := sumsOf(block)
	for _, x := range []struct {
		name  string
		do    func(s *Source) error
		wrong string // empty: none
	}{
		{"disk", func(s *Source) error { return s.AddSums(1, 0, one) }, "disk 1 of 1"},
		{"negative disk", func(s *Source) error { return s.Fresh(-1) }, "disk -1 of 1"},
		{"empty", func(s *Source) error { return s.AddSums(0, 0, nil) }, "0 bytes are no sequence"},
		{"odd", func(s *Source) error { return s.AddSums(0, 0, one[:15]) }, "15 bytes are no sequence"},
		{"last", func(s *Source) error { return s.AddSums(0, 2, one) }, ""},
		{"beyond", func(s *Source) error { return s.AddSums(0, 3, one) }, "1 sums from block 3 on, of 3"},
		{"too many", func(s *Source) error { return s.AddSums(0, 0, bytes.Repeat(one, 4)) }, "4 sums from block 0 on, of 3"},
		{"wrapped", func(s *Source) error { return s.AddSums(0, 1<<64-1, one) }, "of 3"},
		{"fresh, then sums", func(s *Source) error { return errors.Join(s.Fresh(0), s.Fresh(0), s.AddSums(0, 0, one)) }, "said to be fresh"},
		{"sums, then fresh", func(s *Source) error { return errors.Join(s.AddSums(0, 0, one), s.Fresh(0)) }, "said to be fresh"},
		{"late", func(s *Source) error {
			return errors.Join(s.Backend(0).Zero(t.Context(), 0, 1, false, false), s.AddSums(0, 0, one))
		}, "after its first write"},
		{"fresh, late", func(s *Source) error {
			return errors.Join(s.Backend(0).Write(t.Context(), 0, block, nil, false), s.Fresh(0))
		}, "after its first write"},
		{"compared", func(s *Source) error { s.Compared(); return s.AddSums(0, 0, one) }, "after the first epoch"},
		{"marked", func(s *Source) error { s.Mark(nil); return s.AddSums(0, 0, one) }, ErrNoSession.Error()},
	} {
		s := NewSource([]Disk{{"vda", 2*BlockBytes + 1}}, SourceOptions{})
		s.Begin(t.Context(), (&recorder{}).ship)
		err := x.do(s)
		if x.wrong == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), x.wrong) {
			t.Errorf("%s: %v", x.name, err)
		}
		s.End()
	}
}

// TestSourceCompares: what is shipped to a backup whose image is known.
func TestSourceCompares(t *testing.T) {
	ones, twos, zeros := bytes.Repeat([]byte{1}, BlockBytes), bytes.Repeat([]byte{2}, BlockBytes), make([]byte, BlockBytes)
	size := int64(6*BlockBytes + 512)
	var pool lender
	var r recorder
	s := NewSource([]Disk{{"vda", size}, {"vdb", 1 << 59}}, SourceOptions{})
	s.Begin(t.Context(), r.ship)
	defer s.End()
	// The backup: 1 1 1 0 1 1, and 0 in its short last block.
	if err := errors.Join(s.AddSums(0, 0, sumsOf(ones, ones, ones, zeros)), s.AddSums(0, 4, sumsOf(ones, ones, zeros[:512])), s.Fresh(1)); err != nil {
		t.Fatal(err)
	}
	a, b := s.Backend(0), s.Backend(1)
	step := func(name string, do func(), want ...string) {
		t.Helper()
		do()
		if got := r.shipped(t, s); !slices.Equal(got, want) {
			t.Errorf("%s: shipped %q, want %q", name, got, want)
		}
		pool.check(t)
	}
	const at1, at2, at6 = BlockBytes, 2 * BlockBytes, 6 * BlockBytes
	step("equal", func() {
		write(t, &pool, a, 0, slices.Concat(ones, ones, ones, zeros, ones, ones, zeros[:512]))
	})
	step("differ, neighbours, zeros", func() {
		write(t, &pool, a, 0, slices.Concat(twos, twos, ones, twos, zeros, ones))
	}, "0: 131072 data at 0", "0: 65536 data at 196608", "0: 65536 zeros at 262144")
	step("what replaced it is known", func() { write(t, &pool, a, 0, slices.Concat(twos, twos)) })
	step("part of a block", func() { write(t, &pool, a, at1+512, twos[:512]) }, "0: 512 data at 66048")
	step("is not known then", func() { write(t, &pool, a, 0, slices.Concat(twos, twos)) }, "0: 65536 data at 65536")
	step("zeros in a block", func() { a.Zero(t.Context(), 5*BlockBytes+512, 512, true, false) }, "0: 512 zeros at 328192")
	step("that is not known then", func() { write(t, &pool, a, 5*BlockBytes, ones) }, "0: 65536 data at 327680")
	step("short last block", func() { write(t, &pool, a, at6, ones[:512]) }, "0: 512 data at 393216")
	step("zeros", func() { a.Zero(t.Context(), 0, size, true, false) }, "0: 262144 zeros at 0", "0: 66048 zeros at 327680")
	step("zeros again", func() { a.Trim(t.Context(), 0, size, false) })
	step("part of zeros", func() { a.Zero(t.Context(), at2+512, 1024, false, false) })
	step("data over zeros", func() { write(t, &pool, a, at2, ones) }, "0: 65536 data at 131072")
	step("zeros over a part", func() { a.Zero(t.Context(), at2, 512, true, false) }, "0: 512 zeros at 131072")

	step("fresh", func() { b.Zero(t.Context(), 1<<58-3, 5<<30, true, false); write(t, &pool, b, 1<<40, zeros) })
	if n := len(s.cur.Load().disks[1].compare.Load().chunks); n != 0 {
		t.Errorf("%d chunks for a disk of which nothing is known but zeros", n)
	}
	step("data on a fresh disk", func() { write(t, &pool, b, 0, slices.Concat(zeros, ones, zeros)) }, "1: 65536 data at 65536")
	c := s.cur.Load().disks[1].compare.Load()
	if len(c.chunks) != 1 || c.chunks[0].sums != nil {
		t.Error("a fresh disk costs more than bits where it was written")
	}
	step("a hole in it", func() { b.Trim(t.Context(), 0, 3*BlockBytes, true) }, "1: 65536 zeros at 65536")
	st := s.Stats()
	for i := range st {
		if st[i].WrittenBytes != st[i].ShippedBytes+st[i].ZeroBytes+st[i].EqualBytes {
			t.Errorf("disk %d: %+v", i, st[i])
		}
	}
	s.Compared()
	step("compared", func() { write(t, &pool, b, 0, zeros) }, "1: 65536 data at 0")
}

// TestSourceSumsBound: a disk with more sums than we keep is copied where they
// end, and said so once.
func TestSourceSumsBound(t *testing.T) {
	var text bytes.Buffer
	var chunks atomic.Int64
	chunks.Store(sumChunksMax - 1)
	c := newComparer(Disk{"vda", 1 << 40}, &chunks, slog.New(slog.NewTextHandler(&text, nil)))
	ones := bytes.Repeat([]byte{1}, BlockBytes)
	for _, block := range []uint64{chunkBlocks, 2*chunkBlocks - 1, 0, 2 * chunkBlocks} {
		if err := c.add(block, sumsOf(ones)); err != nil {
			t.Fatal(err)
		}
	}
	for block, want := range map[int64]blockState{chunkBlocks: blockSummed, 2*chunkBlocks - 1: blockSummed, 0: blockUnknown, 2 * chunkBlocks: blockUnknown} {
		if got := c.state(block); got != want {
			t.Errorf("block %d: %d, want %d", block, got, want)
		}
	}
	if strings.Count(text.String(), "too large") != 1 {
		t.Errorf("logged: %q", text.String())
	}
}

func TestOnlyZeros(t *testing.T) {
	for n := range 40 {
		p := make([]byte, n)
		if !onlyZeros(p) {
			t.Errorf("%d zeros", n)
		}
		for i := range p {
			p[i] = 1
			if onlyZeros(p) {
				t.Errorf("byte %d of %d is not zero", i, n)
			}
			p[i] = 0
		}
	}
}

// TestSourceZeroedFirst: a mirror that begins with zeros for the whole disk
// costs nothing where the backup has what follows them.
func TestSourceZeroedFirst(t *testing.T) {
	ones, twos, zeros := bytes.Repeat([]byte{1}, BlockBytes), bytes.Repeat([]byte{2}, BlockBytes), make([]byte, BlockBytes)
	var pool lender
	var r recorder
	s := NewSource([]Disk{{"vda", 6 * BlockBytes}}, SourceOptions{})
	s.Begin(t.Context(), r.ship)
	defer s.End()
	if err := s.AddSums(0, 0, sumsOf(ones, ones, ones, ones, zeros, ones)); err != nil {
		t.Fatal(err)
	}
	s.Copying()
	b := s.Backend(0)
	b.Zero(t.Context(), 0, 6*BlockBytes, true, false)
	write(t, &pool, b, 0, slices.Concat(ones, twos))         // equal, and not
	write(t, &pool, b, 2*BlockBytes+512, twos[:512])         // the rest of it is zeros
	write(t, &pool, b, 5*BlockBytes, zeros)                  // still owed
	b.Zero(t.Context(), 5*BlockBytes+512, 512, false, false) // as above
	if err := s.Copied(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"0: 65536 data at 65536", "0: 65536 zeros at 131072", "0: 512 data at 131584",
		"0: 65536 zeros at 196608", "0: 65536 zeros at 327680"}
	if got := r.shipped(t, s); !slices.Equal(got, want) {
		t.Errorf("shipped %q, want %q", got, want)
	}
	pool.check(t)
}

// TestSourceSettles: zeros that are owed here and there are shipped in lists of
// bounded length.
func TestSourceSettles(t *testing.T) {
	const blocks = 5000 // more than a chunk has
	var r recorder
	s := NewSource([]Disk{{"vda", blocks * BlockBytes}}, SourceOptions{})
	s.Begin(t.Context(), r.ship)
	defer s.End()
	s.Copying()
	for block := int64(0); block < blocks; block += 2 {
		if err := s.Backend(0).Zero(t.Context(), block*BlockBytes, BlockBytes, true, false); err != nil {
			t.Fatal(err)
		}
	}
	s.Compared() // too early
	seen := 0
	d := s.cur.Load().disks[0]
	d.turn.Lock()
	err := d.compare.Load().settle(0, func(parts []Write) error {
		for _, w := range parts {
			if want := (Write{Off: int64(seen) * 2 * BlockBytes, Len: BlockBytes}); len(parts) > shipWritesMax || w.Off != want.Off || w.Len != want.Len || w.Data != nil {
				t.Fatalf("%+v of %d, want %+v", w, len(parts), want)
			}
			seen++
		}
		return nil
	})
	d.turn.Unlock()
	if err != nil || seen != blocks/2 {
		t.Errorf("%d were shipped, %v", seen, err)
	}
	if err := s.Copied(t.Context()); err != nil {
		t.Error(err)
	}
	if got := r.shipped(t, s); len(got) != 0 {
		t.Errorf("%d were shipped twice", len(got))
	}
}
