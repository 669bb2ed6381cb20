// Package explore checks every interleaving of a small world: two hosts, both
// real machines of pkg/ftengine, an arbiter, a link with what is on its way on
// it, and a bounded number of faults, each of which may strike at any point.
//
// internal/sim draws runs at random, in virtual time; this package draws none
// and leaves none out. It is an explicit-state model checker in the manner of
// Spin: breadth first, so that a counterexample is a shortest one, over worlds
// that are small values, each looked at once.
//
// # The world
//
// Time is not modelled: every event that may happen is the next one in some
// run. A timer fires when it likes. What time promises is kept by construction:
// a claim of the backup that was not handed over reaches the arbiter when the
// primary's lease is over, and from then on nothing that waits for a lease
// leaves A (askB, mayLeave); a host that lost its power is back only after the
// other one has noticed (unnoticed).
//
// A checkpoint is a position: its session and its epoch. What the world heard
// is a position too: the frames of an epoch are covered by its checkpoint, what
// leaves through an open gate only by a later one than the last that was cut.
// So "never forgotten" is: B goes on from a position at or behind the one that
// was heard.
//
// # What is checked
//
// In every state: two copies are never heard; nothing leaves A after the guest
// went on on B; B goes on only where it is RUNNING at the arbiter, from the
// checkpoint that it acknowledged last, not older than what was heard, with all
// outputs before it performed by somebody; a guest whose last epoch was
// acknowledged does not run again; A ends its copy only when B said that it
// runs; a sealed gate opens only when B cannot go on; and no machine panics.
//
// From every state: what may happen by itself, with all repairs, can lead to a
// world that users can live with (rest.go). And while the only fault so far is
// never repaired, still so, but for a daemon on A that dies before B has its
// first checkpoint: its guest runs, and is not heard until a daemon is back.
//
// # What is left out, and why that is sound
//
//   - A daemon takes an event and performs its actions in one step. Faults
//     strike between any two of the actions all the same: a daemon that dies,
//     or a host that is lost, is tried behind each of them. Steps of the other
//     host between two actions would only see what one order or the other of
//     whole steps shows: actions of one side read nothing that the other side
//     writes, and messages and requests are taken at any later time.
//   - PaceDue comes with the answer to a capture: a later one is a capture that
//     takes longer, and how long it takes is open.
//   - DestroyStandby at the head of the queue of work is done at once: nobody
//     answers it, and nobody else looks at the standby.
//   - Work on the standby is done and answered in one step, but for Resume:
//     an answer that waits is work that is done later, as nobody else sees it.
//     That a guest runs, others see.
//   - A token of a machine and its texts are no part of a state: an older
//     token's Retry does nothing, and texts are only read by people.
//   - A connection that one end closed may end at the other before all that was
//     sent is read, as after a reset.
//
// Not modelled, beside time: frozen hosts other than as silence, roles that are
// swapped back, and a guest that is started anew while a marker stands, or
// after it ended on B.
//
// The bounds (Config) are on faults, operations, sessions and epochs; a world
// that would need more of the last two is counted (Result.Bounded) and left.
package explore
