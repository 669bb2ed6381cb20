package ptracer

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// What can go wrong with a remote call, for errors.Is. A failed system call is
// reported as its errno instead.
var (
	ErrPermission     = errors.New("not permitted")
	ErrGone           = errors.New("process is gone")
	ErrTraced         = errors.New("already traced by another process")
	ErrSeccomp        = errors.New("forbidden by the process's seccomp filter")
	ErrShadowStack    = errors.New("process runs with a shadow stack")
	ErrUnsupported    = errors.New("process not suited for remote calls")
	ErrTimeout        = errors.New("process did not stop in time") // the call was not executed
	ErrOutcomeUnknown = errors.New("outcome unknown")              // the call may have been executed
)

// Error is a remote call that failed.
type Error struct {
	Op     string // what was being done
	PID    int    // to which process
	Err    error  // one of the Err values above or an errno, possibly joined with a context's error
	Detail string // cause and remedy, for people; may be empty
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s: process %d: %s", e.Op, e.PID, strings.ReplaceAll(e.Err.Error(), "\n", ": "))
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// report is what an injector writes to its pipe: one JSON object.
type report struct {
	Ret       int64  `json:"ret"`       // of the system call
	StoppedNs int64  `json:"stoppedNs"` // from the request to stop until detached
	Failure   string `json:"failure,omitempty"`
	Errno     int    `json:"errno,omitempty"` // of the injector's own failed step
	Op        string `json:"op,omitempty"`
	Detail    string `json:"detail,omitempty"`
}

// errnoMax is the largest errno the kernel returns, as in its IS_ERR_VALUE.
const errnoMax = 4095

// err is the report as an error, nil if all went well.
func (r report) err(pid int, c Call) error {
	if r.Failure != "" {
		return &Error{Op: r.Op, PID: pid, Err: failureNamed(r.Failure), Detail: r.Detail}
	}
	if r.Errno != 0 {
		return &Error{Op: r.Op, PID: pid, Err: syscall.Errno(r.Errno), Detail: r.Detail}
	}
	if r.Ret < 0 && r.Ret >= -errnoMax {
		return &Error{Op: fmt.Sprintf("remote system call %d", c.Nr), PID: pid, Err: syscall.Errno(-r.Ret)}
	}
	return nil
}

// reportOf is the report of a failed injection.
func reportOf(err error) report {
	r := report{Op: "remote call"}
	var e *Error
	if errors.As(err, &e) {
		r.Op, r.Detail = e.Op, e.Detail
	}
	var errno syscall.Errno
	switch name := failureName(err); {
	case name != "":
		r.Failure = name
	case errors.As(err, &errno):
		r.Errno = int(errno)
	default:
		r.Failure, r.Detail = ErrUnsupported.Error(), err.Error()
	}
	return r
}

func failures() []error {
	return []error{ErrPermission, ErrGone, ErrTraced, ErrSeccomp, ErrShadowStack, ErrUnsupported, ErrTimeout, ErrOutcomeUnknown}
}

// failureName is the name under which err travels, "" if it is none of ours.
func failureName(err error) string {
	for _, f := range failures() {
		if errors.Is(err, f) {
			return f.Error()
		}
	}
	return ""
}

func failureNamed(name string) error {
	for _, f := range failures() {
		if f.Error() == name {
			return f
		}
	}
	return fmt.Errorf("injector: %s", name)
}
