package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	defaultConnsMax     = 64
	defaultNegotiateMax = 10 * time.Second
	acceptPause         = 50 * time.Millisecond // after a failure, such as no descriptor left
)

// Why a connection ended, if not by its client.
var (
	ErrDropped = errors.New("the connection was dropped")
	ErrClosed  = errors.New("the server was closed")
	ErrRemoved = errors.New("the export was removed")
	ErrStuck   = errors.New("a request took too long")
)

// What Connected finds.
var (
	ErrHungUp = errors.New("its connection was closed")
	ErrUnused = errors.New("nobody is connected")
)

// Options of a server. The zero value is usable.
type Options struct {
	Log *slog.Logger
	// Closed is called when a connection that had chosen an export has ended, by
	// the connection's goroutine and after its last call of the backend. err is
	// nil if the client said goodbye (NBD_CMD_DISC), and wraps one of this
	// package's errors if we ended it. Closed may call any method but Close.
	Closed func(export string, err error)
	// Guard watches over every connection, if there is one.
	Guard *Guard
	// ConnsMax bounds the connections at a time; 0: 64. It is at most 256.
	ConnsMax int
	// NegotiateMax bounds the time until a client has chosen an export; 0: 10 s.
	NegotiateMax time.Duration
}

// Server offers exports on any number of listeners. Its methods may be called
// concurrently.
type Server struct {
	o     Options
	pool  pool
	epoch time.Time // of conn.busySince

	mu        sync.Mutex
	exports   map[string]*export
	conns     map[*conn]bool
	listeners map[net.Listener]bool
	closed    bool

	closing chan struct{}
	running sync.WaitGroup // connections, and Serve
}

// export is what Add was given.
type export struct {
	name    string
	size    int64
	backend Backend
	extents Extents // nil if it does not know

	// mu is held during each call of the backend.
	mu   sync.Mutex
	gone bool // never call it again
}

// NewServer returns a server that offers nothing yet.
func NewServer(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ConnsMax <= 0 {
		o.ConnsMax = defaultConnsMax
	}
	o.ConnsMax = min(o.ConnsMax, guardConnsMax)
	if o.NegotiateMax <= 0 {
		o.NegotiateMax = defaultNegotiateMax
	}
	return &Server{
		o:         o,
		epoch:     time.Now(),
		exports:   map[string]*export{},
		conns:     map[*conn]bool{},
		listeners: map[net.Listener]bool{},
		closing:   make(chan struct{}),
	}
}

// Add offers b under a name: 1 to 4096 bytes of UTF-8. From now on b may be
// called, until Remove or Close has returned.
func (s *Server) Add(name string, b Backend) error {
	size := b.SizeBytes()
	if name == "" || len(name) > nameBytesMax || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return fmt.Errorf("nbd: %.64q cannot be the name of an export: it takes 1 to %d bytes of UTF-8", name, nameBytesMax)
	}
	if size < 0 {
		return fmt.Errorf("nbd: export %s: a size of %d bytes", name, size)
	}
	e := &export{name: name, size: size, backend: b}
	e.extents, _ = b.(Extents)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return fmt.Errorf("nbd: export %s: %w", name, ErrClosed)
	case s.exports[name] != nil:
		return fmt.Errorf("nbd: export %s is there already", name)
	case len(s.exports) >= exportsMax:
		return fmt.Errorf("nbd: export %s: there are %d, which is the most", name, exportsMax)
	}
	s.exports[name] = e
	return nil
}

// Remove drops the connections of an export. When it returns, the backend will
// not be called any more; so a backend must not call it. Without such an export
// it does nothing.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	e := s.exports[name]
	delete(s.exports, name)
	for c := range s.conns {
		if e != nil && c.export == e {
			c.drop(ErrRemoved)
		}
	}
	s.mu.Unlock()
	if e != nil {
		e.retire()
	}
}

// retire waits for the call of the backend that is under way.
func (e *export) retire() {
	e.mu.Lock()
	e.gone = true
	e.mu.Unlock()
}

// Drop ends all connections at once, without waiting for their goroutines. New
// ones are accepted.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.drop(ErrDropped)
	}
}

// Serve accepts connections from ln, which it owns, until Close is called or
// accepting fails for good. It may be called for several listeners.
func (s *Server) Serve(ln net.Listener) error {
	defer ln.Close()
	if err := s.begin(ln); err != nil {
		return err
	}
	defer s.running.Done()
	defer s.end(ln)
	if err := s.o.Guard.listen(ln); err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	defer s.o.Guard.forgetListener(ln)
	for {
		nc, err := ln.Accept()
		if err == nil {
			s.accept(nc)
			continue
		}
		select {
		case <-s.closing:
			return nil
		default:
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("nbd: accept: %w", err)
		}
		s.o.Log.Warn("nbd: a connection was not accepted", "err", err)
		select {
		case <-s.closing:
			return nil
		case <-time.After(acceptPause):
		}
	}
}

func (s *Server) begin(ln net.Listener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("nbd: %w", ErrClosed)
	}
	s.listeners[ln] = true
	s.running.Add(1)
	return nil
}

func (s *Server) end(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
}

// accept starts the goroutine of a connection, or closes it.
func (s *Server) accept(nc net.Conn) {
	c := newConn(s, nc)
	if err := s.admit(c); err != nil {
		s.o.Log.Warn("nbd: a connection was refused", "err", err)
		nc.Close()
		return
	}
	go func() {
		defer s.running.Done()
		c.run()
	}()
}

func (s *Server) admit(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if len(s.conns) >= s.o.ConnsMax {
		return fmt.Errorf("there are %d, which is the most", s.o.ConnsMax)
	}
	if err := s.o.Guard.watch(c); err != nil {
		return err
	}
	s.conns[c] = true
	s.running.Add(1)
	return nil
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.o.Guard.unwatch(c)
}

// choose makes a connection use an export; nil if there is none of that name.
func (s *Server) choose(c *conn, name string) *export {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.export = s.exports[name]
	return c.export
}

// lookup returns an export, or nil.
func (s *Server) lookup(name string) *export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exports[name]
}

// names returns the exports there are, sorted.
func (s *Server) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.exports))
}

// Close stops serving, drops all connections and waits until no goroutine of
// the server is left. It may be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	for ln := range s.listeners {
		ln.Close()
	}
	for c := range s.conns {
		c.drop(ErrClosed)
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// call performs fn, a call of the backend, for a connection.
func (e *export) call(c *conn, fn func(context.Context, Backend) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return context.Canceled
	}
	return fn(c.ctx, e.backend)
}
