package virt

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"
)

// maxMonitorFiles bounds the descriptors passed with one command; libvirt's own limit is 32.
const maxMonitorFiles = 8

// QMPError is QEMU's refusal of a command.
type QMPError struct {
	Command string
	Class   string // for instance GenericError, CommandNotFound
	Desc    string
}

func (e *QMPError) Error() string {
	return fmt.Sprintf("QEMU refuses %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// HMP runs a command of QEMU's human monitor and returns what it printed. HMP has no errors: a refusal is
// part of the text.
func (d *Domain) HMP(ctx context.Context, cmd string) (string, error) {
	return onDomain(ctx, d, "HMP "+cmd, func(h *libvirt.Domain) (string, error) {
		return h.QemuMonitorCommand(cmd, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_HMP)
	})
}

// QMP runs a QMP command; args is marshalled as its arguments, nil for none. It returns the "return" member
// of the answer. A refusal by QEMU is a *QMPError; after ErrOutcomeUnknown the command may still be executed.
func (d *Domain) QMP(ctx context.Context, execute string, args any) (json.RawMessage, error) {
	cmd, err := marshalQMP(execute, args)
	if err != nil {
		return nil, &CallError{"QMP " + execute, d.name, err}
	}
	return onDomain(ctx, d, "QMP "+execute, func(h *libvirt.Domain) (json.RawMessage, error) {
		answer, err := h.QemuMonitorCommand(cmd, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
		if err != nil {
			return nil, err
		}
		return parseQMP(execute, answer)
	})
}

// QMPWithFiles is QMP with descriptors passed along (add-fd, getfd). The files stay the caller's: duplicates
// are sent, so that a file may be closed as soon as this returns, with whatever outcome.
func (d *Domain) QMPWithFiles(ctx context.Context, execute string, args any, files ...*os.File) (json.RawMessage, error) {
	op := "QMP " + execute
	cmd, err := marshalQMP(execute, args)
	if err != nil {
		return nil, &CallError{op, d.name, err}
	}
	passed, err := duplicate(files)
	if err != nil {
		return nil, &CallError{op, d.name, err}
	}
	// The call outlives ctx, so the duplicates belong to it once it has begun, and to us when it never does.
	var taken atomic.Bool
	answer, err := onDomain(ctx, d, op, func(h *libvirt.Domain) (string, error) {
		if !taken.CompareAndSwap(false, true) {
			return "", context.Canceled
		}
		defer passed.release()
		answer, _, err := h.QemuMonitorCommandWithFiles(cmd, passed.values(), 0)
		return answer, err
	})
	if taken.CompareAndSwap(false, true) {
		passed.release()
	}
	if err != nil {
		return nil, err
	}
	ret, err := parseQMP(execute, answer)
	if err != nil {
		return nil, &CallError{op, d.name, err}
	}
	return ret, nil
}

type qmpCommand struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

func marshalQMP(execute string, args any) (string, error) {
	b, err := json.Marshal(qmpCommand{execute, args})
	return string(b), err
}

func parseQMP(execute, answer string) (json.RawMessage, error) {
	var a struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(answer), &a); err != nil {
		return nil, fmt.Errorf("answer of QEMU to %s: %w", execute, err)
	}
	switch {
	case a.Error != nil:
		return nil, &QMPError{Command: execute, Class: a.Error.Class, Desc: a.Error.Desc}
	case a.Return == nil:
		return nil, fmt.Errorf("answer of QEMU to %s has neither return nor error", execute)
	}
	return a.Return, nil
}

// duplicates are descriptors of our own. The binding takes os.File by value and calls Fd, which would turn
// the caller's pollable pipe or socket into a blocking one; a File made from a bare descriptor is left alone.
type duplicates []*os.File

func duplicate(files []*os.File) (duplicates, error) {
	if len(files) > maxMonitorFiles {
		return nil, fmt.Errorf("%d files in one command, at most %d", len(files), maxMonitorFiles)
	}
	dups := make(duplicates, 0, len(files))
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			dups.release()
			return nil, err
		}
		var fd int
		var errno error
		err = raw.Control(func(p uintptr) { fd, errno = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
		if err == nil {
			err = errno
		}
		if err != nil {
			dups.release()
			return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
		}
		dups = append(dups, os.NewFile(uintptr(fd), f.Name()))
	}
	return dups, nil
}

func (d duplicates) values() []os.File {
	v := make([]os.File, len(d))
	for i, f := range d {
		v[i] = *f // shares the descriptor with d[i], which the caller keeps until the call returned
	}
	return v
}

func (d duplicates) release() {
	for _, f := range d {
		_ = f.Close()
	}
}
