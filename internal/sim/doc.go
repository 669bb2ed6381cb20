// Package sim runs both machines of pkg/ftengine against each other in virtual
// time, with everything around them that can go wrong: a link that is cut, a
// daemon or a whole host that dies and comes back or is frozen for a while, an
// arbiter that does not answer, a guest, a standby or a capture that fails, an
// operator.
//
// The guest on A sends numbered outputs all the time. The gate (gate.go) holds
// them, heartbeats renew the lease under which they are released, and each one
// is followed to where it leaves A, is performed by B, or is lost with A. It
// writes to its disks, too: each epoch brings B as many writes as there were, and
// whatever B goes on from, or takes for the end, has to be on its disks.
//
// A run is a function of its seed, its arbiter and its faults: the same three
// give the same run, event by event. After every event and every action the
// world is checked against what virt-ft promises (see check.go), and when all
// faults are healed it has to come to rest in a state that a user can live
// with.
//
// The runners in this package do what internal/daemon does, on a model of
// QEMU: they are the second reader of the contract in ftengine/events.go.
package sim
