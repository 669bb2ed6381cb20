package explore

// goesOn checks the moment in which the guest goes on on B.
func (x *explorer) goesOn(w *world) {
	b := &w.b
	r := x.records(w, sideB)[b.gen]
	w.wentOn = true
	switch {
	case r.holder != sideB || !r.running:
		x.fail("the guest goes on on B in generation %d, and B is not RUNNING in it at the arbiter", b.gen)
	case b.holds != b.acked:
		x.fail("B goes on from %v, it acknowledged %v", b.holds, b.acked)
	case w.heard > 2*uint8(b.holds) && !w.byPerson:
		x.fail("B goes on from %v, the world heard of what came after %v", b.holds, position(w.heard/2))
	case !b.performed && !b.forgot && w.sessions[b.acked.session()].released < b.holds.epoch():
		x.fail("B goes on from %v, outputs of it were performed by nobody", b.holds)
	case w.finished:
		x.fail("a guest that was shut down runs again, on B")
	case (w.a.guest == running || w.a.guest == paused) && w.a.phase != phaseEnded && w.a.gen >= b.gen:
		x.fail("B runs in generation %d, A is in %d", b.gen, w.a.gen)
	}
}
