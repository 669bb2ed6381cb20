package diskrep

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathbits "math/bits"
	"slices"
	"sync/atomic"
)

const (
	// chunkBlocks is how many blocks are looked after together: 256 MiB.
	chunkBlocks = 4096
	// sumChunksMax bounds the sums that a session keeps: 1 GiB, which is enough
	// for 4 TiB that are not zeros. The blocks beyond are shipped.
	sumChunksMax = 16384
)

// comparer knows what each block of the backup's image will hold when all that
// was shipped is applied: zeros, contents with a known sum, or it does not
// know. A resync moves what differs, and nobody has to log, while the guest
// writes, what may differ one day.
//
// A block on which we are wrong is a block that is lost, so what is not known
// for sure is shipped. One goroutine at a time uses a comparer.
type comparer struct {
	disk     Disk
	fresh    bool  // blocks without a chunk are zeros; else nothing is known of them
	started  bool  // something was compared
	copying  bool  // zeros of whole blocks are owed, not shipped
	debt     int64 // see newDebt
	zero     Sum   // of a block of zeros
	lastZero Sum   // of the disk's last block if that is zeros
	chunks   map[int64]*blockChunk
	sums     *atomic.Int64 // chunks with sums, of all disks of the session
	log      *slog.Logger
	logged   bool // that there were too many of them
}

// blockChunk is the state of chunkBlocks blocks. At most one of isZero and
// hasSum is set for a block. owed is set for one that the source zeroed and that
// the backup does not know of yet, see Source.Copying.
type blockChunk struct {
	isZero, hasSum, owed [chunkBlocks / 64]uint64
	sums                 *[chunkBlocks]Sum // nil while no block has one
}

// blockState is what is known of a block.
type blockState uint8

const (
	blockUnknown blockState = iota
	blockZero
	blockSummed
)

func newComparer(d Disk, sums *atomic.Int64, log *slog.Logger) *comparer {
	block := make([]byte, BlockBytes)
	last := (d.SizeBytes-1)%BlockBytes + 1
	return &comparer{disk: d, zero: SumOf(block), lastZero: SumOf(block[:max(last, 0)]), chunks: map[int64]*blockChunk{}, sums: sums, log: log}
}

// blocks returns how many blocks the disk has, the last one may be short.
func (c *comparer) blocks() int64 {
	return c.disk.SizeBytes/BlockBytes + min(c.disk.SizeBytes%BlockBytes, 1)
}

func (c *comparer) allFresh() error {
	switch {
	case c.started:
		return errors.New("it is said to be fresh after its first write")
	case len(c.chunks) > 0:
		return errors.New("it is said to be fresh, and it has contents")
	}
	c.fresh = true
	return nil
}

func (c *comparer) add(firstBlock uint64, sums []byte) error {
	n, blocks := len(sums)/SumBytes, uint64(c.blocks())
	switch {
	case c.started:
		return errors.New("its sums came after its first write")
	case c.fresh:
		return errors.New("it is said to be fresh, and it has contents")
	case n == 0 || len(sums)%SumBytes != 0:
		return fmt.Errorf("%d bytes are no sequence of sums", len(sums))
	case uint64(n) > blocks || firstBlock > blocks-uint64(n):
		return fmt.Errorf("%d sums from block %d on, of %d", n, firstBlock, blocks)
	}
	for i := range n {
		block, sum := int64(firstBlock)+int64(i), Sum(sums[i*SumBytes:])
		if sum == c.zeroSum(block) {
			c.set(block, blockZero)
			continue
		}
		if !c.reserve(block) {
			c.set(block, blockUnknown)
			continue
		}
		c.set(block, blockSummed)
		*c.sum(block) = sum
	}
	return nil
}

// zeroSum is the sum that a block has if it is all zeros.
func (c *comparer) zeroSum(block int64) Sum {
	if block == c.blocks()-1 {
		return c.lastZero
	}
	return c.zero
}

// chunk returns the chunk of a block, which it makes if it is not there.
func (c *comparer) chunk(block int64) *blockChunk {
	ch := c.chunks[block/chunkBlocks]
	if ch == nil {
		ch = &blockChunk{}
		if c.fresh {
			for i := range ch.isZero {
				ch.isZero[i] = ^uint64(0)
			}
		}
		c.chunks[block/chunkBlocks] = ch
	}
	return ch
}

// reserve makes a place for the sum of a block, if the bound allows it.
func (c *comparer) reserve(block int64) bool {
	ch := c.chunk(block)
	if ch.sums != nil {
		return true
	}
	if c.sums.Add(1) > sumChunksMax {
		c.sums.Add(-1)
		if !c.logged {
			c.logged = true
			c.log.Info("the disk is too large to keep all its sums: what is beyond is copied whole", "disk", c.disk.Name)
		}
		return false
	}
	ch.sums = new([chunkBlocks]Sum)
	return true
}

// sum is where the sum of a block is, which has one.
func (c *comparer) sum(block int64) *Sum {
	return &c.chunks[block/chunkBlocks].sums[block%chunkBlocks]
}

func (c *comparer) state(block int64) blockState {
	ch := c.chunks[block/chunkBlocks]
	word, bit := block%chunkBlocks/64, uint64(1)<<(block%64)
	switch {
	case ch == nil && c.fresh, ch != nil && ch.isZero[word]&bit != 0:
		return blockZero
	case ch != nil && ch.hasSum[word]&bit != 0:
		return blockSummed
	}
	return blockUnknown
}

