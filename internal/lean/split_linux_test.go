package lean

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/guestram"
	"pgregory.net/rapid"
)

// TestSplit: writing what Split yields to a backup makes it equal to the guest,
// and the pieces are the longest there are.
func TestSplit(t *testing.T) {
	const pages, region = 32, 4 * pageSize
	rapid.Check(t, func(t *rapid.T) {
		sizes := []uint64{pages * pageSize, pages * pageSize}
		f, err := NewFilter(sizes)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if rapid.Bool().Draw(t, "no filter") {
			f = nil
		}
		regionBytes := rapid.SampledFrom([]uint64{0, region}).Draw(t, "region")
		guest := [2][]byte{make([]byte, pages*pageSize), make([]byte, pages*pageSize)}
		backup := [2][]byte{bytes.Repeat([]byte{0xee}, pages*pageSize), bytes.Repeat([]byte{0xee}, pages*pageSize)}
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			ranges, data := drawBatch(t, &guest, pages)
			var last *Piece
			ends := endsOf(ranges)
			for p := range Split(ranges, data, f, regionBytes) {
				checkPiece(t, p, last, ends, f != nil, regionBytes)
				last = &p
				to := backup[p.Block][p.Off:p.End()]
				switch p.Kind {
				case Changed:
					copy(to, p.Data)
				case Zero:
					clear(to)
				}
			}
			for _, r := range ranges {
				if !bytes.Equal(guest[r.Block][r.Off:r.End()], backup[r.Block][r.Off:r.End()]) {
					t.Fatalf("range %+v is not what the guest has", r)
				}
			}
		}
	})
}

// drawBatch writes to the guest and returns what was written, and more.
func drawBatch(t *rapid.T, guest *[2][]byte, pages int) (ranges []guestram.Range, data []byte) {
	for range rapid.IntRange(0, 4).Draw(t, "ranges") {
		r := guestram.Range{Block: uint16(rapid.IntRange(0, 1).Draw(t, "block"))}
		first := rapid.IntRange(0, pages-1).Draw(t, "first")
		r.Off, r.Pages = uint64(first)*pageSize, uint32(rapid.IntRange(1, pages-first).Draw(t, "pages"))
		for at := r.Off; at < r.End(); at += pageSize {
			if c := rapid.IntRange(-1, 3).Draw(t, "content"); c >= 0 {
				copy(guest[r.Block][at:], content(c))
			}
		}
		ranges = append(ranges, r)
		data = append(data, guest[r.Block][r.Off:r.End()]...)
	}
	// A later copy of a page must not differ from an earlier one here: the
	// batch is of one moment.
	data = data[:0]
	for _, r := range ranges {
		data = append(data, guest[r.Block][r.Off:r.End()]...)
	}
	return ranges, data
}

func checkPiece(t *rapid.T, p Piece, last *Piece, ends map[place]bool, filtered bool, regionBytes uint64) {
	switch {
	case p.Pages == 0:
		t.Fatalf("an empty piece: %+v", p.Range)
	case p.Kind == Changed && len(p.Data) != p.Bytes(), p.Kind != Changed && p.Data != nil:
		t.Fatalf("a piece %v of %d pages has %d bytes", p.Kind, p.Pages, len(p.Data))
	case p.Kind == Same && !filtered:
		t.Fatal("a piece is the same, and nobody knows")
	case regionBytes > 0 && p.Off/regionBytes != (p.End()-1)/regionBytes:
		t.Fatalf("piece %+v is in two regions", p.Range)
	}
	if last != nil && last.Kind == p.Kind && last.Block == p.Block && last.End() == p.Off &&
		!ends[place{p.Block, p.Off}] && (regionBytes == 0 || p.Off%regionBytes != 0) {
		t.Fatalf("pieces %+v and %+v could be one", last.Range, p.Range)
	}
}

// place is where a range ends, so that a piece may end there, too.
type place struct {
	block uint16
	off   uint64
}

func endsOf(ranges []guestram.Range) map[place]bool {
	ends := map[place]bool{}
	for _, r := range ranges {
		ends[place{r.Block, r.End()}] = true
	}
	return ends
}

func TestSplitStops(t *testing.T) {
	f := newFilter(t, 8*pageSize)
	data := bytes.Join([][]byte{content(1), content(0), content(1), content(0)}, nil)
	n := 0
	for range Split([]guestram.Range{{Pages: 4}}, data, f, 0) {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("%d pieces", n)
	}
}

func TestSplitAllocates(t *testing.T) {
	const pages = 256
	f := newFilter(t, pages*pageSize)
	data := make([]byte, pages*pageSize)
	ranges := []guestram.Range{{Pages: pages}}
	var changed byte
	allocs := testing.AllocsPerRun(20, func() {
		changed++
		for i := 0; i < pages; i += 2 {
			data[i*pageSize] = changed
		}
		for p := range Split(ranges, data, f, 2<<20) {
			if p.Pages != 1 {
				t.Fatalf("a piece of %d pages", p.Pages)
			}
		}
	})
	if allocs > 8 {
		t.Errorf("%d pages in as many pieces take %v allocations", pages, allocs)
	}
}

// BenchmarkSplit reports GB/s, and the speed as a part of two floors taken in turn
// with it in the same run: a memcpy of the pages, and looking for zero pages alone.
func BenchmarkSplit(b *testing.B) {
	const batch, ram = 4 << 20, 64 << 20 // larger than the caches, as guest pages are
	random, zeros := make([]byte, ram), make([]byte, ram)
	for i := range random {
		random[i] = byte(rand.Uint32())
		zeros[i] = 0 // memory that was never written to is all one page
	}
	for _, c := range []struct {
		name   string
		mem    []byte
		filter bool
		forget bool
	}{
		{"zero", zeros, true, false},
		{"same", random, true, false},
		{"changed", random, true, true},
		{"changed, no filter", random, false, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			var f *Filter
			if c.filter {
				f = newFilter(b, ram)
			}
			dst := make([]byte, pageSize)
			ranges := make([]guestram.Range, 1)
			var ours, memcpy, zero time.Duration
			b.SetBytes(batch)
			b.ReportAllocs()
			for i := range b.N {
				off := uint64(i*batch) % ram
				mem := c.mem[off:][:batch]
				ranges[0] = guestram.Range{Pages: batch / pageSize, Off: off}
				if c.forget && off == 0 {
					b.StopTimer()
					f.Forget()
					b.StartTimer()
				}
				start := time.Now()
				for range Split(ranges, mem, f, 2<<20) {
				}
				ours += time.Since(start)
				b.StopTimer()
				mem = c.mem[(off+ram/2)%ram:][:batch]
				start = time.Now()
				for at := 0; at < batch; at += pageSize {
					copy(dst, mem[at:])
				}
				memcpy += time.Since(start)
				mem = zeros[(off+ram/4)%ram:][:batch] // not what the copy left in the caches
				start = time.Now()
				for at := 0; at < batch; at += pageSize {
					guestram.IsZero(mem[at:][:pageSize])
				}
				zero += time.Since(start)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.N)*batch/1e9/ours.Seconds(), "GB/s")
			b.ReportMetric(memcpy.Seconds()/ours.Seconds(), "x-memcpy")
			b.ReportMetric(zero.Seconds()/ours.Seconds(), "x-iszero")
		})
	}
}
