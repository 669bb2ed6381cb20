package replica

import (
	"encoding/binary"
	"fmt"
)

// RunFlags describe a run of pages.
type RunFlags uint16

// RunZero: the pages are zero and have no data in the message.
const RunZero RunFlags = 1 << 0

// Run is a run of 4 KiB pages within one RAM block.
type Run struct {
	Block uint16 // index in Setup.Blocks
	Flags RunFlags
	Pages uint32 // at least 1
	Off   uint64 // bytes within the block, a multiple of 4096
}

// end returns the first byte after the run; a valid run does not overflow.
func (r Run) end() uint64 { return r.Off + uint64(r.Pages)*PageSize }

// Pages announces runs; the data of those that are not zero follows them, in
// their order. Later copies of a page within an epoch win.
type Pages struct{ Runs []Run }

func (*Pages) Type() Type { return TypePages }

func (m *Pages) fields(c *codec) {
	n := c.count("runs", len(m.Runs), MaxRuns, runBytes)
	if !c.encoding && n > 0 {
		m.Runs = make([]Run, n)
	}
	be := binary.BigEndian
	for i := range n { // written out, because there may be many
		r := &m.Runs[i]
		if c.encoding {
			c.buf = be.AppendUint16(c.buf, r.Block)
			c.buf = be.AppendUint16(c.buf, uint16(r.Flags))
			c.buf = be.AppendUint32(c.buf, r.Pages)
			c.buf = be.AppendUint64(c.buf, r.Off)
		} else if b := c.take("run", runBytes); b != nil {
			*r = Run{be.Uint16(b), RunFlags(be.Uint16(b[2:])), be.Uint32(b[4:]), be.Uint64(b[8:])}
		}
		switch {
		case r.Flags&^RunZero != 0:
			c.fail("run flags", "%#04x has unknown bits", r.Flags)
		case r.Pages == 0:
			c.fail("run pages", "zero is invalid")
		case r.Off%PageSize != 0 || r.end() < r.Off:
			c.fail("run offset", "%#x is not aligned or overflows", r.Off)
		}
		if c.err != nil {
			return
		}
	}
	if _, ok := m.dataBytes(); !ok {
		c.fail("runs", "announce more than %d bytes of pages", MaxPageData)
	}
}

// dataBytes returns the length of the data that follows; ok is false when it is
// over MaxPageData.
func (m *Pages) dataBytes() (n int, ok bool) {
	var pages uint64 // at most MaxRuns * 2^32: no overflow
	for _, r := range m.Runs {
		if r.Flags&RunZero == 0 {
			pages += uint64(r.Pages)
		}
	}
	return int(min(pages, MaxPageData/PageSize+1)) * PageSize, pages <= MaxPageData/PageSize
}

// Count returns the number of pages in the runs, zero runs included.
func (m *Pages) Count() uint64 {
	var n uint64
	for _, r := range m.Runs {
		n += uint64(r.Pages)
	}
	return n
}

// CheckRuns refuses runs that are not within blocks. What Recv returns has been
// checked for its format only; this is the check before writing to memory.
func CheckRuns(runs []Run, blocks []Block) error {
	for i, r := range runs {
		if int(r.Block) >= len(blocks) {
			return &FormatError{Type: TypePages, Field: "run block", Offset: 4 + i*runBytes,
				Reason: fmt.Sprintf("%d, there are %d blocks", r.Block, len(blocks))}
		}
		if b := blocks[r.Block]; r.end() < r.Off || r.end() > b.UsedBytes {
			return &FormatError{Type: TypePages, Field: "run offset", Offset: 4 + i*runBytes,
				Reason: fmt.Sprintf("%#x + %d pages is beyond %s of %d bytes", r.Off, r.Pages, b.Name, b.UsedBytes)}
		}
	}
	return nil
}
