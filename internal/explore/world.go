package explore

import (
	"fmt"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// sessionsMax and epochsMax bound what a position can name.
	sessionsMax = 3
	epochsMax   = 3
	// queueMax bounds what is on its way in one direction of a session, and
	// workMax the work that waits for its turn at the standby.
	queueMax = 10
	workMax  = 10
)

// position is a place in the guest's life: the checkpoint of an epoch of a
// session, later ones greater. 0 is before the first.
type position uint8

func at(session, epoch uint8) position { return position(session<<2 | epoch) }

func (p position) session() uint8 { return uint8(p >> 2) }
func (p position) epoch() uint8   { return uint8(p & 3) }

func (p position) String() string {
	return fmt.Sprintf("checkpoint %d of session %d", p.epoch(), p.session())
}

// guest is a copy of the guest, or the QEMU that waits to become one.
type guest uint8

const (
	absent guest = iota
	waiting
	loaded
	paused
	running
)

// mode is the gate's.
type mode uint8

const (
	passing mode = iota
	holding
	sealed
)

// world is one state of everything: a value, compared as one.
type world struct {
	a hostA
	b hostB

	arb      arbiter
	notes    arbiter                  // B's own, with a person as arbiter
	sessions [sessionsMax + 1]session // by number, from 1
	count    uint8                    // how many there were

	late [3]request // by side: a claim whose asker was told nothing, and that may be taken yet

	faults, ops uint8 // that struck, that were asked for
	cut         bool  // the link carries nothing
	leaseOver   bool  // B waited for it: nothing that needs a lease leaves A
	onPurpose   bool  // the guest was shut down in order, and A's daemon saw it
	mustRun     bool  // B has all that it needs, and nothing else goes wrong
	wentOn      bool  // the guest went on on B
	byPerson    bool  // a person who is the arbiter opened A's gate
	finished    bool  // B acknowledged the last epoch of a guest that was shut down

	lastCut position // the last checkpoint that was sent
	// heard is what the world heard: 2p for the outputs of the epoch that
	// ended with p, 2p+1 for some that left after p was cut.
	heard uint8
}

// session is one connection. A direction's queue is what is on its way.
type session struct {
	aUp, bUp     bool
	aLost, bLost bool // that host lost its power: no word of it comes any more
	reset        bool // the connection broke, and both kernels know
	begun        bool // the backup's machine knows of it
	final        bool // its last epoch came, of a guest that was shut down
	gen          uint8
	acked        uint8 // by the backup
	ordered      uint8 // to be released, by the primary
	released     uint8 // left A
	toA, toB     queue
}

// carries tells whether what is sent may still arrive.
func (s *session) carries() bool { return s.aUp && s.bUp && !s.reset }

// queue is what is on its way in one direction, first in, first out.
type queue struct {
	n    uint8
	msgs [queueMax]message
}

// message is what a session carries: a kind, and an epoch or a generation.
type message uint8

const (
	msgSetup message = iota<<4 + 16
	msgEpoch
	msgFinalEpoch
	msgReleased
	msgGuestDead
	msgStandDown

	msgDropped
	msgReady
	msgAck
	msgRehearsed
	msgUnloadable
	msgActivated
	msgStoodDown
)

func (m message) kind() message { return m &^ 15 }
func (m message) arg() uint8    { return uint8(m & 15) }

func (m message) event() ftengine.Event {
	e := ftengine.Epoch(m.arg())
	switch m.kind() {
	case msgEpoch:
		return ftengine.Staged{Epoch: e}
	case msgFinalEpoch:
		return ftengine.Staged{Epoch: e, Final: true}
	case msgReleased:
		return ftengine.ReleasedTo{Epoch: e}
	case msgGuestDead:
		return ftengine.GuestDead{}
	case msgStandDown:
		return ftengine.StandDown{}
	case msgDropped:
		return ftengine.PeerDropped{}
	case msgReady:
		return ftengine.StandbyReady{}
	case msgAck:
		return ftengine.Acked{Epoch: e}
	case msgRehearsed:
		return ftengine.Rehearsed{OK: true}
	case msgUnloadable:
		return ftengine.Rehearsed{}
	case msgActivated:
		return ftengine.PeerActivated{Generation: ftengine.Generation(m.arg())}
	case msgStoodDown:
		return ftengine.PeerStoodDown{}
	}
	panic(fmt.Sprintf("explore: message %d", m))
}

func (q *queue) send(m message) bool {
	if q.n == queueMax {
		return false
	}
	q.msgs[q.n] = m
	q.n++
	return true
}

func (q *queue) take() message {
	m := q.msgs[0]
	q.n--
	copy(q.msgs[:], q.msgs[1:])
	q.msgs[queueMax-1] = 0
	return m
}

// tidy forgets what nothing depends on any more, so that worlds that differ in
// nothing else are one.
func (w *world) tidy() {
	b := &w.b
	if b.standby != loaded && b.standby != running {
		b.holds = 0
		if !b.memory {
			b.acked, b.committed, b.performed = 0, 0, false
		}
	}
	for i := uint8(1); i <= w.count; i++ {
		s := &w.sessions[i]
		if !s.aUp {
			s.toA = queue{}
		}
		if !s.bUp {
			s.toB = queue{}
		}
		if !s.aUp && !s.bUp {
			*s = session{acked: s.acked, released: s.released}
			if w.b.acked.session() != i {
				*s = session{}
			}
		}
	}
}
