package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Code sorts errors by what a caller can do about them.
type Code string

// The codes, and what they mean.
const (
	CodeInternal     Code = "internal"      // a defect or a broken system
	CodeInvalid      Code = "invalid"       // the request makes no sense
	CodeRefused      Code = "refused"       // the domain or host cannot be protected as it is
	CodeNotFound     Code = "not_found"     // no such domain or peer
	CodeConflict     Code = "conflict"      // not in this state: protected already, running elsewhere, ...
	CodeNotProtected Code = "not_protected" // the domain is not protected, or not any more
	CodeUnavailable  Code = "unavailable"   // libvirt or the peer cannot be reached
	CodeCancelled    Code = "cancelled"     // the caller went away
	CodeNoDaemon     Code = "no_daemon"     // made by clients: nobody answers on the socket
	CodeTimeout      Code = "timeout"       // made by clients: what is waited for did not come about
)

// Exit codes of the command line.
const (
	ExitOK           = 0
	ExitError        = 1
	ExitUsage        = 2
	ExitNotProtected = 3
	ExitNoDaemon     = 4
	ExitTimeout      = 5 // of wait: what it waits for did not come about
	ExitInterrupted  = 130
)

var codes = map[Code]struct{ status, exit int }{
	CodeInternal:     {http.StatusInternalServerError, ExitError},
	CodeInvalid:      {http.StatusBadRequest, ExitUsage},
	CodeRefused:      {http.StatusUnprocessableEntity, ExitError},
	CodeNotFound:     {http.StatusNotFound, ExitError},
	CodeConflict:     {http.StatusConflict, ExitError},
	CodeNotProtected: {http.StatusNotFound, ExitNotProtected},
	CodeUnavailable:  {http.StatusServiceUnavailable, ExitError},
	CodeCancelled:    {499, ExitInterrupted}, // as nginx numbers it
	CodeNoDaemon:     {http.StatusBadGateway, ExitNoDaemon},
	CodeTimeout:      {http.StatusGatewayTimeout, ExitTimeout},
}

// Error is a failure as a user reads it: what failed and why, and what to do.
type Error struct {
	Message string `json:"error"`
	Remedy  string `json:"remedy,omitempty"`
	Code    Code   `json:"code"`
	cause   error
}

// Errorf makes an Error. The format may wrap a cause with %w.
func Errorf(code Code, remedy, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Message: err.Error(), Remedy: remedy, Code: code, cause: errors.Unwrap(err)}
}

// Error implements error. The remedy is not part of it.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause; nil after a journey over the socket.
func (e *Error) Unwrap() error { return e.cause }

// ExitCode is what a command that fails with e exits with.
func (e *Error) ExitCode() int {
	if c, ok := codes[e.Code]; ok {
		return c.exit
	}
	return ExitError
}

func (e *Error) httpStatus() int {
	if c, ok := codes[e.Code]; ok {
		return c.status
	}
	return http.StatusInternalServerError
}

// AsError finds the *Error in err, or describes err as an internal one.
func AsError(err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		if e.Message == err.Error() {
			return e
		}
		return &Error{Message: err.Error(), Remedy: e.Remedy, Code: e.Code, cause: err}
	case errors.Is(err, context.Canceled):
		return &Error{Message: "cancelled", Code: CodeCancelled, cause: err}
	}
	return &Error{Message: err.Error(), Remedy: "see the daemon's log: journalctl -u virt-ft", Code: CodeInternal, cause: err}
}
