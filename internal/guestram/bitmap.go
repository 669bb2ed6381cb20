package guestram

// bitmap has one bit for each page, or region.
type bitmap []uint64

func newBitmap(pages uint64) bitmap { return make(bitmap, (pages+63)/64) }

func (b bitmap) set(at, n uint64) {
	for end := at + n; at < end; {
		m, k := wordMask(at, end)
		b[at/64] |= m
		at += k
	}
}

func (b bitmap) clear(at, n uint64) {
	for end := at + n; at < end; {
		m, k := wordMask(at, end)
		b[at/64] &^= m
		at += k
	}
}

// wordMask covers the bits of [at, end) that are in at's word, and their number.
func wordMask(at, end uint64) (mask, n uint64) {
	n = min(64-at%64, end-at)
	return (^uint64(0) >> (64 - n)) << (at % 64), n
}

func (b bitmap) get(at uint64) bool { return b[at/64]>>(at%64)&1 != 0 }

// next returns the first run of set bits within [at, end); n is 0 without one.
func (b bitmap) next(at, end uint64) (start, n uint64) {
	start = b.skip(at, end, false)
	return start, b.skip(start, end, true) - start
}

// nextClear returns the first run of clear bits within [at, end).
func (b bitmap) nextClear(at, end uint64) (start, n uint64) {
	start = b.skip(at, end, true)
	return start, b.skip(start, end, false) - start
}

// skip returns the first bit of [at, end) that is not as given, or end.
func (b bitmap) skip(at, end uint64, bit bool) uint64 {
	word := uint64(0)
	if bit {
		word = ^word
	}
	for at < end && b.get(at) == bit {
		if at%64 == 0 && b[at/64] == word {
			at += 64
		} else {
			at++
		}
	}
	return min(at, end)
}