func (c *comparer) set(block int64, st blockState) {
	if c.state(block) == st {
		return
	}
	ch := c.chunk(block)
	word, bit := block%chunkBlocks/64, uint64(1)<<(block%64)
	ch.isZero[word] &^= bit
	ch.hasSum[word] &^= bit
	switch st {
	case blockZero:
		ch.isZero[word] |= bit
	case blockSummed:
		ch.hasSum[word] |= bit
	}
}

// owe notes that a block, which has a chunk, is to become zeros later.
func (c *comparer) owe(block int64) {
	c.chunk(block).owed[block%chunkBlocks/64] |= 1 << (block % 64)
	start, end := c.span(block * BlockBytes)
	c.debt += end - start
}

// pay reports whether zeros were owed to a block, and forgets that.
func (c *comparer) pay(block int64) bool {
	if !c.owes(block) {
		return false
	}
	c.chunks[block/chunkBlocks].owed[block%chunkBlocks/64] &^= 1 << (block % 64)
	return true
}

func (c *comparer) owes(block int64) bool {
	ch := c.chunks[block/chunkBlocks]
	return ch != nil && ch.owed[block%chunkBlocks/64]&(1<<(block%64)) != 0
}

// settle hands the zeros that are still owed to put, a bounded list of them at
// one time, and ends the owing.
func (c *comparer) settle(disk int, put func(parts []Write) error) error {
	c.copying = false
	var parts []Write
	for _, i := range slices.Sorted(maps.Keys(c.chunks)) {
		for word, bits := range c.chunks[i].owed {
			for ; bits != 0; bits &= bits - 1 {
				if len(parts) == shipWritesMax {
					if err := put(parts); err != nil {
						return err
					}
					parts = parts[:0]
				}
				block := i*chunkBlocks + int64(word*64+mathbits.TrailingZeros64(bits))
				start, end := c.span(block * BlockBytes)
				parts = join(parts, Write{Disk: disk}, start, end-start, true)
				c.debt -= end - start
				c.set(block, blockZero)
			}
			c.chunks[i].owed[word] = 0
		}
	}
	if len(parts) == 0 {
		return nil
	}
	return put(parts)
}

// newDebt is by how many bytes the zeros that are owed grew since it was asked
// last, not counting those that something else took the place of.
func (c *comparer) newDebt() int64 {
	n := c.debt
	c.debt = 0
	return n
}

// span returns where the block of off begins and ends.
func (c *comparer) span(off int64) (start, end int64) {
	start = off - off%BlockBytes
	return start, start + min(BlockBytes, c.disk.SizeBytes-start)
}

// data appends to parts what is to be shipped of w, which has data.
func (c *comparer) data(parts []Write, w Write) (out []Write, equalBytes int64) {
	c.started = true
	for off, end := w.Off, w.Off+w.Len; off < end; {
		start, blockEnd := c.span(off)
		next := min(blockEnd, end)
		whole := off == start && next == blockEnd
		if c.pay(off/BlockBytes) && !whole {
			// The rest of the block is zeros, and may stay so.
			parts = join(parts, w, start, blockEnd-start, true)
			c.debt -= blockEnd - start
		}
		switch ships, zero := c.replace(off, w.Data[off-w.Off:next-w.Off], whole); {
		case ships:
			parts = join(parts, w, off, next-off, zero)
		case !c.owes(off / BlockBytes):
			equalBytes += next - off
		}
		off = next
	}
	return parts, equalBytes
}

// replace says whether p, which lies within one block, is to be shipped, and
// whether as zeros, and remembers what the block holds then. whole says that p
// is all of the block.
func (c *comparer) replace(off int64, p []byte, whole bool) (ships, zero bool) {
	block := off / BlockBytes
	was := c.state(block)
	switch {
	case !whole:
		c.set(block, blockUnknown)
		return true, false
	case onlyZeros(p) && was != blockZero && c.copying:
		c.owe(block)
		return false, false
	case onlyZeros(p):
		c.set(block, blockZero)
		return was != blockZero, true
	case was == blockSummed:
		sum := SumOf(p)
		same := *c.sum(block) == sum
		*c.sum(block) = sum
		return !same, false
	}
	c.set(block, blockUnknown)
	return true, false
}

// zeros appends to parts what is to be shipped of w, which is zeros.
func (c *comparer) zeros(parts []Write, w Write) (out []Write, equalBytes int64) {
	c.started = true
	for off, end := w.Off, w.Off+w.Len; off < end; {
		start, blockEnd := c.span(off)
		next := min(blockEnd, end)
		block := off / BlockBytes
		switch was := c.state(block); {
		case was == blockZero, c.owes(block): // and so it stays, whatever part of it is meant
			equalBytes += next - off
		case off == start && next == blockEnd && c.copying:
			c.owe(block)
		case off == start && next == blockEnd:
			c.set(block, blockZero)
			parts = join(parts, w, off, next-off, true)
		default:
			c.set(block, blockUnknown)
			parts = join(parts, w, off, next-off, true)
		}
		off = next
	}
	return parts, equalBytes
}

// onlyZeros reads p once: p equals itself shifted by one word, and begins with
// a zero word, only if every word is zero.
func onlyZeros(p []byte) bool {
	if len(p) < 8 {
		return bytes.Count(p, []byte{0}) == len(p)
	}
	return binary.LittleEndian.Uint64(p) == 0 && bytes.Equal(p[8:], p[:len(p)-8])
}
