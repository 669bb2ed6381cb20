package replica

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of session setup.
const (
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultUserTimeout      = 5 * time.Second
	DefaultMaxHandshakes    = 32 // connections that have not said a valid Hello yet
	maxUnpaired             = 64 // control connections that wait for their data connection, or for Accept
)

// Session is the pair of connections of one protection.
type Session struct {
	Control, Data *Conn
	Version       uint8    // negotiated
	Hello         *Hello   // what the dialer said
	Welcome       *Welcome // what the listener answered; its Token is used up
	// PeerGeneration is the generation in the header of the peer's first message.
	PeerGeneration uint64
}

// Protection returns the id of the protection.
func (s *Session) Protection() UUID { return s.Control.protection }

// Close closes both connections and interrupts what is blocked on them. It is
// idempotent.
func (s *Session) Close() error { return errors.Join(s.Control.Close(), s.Data.Close()) }

// phase is how far a connection is in its life:
//
//	listener: expectHello ──Hello──▶ established (after its Welcome)
//	dialer:   expectAnswer ──Welcome──▶ established
//
// It decides which types are read at all, so that a stranger gets no more than
// a Hello's 4 KiB.
type phase uint8

const (
	established phase = iota
	expectHello
	expectAnswer
)

func (p phase) allows(t Type) bool {
	switch p {
	case expectHello:
		return t == TypeHello
	case expectAnswer:
		return t == TypeWelcome || t == TypeRefuse
	}
	return t != TypeHello && t != TypeWelcome && t != TypeRefuse
}

func (p phase) String() string {
	return [...]string{"session established", "expected Hello", "expected Welcome or Refuse"}[p]
}

// negotiate chooses the highest version both sides speak.
func negotiate(peerMin, peerMax uint8) (uint8, error) {
	v := min(peerMax, VersionMax)
	if v < max(peerMin, VersionMin) {
		return 0, fmt.Errorf("no common protocol version: the dialer speaks %d to %d, this host %d to %d", peerMin, peerMax, VersionMin, VersionMax)
	}
	return v, nil
}
