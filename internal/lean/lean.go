// Package lean decides what of a checkpoint's memory need not travel, and
// whether packing the rest pays.
//
//	Filter   a page is zero, or what the backup has already, or changed
//	Split    a batch of pages as runs of one kind each
//	Packing  whether packing (compression) is faster than sending as it is, now
//
// A page counts as written when anything wrote to it, also when what was written
// is what was there, or was there again by the time it was read. So a hash of what
// travelled last is kept for each page, 16 bytes for 4096.
//
// Nothing here does I/O, starts a goroutine or reads a clock.
package lean

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/virt-ft/virt-ft/internal/guestram"
)

// Kind is what is to be done with a page.
type Kind uint8

// The kinds of page.
const (
	Changed Kind = iota + 1 // its content has to travel
	Zero                    // it has to be told that the page is zero now
	Same                    // nothing: the backup has this content
)

func (k Kind) String() string {
	switch k {
	case Changed:
		return "changed"
	case Zero:
		return "zero"
	case Same:
		return "same"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

const (
	pageSize = guestram.PageSize
	// tagBytes is what is kept of each page.
	tagBytes = 16
	// maxBlocks is what guestram.Range.Block can number.
	maxBlocks = 1 << 16
	// maxRAMBytes bounds the blocks of a guest together; the table is a 256th.
	maxRAMBytes = 1 << 44
)

// tag is what is remembered of a page. The top bit of hi tells a hash from the
// two other states, so no content can look like either of them.
type tag struct{ lo, hi uint64 }

const hashBit = 1 << 63

// A page of which nothing is known has the tag that fresh memory has.
func zeroTag() tag { return tag{lo: 1} }

// Filter remembers, for each page of a guest, the content that travelled last,
// and so finds pages that need not travel again. One goroutine owns it, and asks
// in the order in which pages are sent.
//
// Content is remembered as 127 bits of a GMAC (NIST SP 800-38D): a polynomial over
// GF(2^128), taken at a secret random point, for which CPUs have instructions. Each
// Filter draws its own key. For any two different pages, chosen in whatever way
// without knowing the key, the chance that they have one hash is below 2^-118: a
// polynomial of degree 257 has at most that many roots among 2^128 points, and one
// bit is not kept. So a guest cannot make it likelier by choosing its contents: the
// key is not in its memory, and no hash leaves this process. Two hashes of
// hash/maphash with a seed each took nine tenths of the time where it was measured,
// but nobody states what they do on contents that are chosen against them.
type Filter struct {
	gmac   cipher.AEAD
	nonce  [12]byte // constant: tags are compared only, never shown
	sum    [tagBytes]byte
	table  []byte // a tag for each page; address space until it is used
	blocks []span
}

// span is where a block's tags are, in pages.
type span struct{ first, pages uint64 }

// NewFilter returns a Filter for a guest whose RAM blocks have these sizes in
// bytes, multiples of 4096. It reserves 16 bytes of address space for each page
// of 4 KiB; memory is used only for pages that were asked about, and the pages
// beside them, a MiB at a time.
func NewFilter(blockBytes []uint64) (*Filter, error) {
	if len(blockBytes) > maxBlocks {
		return nil, fmt.Errorf("filter of pages: %d RAM blocks, at most %d can be numbered", len(blockBytes), maxBlocks)
	}
	f := &Filter{blocks: make([]span, 0, len(blockBytes))}
	var pages uint64
	for i, n := range blockBytes {
		if n%pageSize != 0 || n > maxRAMBytes-pages*pageSize {
			return nil, fmt.Errorf("filter of pages: RAM block %d has %d bytes, which is not a multiple of %d, or more than %d together with those before", i, n, pageSize, uint64(maxRAMBytes))
		}
		f.blocks = append(f.blocks, span{pages, n / pageSize})
		pages += n / pageSize
	}
	if err := f.newKey(); err != nil {
		return nil, fmt.Errorf("filter of pages: %w", err)
	}
	if pages == 0 {
		return f, nil
	}
	table, err := reserve(int(pages * tagBytes))
	if err != nil {
		return nil, fmt.Errorf("filter of pages: reserve %d bytes of address space: %w", pages*tagBytes, err)
	}
	f.table = table
	return f, nil
}

func (f *Filter) newKey() error {
	var key [16]byte
	rand.Read(key[:]) // never fails
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return err
	}
	if f.gmac, err = cipher.NewGCM(block); err != nil {
		return fmt.Errorf("GMAC is not to be had (is GODEBUG=fips140=only set? without it, it is): %w", err)
	}
	return nil
}

// Close gives the memory back; a closed Filter knows nothing, and takes every
// page for Zero or Changed. Closing twice does nothing.
func (f *Filter) Close() error {
	table := f.table
	f.table = nil
	if table == nil {
		return nil
	}
	return release(table)
}

// Forget makes everything unknown, as it is to a new session's backup. It costs
// little: the memory goes back to the kernel.
func (f *Filter) Forget() {
	if f.table == nil {
		return
	}
	if err := discard(f.table); err != nil {
		clear(f.table) // the same, but it keeps the memory
	}
}

// Kind tells what is to be done with page, the 4096 bytes that are now at off
// bytes of a block, and remembers it as what travels last: who asks must send it,
// or Forget. A page outside the blocks that NewFilter was told of is never Same.
func (f *Filter) Kind(block uint16, off uint64, page []byte) Kind {
	known := f.slot(block, off, page)
	if guestram.IsZero(page) {
		return remember(known, zeroTag(), Zero)
	}
	if known == nil {
		return Changed
	}
	return remember(known, f.hash(page), Changed)
}

// slot is where the tag of a page is; nil for none.
func (f *Filter) slot(block uint16, off uint64, page []byte) []byte {
	if int(block) >= len(f.blocks) || f.table == nil || len(page) != pageSize || off%pageSize != 0 {
		return nil
	}
	b := f.blocks[block]
	i := off / pageSize
	if i >= b.pages {
		return nil
	}
	return f.table[(b.first+i)*tagBytes:][:tagBytes]
}

// remember puts now into slot, and returns Same if it was there.
func remember(slot []byte, now tag, kind Kind) Kind {
	if slot == nil {
		return kind
	}
	if binary.NativeEndian.Uint64(slot) == now.lo && binary.NativeEndian.Uint64(slot[8:]) == now.hi {
		return Same
	}
	binary.NativeEndian.PutUint64(slot, now.lo)
	binary.NativeEndian.PutUint64(slot[8:], now.hi)
	return kind
}

func (f *Filter) hash(page []byte) tag {
	// Nothing is encrypted: the page is what is authenticated.
	f.gmac.Seal(f.sum[:0], f.nonce[:], nil, page)
	return tag{binary.NativeEndian.Uint64(f.sum[:]), binary.NativeEndian.Uint64(f.sum[8:]) | hashBit}
}
