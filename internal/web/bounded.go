package web

import (
	"net"
	"sync"
)

// bounded is a listener that accepts no more than so many connections at once.
type bounded struct {
	net.Listener
	free   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newBounded(ln net.Listener, most int) *bounded {
	return &bounded{Listener: ln, free: make(chan struct{}, most), closed: make(chan struct{})}
}

// Accept waits for its turn first.
func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.free <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.free
		return nil, err
	}
	return &boundedConn{Conn: c, done: sync.OnceFunc(func() { <-b.free })}, nil
}

// Close ends a waiting Accept, too.
func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

type boundedConn struct {
	net.Conn
	done func()
}

// Close makes room for the next.
func (c *boundedConn) Close() error {
	err := c.Conn.Close()
	c.done()
	return err
}
