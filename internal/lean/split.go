package lean

import (
	"iter"

	"github.com/virt-ft/virt-ft/internal/guestram"
)

// Piece is a run of pages of one kind.
type Piece struct {
	guestram.Range
	Kind Kind
	Data []byte // of the pages if they are Changed, else nil; it points into what Split was given
}

// Split yields the pages of ranges, whose contents follow each other in data, as
// the longest runs of one kind, in their order. No run is in more than one range,
// or in more than one region of regionBytes of its block, a multiple of 4096; 0
// means that there are none. A nil f finds zero pages only. It allocates nothing
// for each page or run.
//
// f remembers pages as they are looked at, up to one beyond what was yielded: who
// breaks off must Forget.
func Split(ranges []guestram.Range, data []byte, f *Filter, regionBytes uint64) iter.Seq[Piece] {
	return func(yield func(Piece) bool) {
		rest := data
		for _, r := range ranges {
			if !splitRange(r, rest[:r.Bytes()], f, regionBytes, yield) {
				return
			}
			rest = rest[r.Bytes():]
		}
	}
}

// splitRange reports whether to go on.
func splitRange(r guestram.Range, mem []byte, f *Filter, regionBytes uint64, yield func(Piece) bool) bool {
	for len(mem) > 0 {
		n := len(mem)
		if regionBytes > 0 {
			n = int(min(uint64(n), regionBytes-r.Off%regionBytes))
		}
		if !splitRegion(r.Block, r.Off, mem[:n], f, yield) {
			return false
		}
		r.Off, mem = r.Off+uint64(n), mem[n:]
	}
	return true
}

func splitRegion(block uint16, off uint64, mem []byte, f *Filter, yield func(Piece) bool) bool {
	start := 0
	kind := f.kind(block, off, mem[:pageSize])
	for at := pageSize; at < len(mem); at += pageSize {
		next := f.kind(block, off+uint64(at), mem[at:][:pageSize])
		if next == kind {
			continue
		}
		if !yield(piece(block, off+uint64(start), mem[start:at], kind)) {
			return false
		}
		start, kind = at, next
	}
	return yield(piece(block, off+uint64(start), mem[start:], kind))
}

func piece(block uint16, off uint64, mem []byte, kind Kind) Piece {
	p := Piece{Range: guestram.Range{Block: block, Pages: uint32(len(mem) / pageSize), Off: off}, Kind: kind}
	if kind == Changed {
		p.Data = mem
	}
	return p
}

// kind is Kind, for a Filter that may be nil.
func (f *Filter) kind(block uint16, off uint64, page []byte) Kind {
	switch {
	case f != nil:
		return f.Kind(block, off, page)
	case guestram.IsZero(page):
		return Zero
	}
	return Changed
}
