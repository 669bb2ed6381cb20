package nbd

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
)

// memory is a disk in memory that knows its holes, checks what Backend promises,
// and writes down what it was asked. It keeps the buffers of the last writes for
// a while, as a backend does that ships them.
type memory struct {
	t *testing.T

	mu     sync.Mutex
	data   []byte
	alloc  []bool // of blocks of memoryBlock bytes
	calls  []string
	log    bool
	inCall bool
	fail   map[string]error // by method
	kept   []keptWrite
	lent   int // buffers not released
}

type keptWrite struct {
	data, want []byte
	release    func()
}

const (
	memoryBlock = 4096
	memoryKeeps = 4
)

func newMemory(t *testing.T, size int64) *memory {
	m := &memory{t: t, data: make([]byte, size), alloc: make([]bool, (size+memoryBlock-1)/memoryBlock), log: true, fail: map[string]error{}}
	t.Cleanup(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.releaseAll(0)
		if m.lent != 0 {
			t.Errorf("%d buffers are still lent", m.lent)
		}
	})
	return m
}

func (m *memory) SizeBytes() int64 { return int64(len(m.data)) }

// enter checks a call and notes it.
func (m *memory) enter(method string, off, n int64, more ...any) (leave func(), err error) {
	m.mu.Lock()
	if m.inCall {
		m.t.Errorf("%s during another call", method)
	}
	m.inCall = true
	if off < 0 || n < 0 || n == 0 && method != "flush" || off+n > int64(len(m.data)) {
		m.t.Errorf("%s of %d bytes at %d, of %d", method, n, off, len(m.data))
	}
	if m.log {
		m.calls = append(m.calls, fmt.Sprintln(append([]any{method, off, n}, more...)...))
	}
	err = m.fail[method]
	m.mu.Unlock()
	return func() {
		m.mu.Lock()
		m.inCall = false
		m.mu.Unlock()
	}, err
}

func (m *memory) Read(_ context.Context, p []byte, off int64) error {
	leave, err := m.enter("read", off, int64(len(p)))
	defer leave()
	copy(p, m.data[off:])
	return err
}

func (m *memory) Write(_ context.Context, off int64, data []byte, release func(), fua bool) error {
	leave, err := m.enter("write", off, int64(len(data)), fua)
	defer leave()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lent++
	m.kept = append(m.kept, keptWrite{data, bytes.Clone(data), release})
	m.releaseAll(memoryKeeps)
	if err != nil {
		return err
	}
	copy(m.data[off:], data)
	m.mark(off, int64(len(data)), true)
	return nil
}

// releaseAll hands back all but some buffers; nobody may have touched them.
func (m *memory) releaseAll(but int) {
	for len(m.kept) > but {
		k := m.kept[0]
		m.kept = m.kept[1:]
		if !bytes.Equal(k.data, k.want) {
			m.t.Error("a buffer changed while the backend had it")
		}
		m.lent--
		k.release()
	}
}

func (m *memory) mark(off, n int64, allocated bool) {
	first, last := off/memoryBlock, (off+n-1)/memoryBlock
	for i := first; i <= last; i++ {
		whole := i*memoryBlock >= off && min((i+1)*memoryBlock, int64(len(m.data))) <= off+n
		if allocated || whole {
			m.alloc[i] = allocated
		}
	}
}

func (m *memory) Zero(_ context.Context, off, n int64, mayTrim, fua bool) error {
	leave, err := m.enter("zero", off, n, mayTrim, fua)
	defer leave()
	if err == nil {
		clear(m.data[off : off+n])
		m.mark(off, n, !mayTrim)
	}
	return err
}

func (m *memory) Trim(_ context.Context, off, n int64, fua bool) error {
	leave, err := m.enter("trim", off, n, fua)
	defer leave()
	if err == nil {
		clear(m.data[off : off+n])
		m.mark(off, n, false)
	}
	return err
}

func (m *memory) Flush(context.Context) error {
	leave, err := m.enter("flush", 0, 0)
	defer leave()
	return err
}

func (m *memory) Extents(_ context.Context, off, n int64, add func(Extent) bool) error {
	leave, err := m.enter("extents", off, n)
	defer leave()
	if err != nil {
		return err
	}
	for pos := off; pos < off+n; {
		next := min((pos/memoryBlock+1)*memoryBlock, int64(len(m.data)))
		hole := !m.alloc[pos/memoryBlock]
		if !add(Extent{Bytes: next - pos, Hole: hole, Zero: hole}) {
			return nil
		}
		pos = next
	}
	return nil
}

// asked returns what was noted since the last time.
func (m *memory) asked() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.calls
	m.calls = nil
	return c
}

// blind is a backend that knows nothing about extents.
type blind struct{ Backend }
