package netgate

import (
	"errors"
	"sync"
	"testing"
	"time"
)

// TestSealWhileReleasing: when Seal returns, the last frame has left.
func TestSealWhileReleasing(t *testing.T) {
	inNamespace(t)
	guest, world, other := plug(t, "g0", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	g := open(t, Options{}, guest)
	must(t, g.Hold())
	g.Lease(boottime(t, time.Hour))
	const frames = 2000
	guest.send(numbers(0, frames)...)
	fs := g.Cut()
	ended := make(chan error, 1)
	go func() { ended <- g.Release(fs) }()
	world.expect(0) // it is at it
	g.Seal()
	const sentinel = 1 << 60
	other.send(sentinel) // behind everything that left before
	left := uint64(1)
	for {
		n, _ := number(world.receive())
		if n == sentinel {
			break
		}
		if n != left {
			t.Fatalf("frame %d, want %d", n, left)
		}
		left++
	}
	if err := <-ended; left < frames && !errors.Is(err, ErrSealed) {
		t.Errorf("%d frames left, and Release said %v", left, err)
	}
	world.expectNothing(other)
}

// TestConcurrent: everything at once, for the race detector; and no call hangs
// when the gate is closed under it.
func TestConcurrent(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	g := open(t, Options{Dir: pins(t), Held: func() {}, InputBytesMax: 1 << 16, Input: func([]Frame) {}}, guest)
	g.Lease(boottime(t, time.Hour))
	var all sync.WaitGroup
	const rounds = 300
	for _, f := range []func(){
		func() { _ = g.Hold() },
		func() { _ = g.Pass(t.Context(), nil) },
		func() {
			fs := g.Cut()
			_ = g.Release(fs)
			g.Done(fs)
		},
		func() { g.Lease(boottime(t, time.Hour)) },
		func() { g.Stats(); g.Holding() },
		func() { _ = g.Inject([]Frame{{0, frame(1)}}) },
		func() { guest.send(1) },
		func() { world.send(2) },
	} {
		all.Go(func() {
			for range rounds {
				f()
			}
		})
	}
	all.Wait()
	must(t, g.Pass(t.Context(), nil))
	guest.send(3)
	for n := uint64(0); n != 3; {
		n, _ = number(world.receive())
	}
	for _, f := range []func(){
		func() {
			for g.Release([]Frame{{0, frame(4)}}) == nil {
			}
		},
		func() {
			for g.Pass(t.Context(), []Frame{{0, frame(5)}}) == nil {
			}
		},
		func() { must(t, g.Close(false)) },
	} {
		all.Go(f)
	}
	all.Wait()
}
