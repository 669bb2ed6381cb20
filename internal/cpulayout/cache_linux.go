package cpulayout

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/virt-ft/virt-ft/internal/vmstate"
)

// maxCached bounds what a Cache keeps. A host has a handful of binaries and machine types.
const maxCached = 64

// Cache remembers what was learned of a binary, for as long as the file is the
// same. The zero Cache is ready. Safe for concurrent use.
type Cache struct {
	learn func(ctx context.Context, emulator, machine string) (vmstate.CPULayout, error) // nil: Learn

	mu    sync.Mutex
	known map[key]*result
}

// key is a binary as it is now, and a machine type.
type key struct {
	dev, inode    uint64
	mtimeNs, size int64
	machine       string
}

// result is there once done is closed.
type result struct {
	done   chan struct{}
	layout vmstate.CPULayout
	err    error
	gaveUp bool // err is that of the caller's context
}

// Layout is Learn, once for a binary and machine type. Who asks while another one's run
// is under way waits for that, and has its result. An error is not remembered:
// the next one tries again.
func (c *Cache) Layout(ctx context.Context, emulator, machine string) (vmstate.CPULayout, error) {
	k, err := keyOf(emulator, machine)
	if err != nil {
		return vmstate.CPULayout{}, err
	}
	for {
		r, mine := c.result(k)
		if mine {
			c.fill(ctx, k, r, emulator)
			return r.layout, r.err
		}
		select {
		case <-r.done:
		case <-ctx.Done():
			return vmstate.CPULayout{}, fmt.Errorf("wait for the layout of a virtual CPU's state: %w", context.Cause(ctx))
		}
		if !r.gaveUp {
			return r.layout, r.err
		}
	}
}

// result returns what is known of k or being learned; mine: nothing, and the caller has to fill it.
func (c *Cache) result(k key) (r *result, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.known[k]; ok {
		return r, false
	}
	if c.known == nil || len(c.known) >= maxCached {
		c.known = make(map[key]*result) // who waits has its own pointer
	}
	r = &result{done: make(chan struct{})}
	c.known[k] = r
	return r, true
}

// fill learns, and forgets an error, or a layout of a file that was replaced meanwhile.
func (c *Cache) fill(ctx context.Context, k key, r *result, emulator string) {
	learn := c.learn
	if learn == nil {
		learn = Learn
	}
	r.layout, r.err = learn(ctx, emulator, k.machine)
	if r.err == nil {
		now, err := keyOf(emulator, k.machine)
		if err == nil && now != k {
			err = fmt.Errorf("%s was replaced while it was asked; try again", emulator)
		}
		r.err = err
	}
	if r.err != nil {
		r.gaveUp = ctx.Err() != nil
		c.mu.Lock()
		if c.known[k] == r {
			delete(c.known, k)
		}
		c.mu.Unlock()
	}
	close(r.done)
}

func keyOf(emulator, machine string) (key, error) {
	info, err := os.Stat(emulator)
	if err != nil {
		return key{}, fmt.Errorf("QEMU binary: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return key{}, fmt.Errorf("QEMU binary: %s cannot be identified", emulator)
	}
	return key{st.Dev, st.Ino, info.ModTime().UnixNano(), info.Size(), machine}, nil
}
