package nbd

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	classBitsMin = 12 // 4 KiB
	classBitsMax = 25 // RequestBytesMax
)

// pool keeps buffers that were handed back, by size: powers of two.
type pool struct {
	classes [classBitsMax - classBitsMin + 1]sync.Pool
}

// buffer holds one payload. It has one owner.
type buffer struct {
	pool  *pool
	class int
	data  []byte // the whole class
	lent  atomic.Bool
	// release is free, made once: a method value allocates.
	release func()
}

// classOf returns the size class of n bytes, at most RequestBytesMax.
func classOf(n int) int {
	if n <= 1<<classBitsMin {
		return 0
	}
	return bits.Len(uint(n-1)) - classBitsMin
}

// get returns a buffer with room for n bytes, 0 to RequestBytesMax.
func (p *pool) get(n int) *buffer {
	class := classOf(n)
	b, _ := p.classes[class].Get().(*buffer)
	if b == nil {
		b = &buffer{pool: p, class: class, data: make([]byte, 1<<(class+classBitsMin))}
		b.release = b.free
	}
	b.lent.Store(true)
	return b
}

// free hands the buffer back. Once: a second owner would overwrite what the
// first still reads.
func (b *buffer) free() {
	if !b.lent.Swap(false) {
		panic("nbd: a write's buffer was released twice")
	}
	b.pool.classes[b.class].Put(b)
}
