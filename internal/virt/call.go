package virt

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"libvirt.org/go/libvirt"
)

// flight is a call that cannot be interrupted. Exactly one of the two sides wins settled: the worker, then the
// caller takes the result; or the caller whose context ended, then the worker disposes of the result.
type flight[T any] struct {
	settled atomic.Bool
	done    chan outcome[T]
}

type outcome[T any] struct {
	value T
	err   error
}

// fly runs fn on a goroutine of its own. When ctx ends first it returns ErrOutcomeUnknown, and undo (may be
// nil) gets what a later success of fn produced.
func fly[T any](ctx context.Context, fn func() (T, error), undo func(T)) (T, error) {
	f := &flight[T]{done: make(chan outcome[T], 1)}
	go func() {
		v, err := fn()
		if f.settled.CompareAndSwap(false, true) {
			f.done <- outcome[T]{v, err}
		} else if err == nil && undo != nil {
			undo(v)
		}
	}()
	select {
	case o := <-f.done:
		return o.value, o.err
	case <-ctx.Done():
	}
	if f.settled.CompareAndSwap(false, true) {
		var zero T
		return zero, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
	}
	o := <-f.done
	return o.value, o.err
}

// call runs fn with the current connection and wraps its error. fn runs to its end even when ctx ends; the
// connection is not closed before.
func call[T any](ctx context.Context, c *Conn, op, domain string, fn func(*link) (T, error), undo func(*link, T)) (T, error) {
	var zero T
	l, err := c.acquire(ctx)
	if err != nil {
		return zero, &CallError{op, domain, err}
	}
	v, err := fly(ctx, func() (T, error) {
		defer c.release(l)
		v, err := fn(l)
		if err != nil {
			err = classify(err, l.alive)
			if !l.alive() {
				c.lost(l) // do not wait for the event loop to notice
			}
		}
		return v, err
	}, func(v T) {
		if undo != nil {
			undo(l, v)
		}
	})
	if err != nil {
		return v, &CallError{op, domain, err}
	}
	return v, nil
}

// onDomain runs fn with the domain's handle on the current connection.
func onDomain[T any](ctx context.Context, d *Domain, op string, fn func(*libvirt.Domain) (T, error)) (T, error) {
	return call(ctx, d.conn, op, d.name, func(l *link) (T, error) {
		var zero T
		h, free, err := l.handle(d.uuid)
		if err != nil {
			return zero, err
		}
		defer free()
		v, err := fn(h)
		var e libvirt.Error
		if errors.As(err, &e) && e.Code == libvirt.ERR_OPERATION_INVALID { // of many reasons, tell the common one
			if active, activeErr := h.IsActive(); activeErr == nil && !active {
				return v, fmt.Errorf("%w: %w", ErrNotRunning, &libvirtError{e})
			}
		}
		return v, err
	}, nil)
}

// do is onDomain without a result.
func do(ctx context.Context, d *Domain, op string, fn func(*libvirt.Domain) error) error {
	_, err := onDomain(ctx, d, op, func(h *libvirt.Domain) (struct{}, error) { return struct{}{}, fn(h) })
	return err
}
