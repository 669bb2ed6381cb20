package netgate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestHoldCutReleasePass(t *testing.T) {
	inNamespace(t)
	guest, world, other := plug(t, "g0", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	g := open(t, Options{Dir: pins(t)}, guest)

	guest.send(1)
	world.expect(1)
	if g.Holding() || g.Cut() != nil {
		t.Error("a new gate holds")
	}
	must(t, g.Hold())
	guest.send(2, 3)
	first := g.Cut()
	checkFrames(t, first, 2, 3)
	guest.send(4)
	world.expectNothing(other)
	if s := g.Stats(); s.HeldFrames < 2 || s.HeldAge <= 0 || s.Mode != Holding || s.Passed != 1 || s.Captured != 3 {
		t.Errorf("%+v", s)
	}
	g.Lease(boottime(t, time.Minute))
	must(t, g.Release(first))
	g.Done(first)
	world.expect(2, 3)
	world.expectNothing(other)
	second := g.Cut()
	checkFrames(t, second, 4)
	guest.send(5)
	must(t, g.Pass(t.Context(), second))
	world.expect(4, 5)
	guest.send(6)
	world.expect(6)
	want := Stats{Mode: Passing, Passed: 2, Captured: 4, Released: 4}
	if s := g.Stats(); s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	must(t, g.Hold())
	guest.send(7)
	world.expectNothing(other)
	g.Done(second) // late, and of no effect
	if s := g.Stats(); s.HeldFrames > 1 {
		t.Errorf("%+v", s)
	}
	checkFrames(t, g.Cut(), 7)
}

// TestOrder: 30,000 frames in 30 epochs, each released while later ones come in.
func TestOrder(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	g := open(t, Options{}, guest)
	must(t, g.Hold())
	g.Lease(boottime(t, time.Hour))
	const epochs, each = 30, 1000
	cuts := make(chan []Frame, epochs)
	released := make(chan error, 1)
	go func() {
		var first error
		for fs := range cuts {
			if err := g.Release(fs); err != nil && first == nil {
				first = err
			}
			g.Done(fs)
		}
		released <- first
	}()
	for e := range uint64(epochs) {
		guest.send(numbers(e*each, (e+1)*each)...)
		fs := g.Cut()
		if len(fs) != each {
			t.Errorf("epoch %d: %d frames were cut of %d", e, len(fs), each)
		}
		cuts <- fs
	}
	close(cuts)
	must(t, <-released)
	world.expect(numbers(0, epochs*each)...)
	if s := g.Stats(); s.Released != epochs*each || s.HeldFrames != 0 || s.HeldBytes != 0 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

func TestHeldOnce(t *testing.T) {
	inNamespace(t)
	guest := plug(t, "g0", 1)
	var told atomic.Int64
	wake := make(chan struct{}, 16)
	g := open(t, Options{Held: func() { told.Add(1); wake <- struct{}{} }}, guest)
	must(t, g.Hold())
	for round := int64(1); round <= 3; round++ {
		guest.send(1)
		<-wake
		guest.send(2, 3, 4)
		if fs := g.Cut(); len(fs) != 4 {
			t.Errorf("%d frames", len(fs))
		}
		if n := told.Load(); n != round {
			t.Fatalf("told %d times in %d rounds", n, round)
		}
	}
}

func TestTwoNICs(t *testing.T) {
	inNamespace(t)
	a, b, world := plug(t, "g0", 1), plug(t, "g1", 1), plug(t, "w0", 1)
	g := open(t, Options{Dir: pins(t)}, a, b)
	must(t, g.Hold())
	a.send(1)
	b.send(2)
	fs := g.Cut()
	slices.SortFunc(fs, func(x, y Frame) int { return int(x.NIC) - int(y.NIC) })
	checkFrames(t, fs, 1, 2)
	if fs[0].NIC != 0 || fs[1].NIC != 1 {
		t.Error("frames of the wrong interface")
	}
	g.Lease(boottime(t, time.Minute))
	must(t, g.Release(fs))
	world.expect(1, 2)
	// What one sent the other, on the same bridge, got too.
	b.expect(1)
	a.expect(2)
}

func TestMultiqueue(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 4), plug(t, "w0", 1)
	g := open(t, Options{}, guest)
	must(t, g.Hold())
	for i, f := range append(guest.more, guest.file) {
		if _, err := f.Write(frame(uint64(i))); err != nil {
			t.Fatal(err)
		}
	}
	fs := g.Cut()
	checkFrames(t, fs, 0, 1, 2, 3)
	must(t, g.Pass(t.Context(), fs))
	world.expect(0, 1, 2, 3)
}

func TestVLANTags(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	g := open(t, Options{}, guest)
	must(t, g.Hold())
	sent := [][]byte{frame(1, 7), frame(2, 0x2fff), frame(3, 5, 6)}
	for _, b := range sent {
		guest.write(b)
	}
	fs := g.Cut()
	for i, f := range fs {
		if !bytes.Equal(f.Data, sent[i]) {
			t.Errorf("held % x\nsent % x", f.Data, sent[i])
		}
	}
	must(t, g.Pass(t.Context(), fs))
	for _, b := range sent {
		if got := world.receive(); !bytes.Equal(got, b) {
			t.Errorf("arrived % x\nsent    % x", got, b)
		}
	}
}

func TestLease(t *testing.T) {
	inNamespace(t)
	guest, world, other := plug(t, "g0", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	g := open(t, Options{}, guest)
	must(t, g.Hold())
	guest.send(1, 2)
	fs := g.Cut()
	var late *LeaseError
	if err := g.Release(fs); !errors.Is(err, ErrLease) || !errors.As(err, &late) || late.Out != 0 {
		t.Errorf("without a lease: %v", err)
	}
	g.Lease(boottime(t, -time.Second))
	if err := g.Release(fs); !errors.Is(err, ErrLease) {
		t.Errorf("with an old lease: %v", err)
	}
	// A thread that was frozen between looking and writing: the kernel looks too.
	for _, f := range fs {
		if _, err := unix.Write(g.ports[0].tap.fd, f.Data); err != nil {
			t.Fatal(err)
		}
	}
	world.expectNothing(other)
	if s := g.Stats(); s.DroppedLease != 2 || s.Released != 0 || s.HeldFrames != 2 {
		t.Errorf("%+v", s)
	}
	g.Lease(boottime(t, time.Minute))
	g.Lease(boottime(t, -time.Minute)) // too late to be true
	must(t, g.Release(fs))
	world.expect(1, 2)
	world.expectNothing(other)
}

func TestSeal(t *testing.T) {
	inNamespace(t)
	guest, world, other := plug(t, "g0", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	dir := pins(t)
	g := open(t, Options{Dir: dir}, guest)
	must(t, g.Hold())
	g.Lease(boottime(t, time.Hour))
	guest.send(1)
	fs := g.Cut()
	g.Seal()
	g.Lease(boottime(t, 2*time.Hour))
	guest.send(2)
	for what, err := range map[string]error{
		"Release": g.Release(fs), "Pass": g.Pass(t.Context(), fs), "Hold": g.Hold(),
	} {
		if !errors.Is(err, ErrSealed) {
			t.Errorf("%s after Seal: %v", what, err)
		}
	}
	for _, lease := range []uint64{0, leaseForever} { // whatever it says
		g.ports[0].state.word(wordLease).Store(lease)
		if _, err := unix.Write(g.ports[0].tap.fd, fs[0].Data); err != nil {
			t.Fatal(err)
		}
	}
	world.expectNothing(other)
	if s := g.Stats(); s.Mode != Sealed || s.DroppedSealed != 2 || s.DroppedLease != 1 {
		t.Errorf("%+v", s)
	}
	must(t, g.Close(true))
	again := open(t, Options{Dir: dir}, guest)
	if err := again.Pass(t.Context(), fs); !errors.Is(err, ErrSealed) {
		t.Errorf("a new daemon's Pass: %v", err)
	}
	guest.send(3)
	world.expectNothing(other)
}

// TestQueueFull: a flood is bounded here and in the kernel, what is over is
// dropped and counted, and the guest is never kept waiting.
func TestQueueFull(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	const framesMax = 100
	g := open(t, Options{QueueFramesMax: framesMax}, guest)
	must(t, g.Hold())
	const sent = framesMax + 2*captureQueueFrames
	guest.send(numbers(0, sent)...)
	fs := g.Cut()
	if len(fs) > framesMax {
		t.Errorf("%d frames are held", len(fs))
	}
	s := g.Stats()
	if s.DroppedFull == 0 || s.HeldFrames > framesMax || s.Captured != sent {
		t.Errorf("%+v", s)
	}
	// What fitted comes out, oldest first.
	g.Lease(boottime(t, time.Hour))
	var out uint64
	for len(fs) > 0 {
		must(t, g.Release(fs))
		for range fs {
			if n, _ := number(world.receive()); n != out {
				t.Fatalf("frame %d, want %d", n, out)
			}
			out++
		}
		g.Done(fs)
		fs = g.Cut()
	}
	if out+s.DroppedFull != sent {
		t.Errorf("%d came out and %d were dropped of %d", out, s.DroppedFull, sent)
	}
}

func TestBytesBound(t *testing.T) {
	inNamespace(t)
	guest := plug(t, "g0", 1)
	const bytesMax = 100_000
	g := open(t, Options{QueueBytesMax: bytesMax}, guest)
	must(t, g.Hold())
	big := append(frame(1), make([]byte, 9000)...)
	for range 100 {
		guest.write(big)
	}
	fs := g.Cut()
	s := g.Stats()
	if s.HeldBytes < bytesMax-len(big) || s.HeldBytes > bytesMax+len(big) || s.HeldFrames != len(fs) {
		t.Errorf("%+v", s)
	}
	g.Done(fs)
	if n := len(g.Cut()); n == 0 {
		t.Error("nothing came after there was room")
	}
}

// TestStray: what programs of the host send on every interface does not become
// the guest's.
func TestStray(t *testing.T) {
	inNamespace(t)
	guest := plug(t, "g0", 1)
	g := open(t, Options{}, guest)
	must(t, g.Hold())
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	err = unix.Sendto(fd, frame(1)[VnetHeaderBytes:], 0, &unix.SockaddrLinklayer{Ifindex: g.ports[0].tap.ifindex})
	if err != unix.ENOBUFS { // which is how a drop is told
		t.Errorf("a stranger's frame: %v", err)
	}
	guest.send(2)
	checkFrames(t, g.Cut(), 2)
	if s := g.Stats(); s.DroppedStray != 1 {
		t.Errorf("%+v", s)
	}
}

func TestPassBounded(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	g := open(t, Options{}, guest)
	must(t, g.Hold())
	guest.send(1)
	fs := g.Cut()
	guest.send(2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Pass(ctx, fs); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	guest.send(3)
	world.expect(3)
	if s := g.Stats(); s.HeldFrames != 0 || s.HeldBytes != 0 || s.Mode != Passing {
		t.Errorf("%+v", s)
	}
}

// TestInterfaceDown: performing does not hang on an interface that is down or gone.
func TestInterfaceDown(t *testing.T) {
	inNamespace(t)
	guest := plug(t, "g0", 1)
	g := open(t, Options{Dir: pins(t)}, guest)
	must(t, g.Hold())
	g.Lease(boottime(t, time.Hour))
	guest.send(numbers(0, 1000)...)
	fs := g.Cut()
	guest.unplug()
	must(t, g.Release(fs))
	if s := g.Stats(); s.Lost != 1000 {
		t.Errorf("%+v", s)
	}
}

func TestMalformed(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	g := open(t, Options{}, guest)
	gso := frame(3)
	gso[vnetGSOType] = 0x7f
	binary.NativeEndian.PutUint16(gso[vnetHdrLen:], 60000)
	fs := []Frame{{0, nil}, {0, make([]byte, 13)}, {9, frame(2)}, {0, gso}, {0, frame(4)}}
	must(t, g.Pass(t.Context(), fs))
	world.expect(4)
	if s := g.Stats(); s.Lost != 4 {
		t.Errorf("%+v", s)
	}
}

func TestBusyAndClosed(t *testing.T) {
	inNamespace(t)
	guest := plug(t, "g0", 1)
	dir := pins(t)
	g := open(t, Options{Dir: dir}, guest)
	if _, err := Open([]NIC{{0, "g0"}}, Options{}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second gate: %v", err)
	}
	for _, nics := range [][]NIC{nil, {{0, "g0"}, {0, "g1"}}, {{0, "g0"}, {1, "g0"}}, {{0, "nosuch"}}, make([]NIC, NICsMax+1)} {
		if _, err := Open(nics, Options{}); err == nil {
			t.Errorf("%d interfaces: no error", len(nics))
		}
	}
	must(t, g.Close(false))
	must(t, g.Close(true))
	for what, err := range map[string]error{
		"Hold": g.Hold(), "Release": g.Release(nil), "Pass": g.Pass(t.Context(), nil), "Inject": g.Inject(nil),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	g.Seal()
	if g.Cut() != nil || g.Holding() || g.Stats() != (Stats{}) {
		t.Error("a closed gate has something to say")
	}
}

func TestProbe(t *testing.T) {
	inNamespace(t) // which skips if it fails
	must(t, Probe())
}
