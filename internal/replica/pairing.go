package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// pending is a control connection that waits for its data connections.
type pending struct {
	protection UUID
	cert       []byte                  // of the dialer; nil in plain mode
	seals      *seals                  // of data connections without TLS beside a control connection with it; else nil
	tokens     []Token                 // the Welcome's, or the ticket of each data connection
	welcome    *Welcome                // for the data connections: without token
	came       chan *Conn              // room for all of them
	fail       context.CancelCauseFunc // ends the wait

	// Guarded by Listener.mu.
	missing int // data connections that have not claimed their place
	claimed [MaxStreams]bool
	gone    bool // nobody waits any more
}

// expect makes the token of welcome, which c is to be sent, or the tickets that
// come of it, good for its data connections.
func (l *Listener) expect(c *Conn, cert []byte, welcome Welcome, fail context.CancelCauseFunc) (*pending, error) {
	token := welcome.Token
	welcome.Channel, welcome.Token = DataChannel, Token{}
	n := int(welcome.Streams)
	p := &pending{protection: c.protection, cert: cert, tokens: []Token{token}, welcome: &welcome, came: make(chan *Conn, n), fail: fail, missing: n}
	if welcome.Capabilities&CapPlainPages != 0 {
		var err error
		if p.seals, err = newSeals(c.tls, token); err != nil {
			return nil, err
		}
		p.tokens = nil
		for i := range n {
			p.tokens = append(p.tokens, p.seals.ticket(i))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range p.tokens {
		l.pending[t] = p
	}
	return p, nil
}

// drop makes p's tokens worthless. l.mu is held.
func (l *Listener) drop(p *pending) {
	for _, t := range p.tokens {
		delete(l.pending, t)
	}
}

// theirs tells whether c, of a dialer with this certificate, is of the session
// whose token it brought.
func (p *pending) theirs(c *Conn, token Token, cert []byte) bool {
	if p.seals == nil {
		return p.protection == c.protection && slices.Equal(p.cert, cert)
	}
	return p.protection == c.protection && c.tls == nil && (c.stream >= len(p.tokens) || token == p.tokens[c.stream])
}

// collect waits for all data connections and returns them in their order.
func (p *pending) collect(ctx context.Context) ([]*Conn, error) {
	streams := make([]*Conn, p.welcome.Streams)
	for n := range streams {
		select {
		case c := <-p.came:
			streams[c.stream] = c
		case <-ctx.Done():
			for _, c := range streams {
				if c != nil {
					_ = c.Close()
				}
			}
			return nil, fmt.Errorf("%d of %d data connections came: %w", n, len(streams), context.Cause(ctx))
		}
	}
	return streams, nil
}

// forget ends the wait for p's data connections, and closes those that came late.
func (l *Listener) forget(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(p)
	p.gone = true
	for {
		select {
		case late := <-p.came:
			_ = late.Close()
		default:
			return
		}
	}
}

// claim gives c its place in the session that hello's token is of. Whoever has the
// token and no place, because it is another peer, or because the place is taken or
// was never granted, ends the session: it may know the token, or has lost count.
func (l *Listener) claim(c *Conn, hello *Hello, cert []byte) (*pending, *Refuse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pending[hello.Token]
	if p == nil {
		return nil, &Refuse{CodeToken, "the token of the data connection is unknown or used", "open a new session"}
	}
	var refusal *Refuse
	switch n := int(p.welcome.Streams); {
	case !p.theirs(c, hello.Token, cert):
		refusal = &Refuse{CodeToken, "the token of the data connection is not this peer's", "open a new session"}
	case c.stream >= n:
		refusal = &Refuse{CodeProtocol, fmt.Sprintf("data connection %d, of 0 to %d", c.stream, n-1), "open a new session"}
	case p.claimed[c.stream]:
		refusal = &Refuse{CodeProtocol, fmt.Sprintf("data connection %d is there already", c.stream), "open a new session"}
	}
	if refusal != nil {
		l.drop(p)
		p.fail(errors.New("the token was used wrongly: " + refusal.Reason))
		return nil, refusal
	}
	p.claimed[c.stream] = true
	if p.missing--; p.missing == 0 {
		l.drop(p) // a token works once for each of them
	}
	return p, nil
}

// serveData answers a data connection, and hands it to its control connection.
func (l *Listener) serveData(ctx context.Context, c *Conn, hello *Hello, cert []byte, known func()) error {
	p, refusal := l.claim(c, hello, cert)
	if refusal != nil {
		return l.refuse(ctx, c, Stamp{}, *refusal)
	}
	known() // as for the control connection, which has at most MaxStreams of these
	st := Stamp{Generation: p.welcome.Generation, Epoch: p.welcome.LastCommitted}
	if err := c.Send(ctx, st, p.welcome); err != nil {
		p.fail(fmt.Errorf("data connection %d: %w", c.stream, err))
		return err
	}
	if p.seals != nil {
		p.seals.put(c, true)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.gone {
		return errors.New("the control connection is gone")
	}
	p.came <- c // claimed once each: there is room
	return nil
}
