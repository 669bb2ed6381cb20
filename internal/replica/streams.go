package replica

// StreamEnd ends an epoch on a data connection other than the first, after its
// Pages. On the first, EpochEnd does.
type StreamEnd struct {
	Pages uint64 // pages in the runs that this connection carried in the epoch, zero runs included
}

func (*StreamEnd) Type() Type { return TypeStreamEnd }

func (m *StreamEnd) fields(c *codec) { c.u64("pages", &m.Pages) }

// StreamOf returns which of streams data connections, at least one, carries what
// is at off bytes of a RAM block: the same one for all of a region of
// RegionBytes, so that copies of a page keep their order; cut runs at the ends of
// regions. Any streams regions of a block that follow each other from a multiple of
// streams are on as many connections. From there to the next such group, and from block
// to block, the order turns by a hash, so that neither a guest that writes in
// strides nor a row of small blocks loads one connection more than others.
func StreamOf(block uint16, off uint64, streams int) int {
	if streams <= 1 {
		return 0
	}
	n := uint64(streams)
	region := off / RegionBytes
	turn := (region/n<<16 | uint64(block)) * 0x9e3779b97f4a7c15 >> 32 // 2^64 over the golden ratio: Knuth's multiplicative hash
	return int((region + turn) % n)
}
