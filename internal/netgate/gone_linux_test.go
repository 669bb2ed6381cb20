package netgate

import "testing"

// What a guest sent last is heard although its tap is gone: its QEMU ended before
// the backup had what the frames depend on.
func TestGuestGone(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	alone := plug(t, "g1", 1)
	must(t, noMaster(t, "g1"))
	g := open(t, Options{Dir: pins(t)}, guest, alone)
	must(t, g.Hold())
	guest.send(1)
	first := g.Cut()
	checkFrames(t, first, 1)
	guest.send(2, 3)
	alone.send(4)
	guest.unplug()
	alone.unplug()
	g.GuestGone()
	must(t, g.Pass(t.Context(), first))
	world.expect(1, 2, 3)
	if s := g.Stats(); s.Lost != 1 { // that of a tap on no bridge
		t.Errorf("%+v", s)
	}
}

// A guest that was handed over, and that nobody took, goes on as if it had not been.
func TestUnseal(t *testing.T) {
	inNamespace(t)
	guest, world, other := plug(t, "g0", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	g := open(t, Options{Dir: pins(t)}, guest)
	must(t, g.Hold())
	guest.send(1)
	held := g.Cut()
	checkFrames(t, held, 1)
	g.Seal()
	if err := g.Release(held); err == nil {
		t.Error("a sealed gate lets frames out")
	}
	world.expectNothing(other)
	g.Unseal()
	guest.send(2)
	world.expectNothing(other)
	must(t, g.Pass(t.Context(), held))
	world.expect(1, 2)
	guest.send(3)
	world.expect(3)
}
