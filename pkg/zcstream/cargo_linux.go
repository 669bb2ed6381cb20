package zcstream

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// vectorMax is the kernel's bound on buffers in one system call (UIO_MAXIOV).
const vectorMax = 1024

// vector appends the next buffers to iov, at most limit bytes.
func (c *cargo) vector(iov []unix.Iovec, limit int) []unix.Iovec {
	c.vectorBytes = 0
	for i, off := c.next, c.off; i < len(c.bufs) && len(iov) < vectorMax && c.vectorBytes < limit; i, off = i+1, 0 {
		b := c.bufs[i][off:]
		if len(b) == 0 {
			continue
		}
		b = b[:min(len(b), limit-c.vectorBytes)]
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		iov = append(iov, v)
		c.vectorBytes += len(b)
	}
	return iov
}
