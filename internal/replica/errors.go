package replica

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/pkg/zcstream"
)

// How a connection ended. Tell them apart with errors.Is.
var (
	// ErrPeerClosed: a FIN, a RST or a refused connect arrived. The peer's
	// kernel is alive; its daemon closed the connection, died or is not there.
	ErrPeerClosed = errors.New("peer closed the connection")
	// ErrPeerSilent: nothing arrived in time. The peer's host may be dead,
	// frozen, or cut off.
	ErrPeerSilent = errors.New("peer is silent")
	// ErrClosed: this side closed the connection.
	ErrClosed = errors.New("connection closed on this side")
	// ErrMalformed: the peer sent bytes that the protocol does not allow.
	ErrMalformed = errors.New("malformed message")
)

// ConnError is an error of a connection. It matches, with errors.Is, the Kind
// (ErrPeerClosed, ErrPeerSilent, ErrClosed, ErrMalformed, or nil when the end
// says nothing about the peer) and the cause.
type ConnError struct {
	Op   string // "send", "receive", "dial", "handshake"
	Peer string // address
	Kind error
	Err  error
}

func (e *ConnError) Error() string {
	if e.Kind == nil || errors.Is(e.Err, e.Kind) {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Peer, e.Err)
	}
	return fmt.Sprintf("%s %s: %v: %v", e.Op, e.Peer, e.Kind, e.Err)
}

func (e *ConnError) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}

// connError wraps err, classified; an error wrapped before stays as it is.
func connError(op, peer string, err error) error {
	var wrapped *ConnError
	if err == nil || errors.As(err, &wrapped) {
		return err
	}
	return &ConnError{Op: op, Peer: peer, Kind: Classify(err), Err: err}
}

// Classify tells what err, from a dial or a connection, says of the peer:
// ErrPeerClosed, ErrPeerSilent, ErrClosed, ErrMalformed, or nil for nothing (a
// cancelled context, for instance). A deadline that passed counts as silence.
func Classify(err error) error {
	var alert tls.AlertError
	var notTLS tls.RecordHeaderError
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, ErrMalformed), errors.As(err, &notTLS):
		return ErrMalformed
	case errors.Is(err, ErrClosed), errors.Is(err, zcstream.ErrClosed), errors.Is(err, net.ErrClosed):
		return ErrClosed
	case errors.Is(err, ErrPeerSilent), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.EHOSTUNREACH),
		errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTDOWN):
		return ErrPeerSilent
	case errors.Is(err, ErrPeerClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE),
		errors.Is(err, unix.ECONNREFUSED), errors.As(err, &alert):
		return ErrPeerClosed
	}
	return nil
}

// FormatError says where a message breaks the format. It matches ErrMalformed.
type FormatError struct {
	Type   Type   // message type, 0 when the header itself is wrong
	Field  string // name as in docs/PROTOCOL.md
	Offset int    // bytes from the start of the header or payload
	Reason string
}

func (e *FormatError) Error() string {
	where := "header"
	if e.Type != 0 {
		where = e.Type.String()
	}
	return fmt.Sprintf("malformed message: %s: %s at byte %d: %s", where, e.Field, e.Offset, e.Reason)
}

// Is makes errors.Is(err, ErrMalformed) true.
func (e *FormatError) Is(target error) bool { return target == ErrMalformed }

// StaleGenerationError says that a peer speaks for a generation that is over:
// the other side has been activated since. It must stand down.
type StaleGenerationError struct{ Ours, Peers uint64 }

func (e *StaleGenerationError) Error() string {
	return fmt.Sprintf("peer is of generation %d, this host of %d: the guest has been activated elsewhere since", e.Peers, e.Ours)
}

// CheckGeneration returns a *StaleGenerationError when the peer's generation is
// older than ours. A newer one is no error: it is we who are stale, which the
// caller decides with the arbiter.
func CheckGeneration(ours, peers uint64) error {
	if peers < ours {
		return &StaleGenerationError{Ours: ours, Peers: peers}
	}
	return nil
}

// RefusedError is what Dial returns when the peer answered with a Refuse.
type RefusedError struct {
	Refuse
	Generation uint64 // the refusing peer's
}

func (e *RefusedError) Error() string {
	s := fmt.Sprintf("refused by peer (%s): %s", e.Code, e.Reason)
	if e.Remedy != "" {
		s += ": " + e.Remedy
	}
	return s
}
