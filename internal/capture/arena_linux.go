package capture

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/virt-ft/virt-ft/internal/guestram"
	"golang.org/x/sys/unix"
)

const (
	// liveBytes is the most a batch of a live pass holds.
	liveBytes = 4 << 20
	// liveArenas and checkpointArenas bound the batches that are out at one
	// time; the next pass waits until one is freed.
	liveArenas       = 8
	checkpointArenas = 8
	// arenaKeepBytes of a checkpoint's arena stay resident for the next one.
	arenaKeepBytes = 32 << 20
)

// Batch is a set of pages. Data holds the pages of Ranges, in order; it starts
// on a page boundary. Both are valid until Free and belong to one owner.
type Batch struct {
	Ranges []guestram.Range
	Data   []byte

	arena atomic.Pointer[arena]
}

// Free gives the memory back. Freeing twice does nothing.
func (b *Batch) Free() {
	if a := b.arena.Swap(nil); a != nil {
		b.Data, b.Ranges = nil, nil
		a.pool.put(a)
	}
}

// arena is page-aligned memory for one batch at a time.
type arena struct {
	pool   *arenaPool
	mem    []byte
	ranges []guestram.Range
	used   int
}

func (a *arena) batch(rs []guestram.Range, used int) *Batch {
	a.ranges, a.used = rs, used
	b := &Batch{Ranges: rs, Data: a.mem[:used:used]}
	b.arena.Store(a)
	return b
}

// arenas are those of a session. An arena for a checkpoint is as large as the
// guest's memory, but only address space: it costs what is copied into it.
type arenas struct{ live, checkpoint *arenaPool }

func newArenas(ramBytes int) *arenas {
	return &arenas{newArenaPool(liveArenas, liveBytes), newArenaPool(checkpointArenas, ramBytes)}
}

func (a *arenas) close() error { return errors.Join(a.live.close(), a.checkpoint.close()) }

type arenaPool struct {
	bytes int
	slots chan *arena // nil in it: may be created

	mu     sync.Mutex
	closed bool
}

func newArenaPool(n, bytes int) *arenaPool {
	p := &arenaPool{bytes: bytes, slots: make(chan *arena, n)}
	for range n {
		p.slots <- nil
	}
	return p
}

// get waits for an arena to be free.
func (p *arenaPool) get(ctx context.Context) (*arena, error) {
	var a *arena
	select {
	case a = <-p.slots:
	default:
		select {
		case a = <-p.slots:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for one of %d batches to be freed: %w", cap(p.slots), ctx.Err())
		}
	}
	if a != nil {
		return a, nil
	}
	mem, err := unix.Mmap(-1, 0, p.bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		p.slots <- nil
		return nil, fmt.Errorf("map %d bytes for a batch: %w", p.bytes, err)
	}
	return &arena{pool: p, mem: mem, ranges: make([]guestram.Range, 0, liveBytes/guestram.PageSize)}, nil
}

func (p *arenaPool) put(a *arena) {
	if a.used > arenaKeepBytes {
		// Only costs memory if it fails.
		_ = unix.Madvise(a.mem[arenaKeepBytes:a.used], unix.MADV_DONTNEED)
	}
	a.used, a.ranges = 0, a.ranges[:0]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = unix.Munmap(a.mem)
		return
	}
	p.slots <- a
}

// close unmaps what is free; arenas that are out follow when they are put back.
func (p *arenaPool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for {
		select {
		case a := <-p.slots:
			if a != nil {
				errs = append(errs, unix.Munmap(a.mem))
			}
		default:
			return errors.Join(errs...)
		}
	}
}
