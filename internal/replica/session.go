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
	DefaultMaxHandshakes    = 128 // connections that have not proven who they are
	addressShare            = 4   // of them: one part in so many may be from one address
	maxUnpaired             = 64  // control connections that wait for their data connections, or for Accept
	asksPerSecond           = 50  // of one host
	asksBurst               = 300
)

// Session is the connections of one protection.
type Session struct {
	Control *Conn
	Data    *Conn    // the first of Streams, which carries all but the pages of the others
	Streams []*Conn  // the data connections, 1 to MaxStreams; StreamOf says which page goes where
	Version uint8    // negotiated
	Hello   *Hello   // what the dialer said on the control connection
	Welcome *Welcome // what the listener answered there; its Token is used up
	// PeerGeneration is the generation in the header of the peer's first message.
	PeerGeneration uint64
}

// Protection returns the id of the protection.
func (s *Session) Protection() UUID { return s.Control.protection }

// Close closes all connections and interrupts what is blocked on them. It is
// idempotent.
func (s *Session) Close() error {
	errs := []error{s.Control.Close()}
	for _, c := range s.Streams {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// newSession joins connections whose handshakes are over; from here on they
// speak the negotiated version. There is at least one stream.
func newSession(control *Conn, streams []*Conn, version uint8, hello *Hello, welcome *Welcome, peerGeneration uint64) *Session {
	control.version = version
	for _, c := range streams {
		c.version = version
	}
	return &Session{Control: control, Data: streams[0], Streams: streams, Version: version, Hello: hello, Welcome: welcome, PeerGeneration: peerGeneration}
}

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
