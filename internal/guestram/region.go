package guestram

// Memory is looked at in regions of 2 MiB, each behind one entry of a page
// table directory.
const (
	regionBytes = 2 << 20
	// emptyRunMin is how many regions in a row must hold nothing to be worth a
	// scan of their own: below, the call costs more than the walk it saves.
	emptyRunMin = 8
	// pieceBytes is the most that one lane scans at a time.
	pieceBytes = 64 << 20
)

// piece is a part of a block to scan, and what came of it.
type piece struct {
	block      int // index into the tracker's blocks
	start, end uint64
	empty      bool // nothing was there

	lane     int // who has scanned it
	from, to int // its ranges in that lane's output
	err      error
}

// regions knows which regions of [host, host+size) hold anything. Those that do
// not are left without page tables, and cost next to nothing to scan.
type regions struct {
	host, size uint64
	there      bitmap
}

func newRegions(host, size uint64) regions {
	r := regions{host: host, size: size}
	r.there = newBitmap(r.count())
	return r
}

func (r *regions) count() uint64 {
	return (r.host+r.size+regionBytes-1)/regionBytes - r.host/regionBytes
}

// index of the region that holds addr.
func (r *regions) index(addr uint64) uint64 { return addr/regionBytes - r.host/regionBytes }

// bounds of region i, as far as it is part of the block.
func (r *regions) bounds(i uint64) (start, end uint64) {
	at := (r.host/regionBytes + i) * regionBytes
	return max(at, r.host), min(at+regionBytes, r.host+r.size)
}

// fill notes that [start, end) holds something, and reports whether that is news.
func (r *regions) fill(start, end uint64) bool {
	news := false
	for i, last := r.index(start), r.index(end-1); i <= last; i++ {
		if !r.there.get(i) {
			r.there.set(i, 1)
			news = true
		}
	}
	return news
}

// fillAll notes that all of it may hold something.
func (r *regions) fillAll() { r.there.set(0, r.count()) }

// closeGaps makes short runs of empty regions part of what is around them.
func (r *regions) closeGaps() {
	n := r.count()
	for at := uint64(0); at < n; {
		start, run := r.there.nextClear(at, n)
		if run > 0 && run < emptyRunMin {
			r.there.set(start, run)
		}
		at = start + max(run, 1)
	}
}

// piecesMax is the most that pieces appends for r.
func (r *regions) piecesMax() int {
	n := r.count()
	return int(r.size/pieceBytes + 2*(n/emptyRunMin) + 3)
}

// pieces appends the pieces of block to dst. Runs of empty regions of at least
// emptyRunMin are pieces of their own, whatever their length.
func (r *regions) pieces(dst []piece, block int) []piece {
	n := r.count()
	for at := uint64(0); at < n; {
		empty, run := !r.there.get(at), uint64(0)
		if empty {
			_, run = r.there.nextClear(at, n)
		} else {
			_, run = r.there.next(at, n)
		}
		start, _ := r.bounds(at)
		_, end := r.bounds(at + run - 1)
		at += run
		if empty {
			dst = append(dst, piece{block: block, start: start, end: end, empty: true})
			continue
		}
		for start < end {
			to := min(start+pieceBytes, end)
			dst = append(dst, piece{block: block, start: start, end: to})
			start = to
		}
	}
	return dst
}
