// Package ftengine is the protocol of virt-ft: what a primary and a backup
// do, and in which order, so that exactly one copy of a guest ever goes on and
// it goes on from a checkpoint that both sides had agreed on.
//
// Primary and Backup are pure state machines. Step takes one event and returns
// the actions it asks for; there is no goroutine, no socket and no clock in
// them. The order of the returned actions is part of the contract: a runner
// performs them one after the other (see Run). Slow actions are started in
// order and report back by an event.
//
// # Epochs
//
// The guest's run is cut into epochs 1, 2, 3, … by checkpoints. Epoch k ends
// when checkpoint k was captured; it is shipped while the guest runs on in
// epoch k+1; the backup acknowledges it once it holds all of it, and then
// commits it. The primary performs what the guest sent in epoch k only after
// that acknowledgement (output commit, after Remus, NSDI 2008).
//
// # Generations
//
// A generation is a period in which one host holds the right to run the
// guest. It grows by one whenever a side wins the right to go on alone. A
// message, claim or standby of an older generation is refused.
//
// A machine is not safe for concurrent use: one goroutine owns it.
package ftengine

import "fmt"

// Epoch numbers the checkpoints of one session from 1; 0 means none yet.
type Epoch uint64

// Generation numbers the periods of ownership of a guest from 1.
type Generation uint64

// Loss says how a session ended, as far as this side can know.
type Loss uint8

const (
	// Closed: the peer's kernel closed the connection. Its host lives, so
	// its guest may too.
	Closed Loss = iota + 1
	// Silent: nothing was heard for the whole detection limit.
	Silent
)

func (l Loss) String() string {
	switch l {
	case Closed:
		return "closed"
	case Silent:
		return "silent"
	}
	return fmt.Sprintf("Loss(%d)", uint8(l))
}

// Verdict is the outcome of a claim for the right to run alone.
type Verdict uint8

const (
	// Won: this side holds the claimed generation.
	Won Verdict = iota + 1
	// Lost: the other side holds it.
	Lost
	// Unknown: the arbiter did not say. Never treated as won.
	Unknown
	// NeedOperator: the arbiter leaves the decision to a person.
	NeedOperator
)

func (v Verdict) String() string {
	switch v {
	case Won:
		return "won"
	case Lost:
		return "lost"
	case Unknown:
		return "unknown"
	case NeedOperator:
		return "operator needed"
	}
	return fmt.Sprintf("Verdict(%d)", uint8(v))
}

// Cause says why a side claims: an arbiter that leaves decisions to a person
// accepts a person's word, and a handover by the primary itself.
type Cause uint8

const (
	// PeerSilent: nothing was heard for the detection limit.
	PeerSilent Cause = iota + 1
	// HandedOver: the primary said that its guest is dead.
	HandedOver
	// ByOperator: a person decided.
	ByOperator
	// DaemonGone: the primary's daemon ended, its host did not, and no daemon
	// came back for Limits.Grace. Its copy may run, but tells nobody: the gate
	// is closed since its lease ended.
	DaemonGone
	// ToRevoke: the primary takes the right to run from a backup that it
	// cannot reach, because the protection ended.
	ToRevoke
	// TookBack: the primary told the backup to go on, and cannot see that it did.
	// The backup may run the guest by now, and be heard, by the primary's own
	// word: it must not be turned off to find out.
	TookBack
)

func (c Cause) String() string {
	switch c {
	case PeerSilent:
		return "peer silent"
	case HandedOver:
		return "handed over"
	case ByOperator:
		return "operator"
	case DaemonGone:
		return "daemon gone"
	case ToRevoke:
		return "revoke"
	case TookBack:
		return "take back"
	}
	return fmt.Sprintf("Cause(%d)", uint8(c))
}

// Event is something that happened; Primary and Backup each accept a set of
// their own and panic on one that is not theirs: that is our mistake, never
// a peer's.
type Event interface{ event() }

// Action is something the runner has to do.
type Action interface{ action() }

// invariant panics when one of our own promises is broken. It is always on:
// going on would mean to lose what the world was told.
func invariant(ok bool, format string, args ...any) {
	if !ok {
		panic("ftengine: invariant broken: " + fmt.Sprintf(format, args...))
	}
}
