package zcstream

// cargo is what is still to be sent, or to be filled.
type cargo struct {
	bufs        [][]byte // all of them
	next        int      // the first that is not done with
	off         int      // how much of it is
	left        int      // bytes
	vectorBytes int      // in the last vector made of it
}

// load begins with bufs and returns how many bytes they have.
func (c *cargo) load(bufs [][]byte) int {
	*c = cargo{bufs: bufs}
	for _, b := range bufs {
		c.left += len(b)
	}
	return c.left
}

// advance notes that n bytes more were moved.
func (c *cargo) advance(n int) {
	c.left -= n
	for c.next < len(c.bufs) && n >= len(c.bufs[c.next])-c.off {
		n -= len(c.bufs[c.next]) - c.off
		c.next, c.off = c.next+1, 0
	}
	c.off += n
}
