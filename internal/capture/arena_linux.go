package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/guestram"
	"golang.org/x/sys/unix"
)

const (
	// liveBytes is the most a batch of a live pass holds.
	liveBytes = 4 << 20
	// liveArenas and checkpointArenas bound the batches that are out at one
	// time; the next pass waits until one is freed.
	liveArenas       = 8
	checkpointArenas = 18
	// arenaKeepBytes of a checkpoint's arena stay resident for the next one.
	arenaKeepBytes = 32 << 20
	// arenaWarmBytes of a checkpoint's arena are backed before the pause, or
	// twice what the last checkpoint copied, if that is more.
	arenaWarmBytes = 2 << 20
	// arenaIdleMax is about how long an arena that nobody needs keeps its memory.
	arenaIdleMax = 10 * time.Second
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
	warm   int // so many bytes are backed by memory already
}

// warmUp backs the first n bytes with memory, so that copying into them under
// pause takes no page faults: those cost several times as much as the copying.
func (a *arena) warmUp(n int) {
	if n = min(n, len(a.mem), arenaKeepBytes); n <= a.warm {
		return
	}
	if unix.Madvise(a.mem[a.warm:n], unix.MADV_POPULATE_WRITE) == nil { // Linux 5.14
		a.warm = n
	}
}

// fill makes b, which is new, the owner of a and of the pages of rs in it.
func (a *arena) fill(b *Batch, rs []guestram.Range, used int) *Batch {
	a.ranges, a.used = rs, used
	b.Ranges, b.Data = rs, a.mem[:used:used]
	b.arena.Store(a)
	return b
}

// arenas are those of a session. An arena for a checkpoint is as large as the
// guest's memory, but only address space: it costs what is copied into it.
type arenas struct {
	live, checkpoint *arenaPool
	tidied           time.Time
}

func newArenas(ramBytes int) *arenas {
	return &arenas{live: newArenaPool(liveArenas, liveBytes), checkpoint: newArenaPool(checkpointArenas, ramBytes)}
}

// tidy gives back, now and then, what the first copy or a busy time took: a host
// may protect dozens of guests, most of them idle.
func (a *arenas) tidy(now time.Time) error {
	if now.Sub(a.tidied) < arenaIdleMax {
		return nil
	}
	a.tidied = now
	return errors.Join(a.live.tidy(), a.checkpoint.tidy())
}

func (a *arenas) close() error { return errors.Join(a.live.close(), a.checkpoint.close()) }

// arenaPool hands out its arenas last in, first out, so that as few of them
// as possible are ever touched.
type arenaPool struct {
	bytes  int
	tokens chan struct{} // one for each batch that may still go out

	mu     sync.Mutex
	free   []*arena
	spare  int // so many of free, the first ones, were not needed since tidy last looked
	closed bool
}

func newArenaPool(n, bytes int) *arenaPool {
	p := &arenaPool{bytes: bytes, tokens: make(chan struct{}, n)}
	for range n {
		p.tokens <- struct{}{}
	}
	return p
}

// get waits until a batch may go out.
func (p *arenaPool) get(ctx context.Context) (*arena, error) {
	select {
	case <-p.tokens:
	default:
		select {
		case <-p.tokens:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for one of %d batches to be freed: %w", cap(p.tokens), ctx.Err())
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		a := p.free[n-1]
		p.free = p.free[:n-1]
		p.spare = min(p.spare, n-1)
		return a, nil
	}
	mem, err := unix.Mmap(-1, 0, p.bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		p.tokens <- struct{}{}
		return nil, fmt.Errorf("map %d bytes for a batch: %w", p.bytes, err)
	}
	return &arena{pool: p, mem: mem, ranges: make([]guestram.Range, 0, liveBytes/guestram.PageSize)}, nil
}

func (p *arenaPool) put(a *arena) {
	if a.used > arenaKeepBytes {
		// Only costs memory if it fails.
		_ = unix.Madvise(a.mem[arenaKeepBytes:a.used], unix.MADV_DONTNEED)
		a.warm = min(a.warm, arenaKeepBytes)
	}
	a.used, a.ranges = 0, a.ranges[:0]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = unix.Munmap(a.mem)
		return
	}
	p.free = append(p.free, a)
	p.tokens <- struct{}{}
}

// tidy unmaps the arenas that were not needed since it was called last.
func (p *arenaPool) tidy() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.unmap(p.spare)
	p.spare = len(p.free)
	return err
}

// close unmaps what is free; arenas that are out follow when they are put back.
func (p *arenaPool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed, p.spare = true, 0
	return p.unmap(len(p.free))
}

// unmap lets go of the first n arenas that are free.
func (p *arenaPool) unmap(n int) error {
	var errs []error
	for _, a := range p.free[:n] {
		errs = append(errs, unix.Munmap(a.mem))
	}
	p.free = slices.Delete(p.free, 0, n)
	return errors.Join(errs...)
}
