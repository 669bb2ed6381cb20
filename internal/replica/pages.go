package replica

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
	table(c, &m.Runs, func(r *Run) {
		c.run(&r.Block, (*uint16)(&r.Flags), &r.Pages, &r.Off)
		switch {
		case r.Flags&^RunZero != 0:
			c.fail("run flags", "%#04x has unknown bits", r.Flags)
		case r.Pages == 0:
			c.fail("run pages", "zero is invalid")
		case r.Off%PageSize != 0 || r.end() < r.Off:
			c.fail("run offset", "%#x is not aligned or overflows", r.Off)
		}
	})
	c.bounded(m)
}

func (m *Pages) announced() uint64 {
	var pages uint64 // at most MaxRuns * 2^32: no overflow, in bytes neither
	for _, r := range m.Runs {
		if r.Flags&RunZero == 0 {
			pages += uint64(r.Pages)
		}
	}
	return pages * PageSize
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
			return runError(TypePages, i, "run block", "%d, there are %d blocks", r.Block, len(blocks))
		}
		if b := blocks[r.Block]; r.end() < r.Off || r.end() > b.UsedBytes {
			return runError(TypePages, i, "run offset", "%#x + %d pages is beyond %s of %d bytes", r.Off, r.Pages, b.Name, b.UsedBytes)
		}
	}
	return nil
}
