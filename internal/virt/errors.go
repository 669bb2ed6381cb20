package virt

import (
	"errors"
	"fmt"

	"libvirt.org/go/libvirt"
)

// Errors of this package, to be tested with errors.Is.
var (
	// ErrNoDomain says that libvirt knows no such domain (any more).
	ErrNoDomain = errors.New("no such domain")
	// ErrNotRunning says that the domain exists, but has no QEMU process.
	ErrNotRunning = errors.New("domain is not running")
	// ErrActive says that a domain of this name or UUID already runs here.
	ErrActive = errors.New("domain is already active on this host")
	// ErrDisconnected says that there is no connection to libvirtd at the moment; it is being restored.
	ErrDisconnected = errors.New("not connected to libvirtd")
	// ErrOutcomeUnknown says that a call was sent and its answer not seen: it may have taken effect, may
	// still do so, or may have failed. Ask for the state before doing anything else.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrClosed says that the Conn was closed.
	ErrClosed = errors.New("libvirt connection closed")
	// ErrNoNote says that the domain carries no metadata of ours.
	ErrNoNote = errors.New("domain has no virt-ft metadata")
	// ErrNoProcess says that the QEMU process of a domain was not found, or that its pid file is stale.
	ErrNoProcess = errors.New("QEMU process not found")
)

// CallError is a failed operation on libvirt or on a domain.
type CallError struct {
	Op     string // for instance "suspend" or "QMP stop"
	Domain string // name; empty when the operation concerns the host
	Err    error
}

func (e *CallError) Error() string {
	if e.Domain == "" {
		return fmt.Sprintf("libvirt: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("domain %s: %s: %v", e.Domain, e.Op, e.Err)
}

// Unwrap returns the cause.
func (e *CallError) Unwrap() error { return e.Err }

// libvirtError shows libvirt's message alone; the binding's own text is meant for programmers.
type libvirtError struct{ cause libvirt.Error }

func (e *libvirtError) Error() string { return e.cause.Message }
func (e *libvirtError) Unwrap() error { return e.cause }

// classify turns what libvirt returned into an error of this package. alive tells whether the connection on
// which the call was made still stands.
func classify(err error, alive func() bool) error {
	var e libvirt.Error
	if errors.Is(err, ErrNotRunning) || !errors.As(err, &e) {
		return err
	}
	shown := &libvirtError{e}
	switch {
	case e.Code == libvirt.ERR_NO_DOMAIN:
		return fmt.Errorf("%w: %w", ErrNoDomain, shown)
	case e.Code == libvirt.ERR_NO_DOMAIN_METADATA:
		return fmt.Errorf("%w: %w", ErrNoNote, shown)
	case e.Domain == libvirt.FROM_RPC || !alive():
		return fmt.Errorf("%w (%w): %w", ErrDisconnected, ErrOutcomeUnknown, shown)
	}
	return shown
}
