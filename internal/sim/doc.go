// Package sim runs both machines of pkg/ftengine against each other in virtual
// time, with everything around them that can go wrong: a link that is cut, a
// daemon or a whole host that dies and comes back, an arbiter that does not
// answer, a guest, a standby or a capture that fails, an operator.
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
