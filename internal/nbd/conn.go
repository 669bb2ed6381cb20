package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// errGoodbye is how a connection ends that its client ended in order.
var errGoodbye = errors.New("the client said goodbye")

// conn is one connection. Everything but drop belongs to its goroutine.
type conn struct {
	s    *Server
	nc   net.Conn
	wire wire

	ctx    context.Context // of the backend's calls; its cause is why we dropped
	cancel context.CancelCauseFunc
	ending sync.Once

	// busySince is when the call of the backend began that is under way, in
	// nanoseconds since Server.epoch, plus one; 0 between calls.
	busySince atomic.Int64

	export     *export // chosen; set under Server.mu
	noZeroes   bool    // negotiated
	fixed      bool
	structured bool
	statusOf   *export // whose base:allocation was asked for; nil: none
	complained bool    // a failure of the backend was logged
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc}
	c.wire.init(nc, &s.pool)
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c
}

// drop ends the connection from outside. It does not wait.
func (c *conn) drop(why error) {
	c.cancel(why)
	c.shut()
}

// shut closes the socket. A guard holds a duplicate, so closing alone would not
// tell the client.
func (c *conn) shut() {
	c.ending.Do(func() {
		if half, ok := c.nc.(interface {
			CloseRead() error
			CloseWrite() error
		}); ok {
			_ = half.CloseWrite() // fails if the client was faster
			_ = half.CloseRead()
		}
		_ = c.nc.Close()
	})
}

// run serves the connection to its end.
func (c *conn) run() {
	err := c.serve()
	if cause := context.Cause(c.ctx); cause != nil {
		err = cause
	}
	c.drop(err) // whatever the backend still does with ctx
	c.wire.close()
	c.s.forget(c)
	switch e := c.export; {
	case e == nil && errors.Is(err, errGoodbye):
	case e == nil:
		c.s.o.Log.Debug("nbd: a connection ended before it chose an export", "err", err)
	default:
		if errors.Is(err, errGoodbye) {
			err = nil
		} else {
			err = fmt.Errorf("nbd: export %s: %w", e.name, err)
		}
		if c.s.o.Closed != nil {
			c.s.o.Closed(e.name, err)
		}
	}
}

func (c *conn) serve() error {
	if err := c.nc.SetDeadline(time.Now().Add(c.s.o.NegotiateMax)); err != nil {
		return err
	}
	if err := c.negotiate(); err != nil {
		return err
	}
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	for {
		if err := c.handle(); err != nil {
			return err
		}
	}
}

// gone says in words that a client went away without a goodbye.
func gone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the client closed the connection without a goodbye: %w", err)
	}
	return err
}

// call performs fn on the chosen export's backend.
func (c *conn) call(fn func(context.Context, Backend) error) error {
	c.busySince.Store(int64(time.Since(c.s.epoch)) + 1)
	err := c.export.call(c, fn)
	c.busySince.Store(0)
	if err != nil && !c.complained && c.ctx.Err() == nil {
		c.complained = true
		c.s.o.Log.Warn("nbd: a request failed and the client was told; further ones of this connection are not logged",
			"export", c.export.name, "err", err)
	}
	return err
}

// busy returns how long the call of the backend has taken that is under way.
func (c *conn) busy() time.Duration {
	since := c.busySince.Load()
	if since == 0 {
		return 0
	}
	return time.Since(c.s.epoch) - time.Duration(since-1)
}
