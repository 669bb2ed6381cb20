package netgate

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

// logged opens a gate that logs inputs into a channel.
func logged(t testing.TB, bytesMax int, machines ...*machine) (*Gate, <-chan Frame) {
	t.Helper()
	inputs := make(chan Frame, 10_000)
	g := open(t, Options{InputBytesMax: bytesMax, Input: func(fs []Frame) {
		for _, f := range fs {
			if _, ok := number(f.Data); ok {
				inputs <- f
			}
		}
	}}, machines...)
	must(t, g.Hold())
	return g, inputs
}

func nextInput(t testing.TB, inputs <-chan Frame) Frame {
	t.Helper()
	select {
	case f := <-inputs:
		return f
	case <-time.After(patience):
		t.Fatal("no input was logged")
		panic("not reached")
	}
}

// TestInputs: what arrives for the guest is logged as it was, what the guest
// sends is not, and what was logged can be sent to the guest again.
func TestInputs(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	g, inputs := logged(t, 1<<20, guest)
	sent := [][]byte{frame(1), frame(2, 0x3007), frame(3, 5, 6)}
	var log []Frame
	for _, b := range sent {
		world.write(b)
		guest.send(99) // held
		log = append(log, nextInput(t, inputs))
	}
	for i, f := range log {
		if f.NIC != 0 || !bytes.Equal(f.Data, sent[i]) {
			t.Errorf("logged % x\nsent   % x", f.Data, sent[i])
		}
	}
	guest.expect(1, 2, 3)
	if s := g.Stats(); s.InputsLogged < 3 || s.InputsSkipped != 0 {
		t.Errorf("%+v", s)
	}
	must(t, g.Inject(log))
	for _, b := range sent {
		if got := guest.receive(); !bytes.Equal(got, b) {
			t.Errorf("injected % x\nsent     % x", got, b)
		}
	}
	world.send(4)
	checkFrames(t, []Frame{nextInput(t, inputs)}, 4) // nothing that we injected was logged
	if err := g.Inject([]Frame{{9, frame(5)}, {0, frame(6)}}); !errors.Is(err, ErrNoNIC) {
		t.Errorf("an interface that is not there: %v", err)
	}
	guest.expect(4, 6)
}

// TestInputBound: the log of an epoch ends at the bound, and the next begins
// with the next cut.
func TestInputBound(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	size := len(frame(0))
	g, inputs := logged(t, 10*size, guest)
	g.Cut() // what the bridge had to say was logged until here
	world.send(numbers(0, 1000)...)
	guest.expect(numbers(0, 1000)...)
	for range 5 {
		nextInput(t, inputs)
	}
	if s := g.Stats(); s.InputsLogged > 20 {
		t.Errorf("%+v", s)
	}
	g.Cut()
	for range 5 {
		nextInput(t, inputs)
	}
}

// TestInputsOnlyWhileHolding: a gate that passes has nobody to log for.
func TestInputsOnlyWhileHolding(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	g, inputs := logged(t, 1<<20, guest)
	must(t, g.Pass(t.Context(), nil))
	world.send(1)
	must(t, g.Hold())
	world.send(2)
	checkFrames(t, []Frame{nextInput(t, inputs)}, 2)
}

// TestInputsTCP: a real stack's segments, with checksums and segmentation left
// to do, are logged and injected.
func TestInputsTCP(t *testing.T) {
	inNamespace(t)
	m := plug(t, "g0", 1)
	s := boot(t, m)
	inputs := make(chan Frame, 10_000)
	g := open(t, Options{InputBytesMax: 64 << 20, Input: func(fs []Frame) {
		for _, f := range fs {
			inputs <- f
		}
	}}, m)
	guest, host := s.connect(hostIP4)
	must(t, transfer(host, guest, 1<<20))
	must(t, g.Hold())
	// The guest's acknowledgements are held, so the host sends one window.
	if _, err := host.Write(make([]byte, 30_000)); err != nil {
		t.Fatal(err)
	}
	var log []Frame
	supers, bytes := 0, 0
	for bytes < 30_000 {
		f := nextInput(t, inputs)
		log = append(log, f)
		bytes += len(f.Data)
		if f.Data[vnetGSOType] != 0 {
			supers++
		}
	}
	if supers == 0 {
		t.Error("no segmentation was left to do: this proves less than it should")
	}
	must(t, g.Inject(log)) // twice the same is no harm for TCP
	must(t, g.Pass(t.Context(), g.Cut()))
	buf := make([]byte, 30_000)
	must(t, guest.SetReadDeadline(time.Now().Add(patience)))
	for got := 0; got < len(buf); {
		n, err := guest.Read(buf[got:])
		must(t, err)
		got += n
	}
	must(t, transfer(host, guest, 1<<20))
}

// A guest that does not run yet hears nothing, and from Unmute on everything.
func TestMute(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	g := open(t, Options{Mute: true}, guest)
	world.send(1, 2, 3)
	guest.send(4)
	world.expect(4) // which says that 1 to 3 have come as far as they come
	if !guest.idle() {
		t.Error("a mute guest was sent something")
	}
	g.Unmute()
	must(t, g.Inject([]Frame{{0, frame(5)}}))
	world.send(6)
	guest.expect(5, 6)
	if _, err := Open([]NIC{{0, "g0"}}, Options{Mute: true, Dir: pins(t)}); err == nil {
		t.Error("a gate was pinned mute")
	}
}

// What is no tap has no gate: the frames of a macvtap's guest would pass it by.
func TestNoTap(t *testing.T) {
	inNamespace(t)
	bridge(t)
	if _, err := Open([]NIC{{0, "br0"}}, Options{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a gate before a bridge: %v", err)
	}
}
