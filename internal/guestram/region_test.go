package guestram

import (
	"testing"

	"pgregory.net/rapid"
)

// Pieces cover a block once, in order, without a gap, and what is filled is in
// none that counts as empty.
func TestPiecesCoverABlock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		host := uint64(rapid.IntRange(1, 5000).Draw(t, "hostPage")) * PageSize
		r := newRegions(host, uint64(rapid.IntRange(1, 200_000).Draw(t, "pages"))*PageSize)
		var filled []uint64
		for range rapid.IntRange(0, 20).Draw(t, "fills") {
			at := r.host + uint64(rapid.IntRange(0, int(r.size/PageSize)-1).Draw(t, "page"))*PageSize
			was := r.there.get(r.index(at))
			if r.fill(at, at+PageSize) == was {
				t.Fatalf("fill of %#x: was there: %v", at, was)
			}
			filled = append(filled, at)
		}
		gaps := rapid.Bool().Draw(t, "closeGaps")
		if gaps {
			r.closeGaps()
		}
		ps := r.pieces(nil, 3)
		if gaps && len(ps) > r.piecesMax() {
			t.Fatalf("%d pieces, room for %d", len(ps), r.piecesMax())
		}
		at := r.host
		for i, p := range ps {
			if p.start != at || p.end <= p.start || p.block != 3 {
				t.Fatalf("piece %d begins at %#x, not %#x: %+v", i, p.start, at, p)
			}
			if !p.empty && p.end-p.start > pieceBytes {
				t.Fatalf("piece of %d bytes", p.end-p.start)
			}
			for _, f := range filled {
				if p.empty && p.start <= f && f < p.end {
					t.Fatalf("%#x is filled, and in an empty piece", f)
				}
			}
			at = p.end
		}
		if at != r.host+r.size {
			t.Fatalf("pieces end at %#x", at)
		}
	})
}

func TestCloseGaps(t *testing.T) {
	r := newRegions(0, 40*regionBytes)
	r.there.set(0, 1)
	r.there.set(emptyRunMin, 1)     // one less than emptyRunMin between them
	r.there.set(2*emptyRunMin+1, 1) // just as many
	r.closeGaps()
	for i, want := range map[uint64]bool{1: true, emptyRunMin - 1: true, emptyRunMin + 1: false, 2 * emptyRunMin: false, 2*emptyRunMin + 2: false, 39: false} {
		if r.there.get(i) != want {
			t.Errorf("region %d: there is %v", i, !want)
		}
	}
}
