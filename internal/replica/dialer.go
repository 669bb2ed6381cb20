package replica

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/virt-ft/virt-ft/internal/pki"
)

// Dialer opens sessions. Its zero value dials with DefaultTransport.
type Dialer struct {
	Transport        Transport
	HandshakeTimeout time.Duration // for the whole of Dial; 0: DefaultHandshakeTimeout
	UserTimeout      time.Duration // TCP_USER_TIMEOUT; 0: DefaultUserTimeout
}

// Dial opens the connections of protection to addr (host:port): one for control,
// and as many for data as hello.Streams says, at most MaxStreams, and the listener
// grants. generation is the sender's own, for the headers; versions, channel, token
// and stream of hello are filled in. Errors are *RefusedError, or *ConnError: a host that answers but
// has no daemon is ErrPeerClosed, one that does not answer ErrPeerSilent; its
// cause may be a *TransportError that names a file and a remedy.
func (d *Dialer) Dial(ctx context.Context, addr string, protection UUID, generation uint64, hello Hello) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, d.handshakeTimeout())
	defer cancel()
	if protection == (UUID{}) {
		return nil, &ConnError{Op: "dial", Peer: addr, Err: fmt.Errorf("the zero protection id is invalid")}
	}
	cfg, err := d.configFor(addr)
	if err != nil {
		return nil, err
	}
	hello.VersionMin, hello.VersionMax = VersionMin, VersionMax
	if hello.Capabilities &^= CapPlainPages; d.Transport.plainPages() {
		hello.Capabilities |= CapPlainPages
	}
	hello.Channel, hello.Token, hello.Stream = ControlChannel, Token{}, 0
	hello.Streams = min(max(hello.Streams, 1), MaxStreams)
	st := Stamp{Generation: generation}

	control, f, err := d.greet(ctx, addr, cfg, protection, st, &hello)
	if err != nil {
		return nil, err
	}
	welcome := f.Msg.(*Welcome)
	streams, err := d.openStreams(ctx, addr, cfg, control, st, hello, welcome)
	if err != nil {
		_ = control.Close()
		return nil, err
	}
	return newSession(control, streams, welcome.Version, &hello, welcome, f.Generation), nil
}

func (d *Dialer) handshakeTimeout() time.Duration {
	if d.HandshakeTimeout <= 0 {
		return DefaultHandshakeTimeout
	}
	return d.HandshakeTimeout
}

// configFor returns how connections to addr are secured.
func (d *Dialer) configFor(addr string) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &ConnError{Op: "dial", Peer: addr, Err: err}
	}
	cfg, err := d.Transport.clientConfig(host)
	if err != nil {
		return nil, &ConnError{Op: "dial", Peer: addr, Err: err}
	}
	return cfg, nil
}

// Ask returns what the daemon at addr has of hello.Domain: the state, the
// generation and the name of the host in a Welcome. No session begins. Errors are those of Dial; one
// that cannot tell now refuses with CodeBusy.
func (d *Dialer) Ask(ctx context.Context, addr string, protection UUID, hello Hello) (*Welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, d.handshakeTimeout())
	defer cancel()
	cfg, err := d.configFor(addr)
	if err != nil {
		return nil, err
	}
	hello.VersionMin, hello.VersionMax = VersionMin, VersionMax
	hello.Channel, hello.Role, hello.Streams = ControlChannel, RoleAsking, 1
	c, f, err := d.greet(ctx, addr, cfg, protection, Stamp{}, &hello)
	if err != nil {
		return nil, err
	}
	return f.Msg.(*Welcome), c.Close()
}

// openStreams opens the data connections that welcome grants. One after the other,
// so that a dialer takes one of the listener's handshakes at a time: hosts that
// set up many protections at once would else turn each other away.
func (d *Dialer) openStreams(ctx context.Context, addr string, cfg *tls.Config, control *Conn, st Stamp, hello Hello, welcome *Welcome) ([]*Conn, error) {
	hello.Channel, hello.Token = DataChannel, welcome.Token
	var streams []*Conn
	var plain *seals
	if welcome.Capabilities&hello.Capabilities&CapPlainPages != 0 {
		var err error
		if plain, err = newSeals(control.tls, welcome.Token); err != nil {
			return nil, &ConnError{Op: "handshake", Peer: addr, Err: err}
		}
		cfg = nil
	}
	fail := func(err error) ([]*Conn, error) {
		for _, c := range streams {
			_ = c.Close()
		}
		return nil, err
	}
	for i := range welcome.Streams {
		if hello.Stream = i; plain != nil {
			hello.Token = plain.ticket(int(i))
		}
		c, f, err := d.greet(ctx, addr, cfg, control.protection, st, &hello)
		if err != nil {
			return fail(err)
		}
		if plain != nil {
			plain.put(c, false)
		}
		streams = append(streams, c)
		if w := f.Msg.(*Welcome); w.Version != welcome.Version || w.Streams != welcome.Streams {
			return fail(&ConnError{Op: "handshake", Peer: addr, Kind: ErrMalformed, Err: fmt.Errorf("version %d and %d streams on data connection %d, version %d and %d streams on the control connection",
				w.Version, w.Streams, i, welcome.Version, welcome.Streams)})
		}
	}
	return streams, nil
}

// greet opens one connection and exchanges hello for a Welcome.
func (d *Dialer) greet(ctx context.Context, addr string, cfg *tls.Config, protection UUID, st Stamp, hello *Hello) (*Conn, Frame, error) {
	raw, err := tcpDialer().DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, Frame{}, connError("dial", addr, err)
	}
	c, f, err := d.greetOver(ctx, raw, cfg, protection, st, hello)
	if err != nil {
		_ = raw.Close()
		if _, refused := err.(*RefusedError); refused {
			return nil, Frame{}, err
		}
		return nil, Frame{}, connError("handshake", addr, err)
	}
	return c, f, nil
}

func (d *Dialer) greetOver(ctx context.Context, raw net.Conn, cfg *tls.Config, protection UUID, st Stamp, hello *Hello) (*Conn, Frame, error) {
	userTimeout := d.UserTimeout
	if userTimeout <= 0 {
		userTimeout = DefaultUserTimeout
	}
	if err := tune(raw.(*net.TCPConn), userTimeout); err != nil {
		return nil, Frame{}, err
	}
	stream, err := secure(ctx, raw, cfg, false)
	if err != nil {
		return nil, Frame{}, err
	}
	c := newConn(raw, stream, hello.Channel, protection)
	c.phase, c.stream = expectAnswer, int(hello.Stream)
	if err := c.Send(ctx, st, hello); err != nil {
		return nil, Frame{}, err
	}
	f, err := c.Recv(ctx)
	if err != nil {
		if remedy := tlsRemedy(err); c.tls != nil && remedy != "" { // TLS 1.3: the listener judges after we are through
			err = &TransportError{Err: err, Remedy: remedy}
		}
		return nil, Frame{}, err
	}
	if r, ok := f.Msg.(*Refuse); ok {
		return nil, Frame{}, &RefusedError{Refuse: *r, Generation: f.Generation}
	}
	c.phase = established
	w := f.Msg.(*Welcome) // the phase allows nothing else
	if c.tls != nil {
		if err := d.Transport.identifyListener(pki.Names(c.tls.ConnectionState().PeerCertificates[0]), w.Host); err != nil {
			return nil, Frame{}, &TransportError{Err: err}
		}
	}
	switch {
	case w.Channel != hello.Channel:
		return nil, Frame{}, &FormatError{Type: TypeWelcome, Field: "channel", Offset: 1, Reason: "is not the one asked for"}
	case w.Version < VersionMin || w.Version > VersionMax:
		return nil, Frame{}, &FormatError{Type: TypeWelcome, Field: "version", Reason: "was not offered"}
	case hello.Role == RoleAsking:
		return c, f, nil
	case hello.Channel == ControlChannel && w.Token == Token{}:
		return nil, Frame{}, &FormatError{Type: TypeWelcome, Field: "token", Offset: 11, Reason: "zero is invalid"}
	case w.Streams == 0 || w.Streams > hello.Streams:
		return nil, Frame{}, &FormatError{Type: TypeWelcome, Field: "streams", Reason: fmt.Sprintf("%d are granted, %d were asked for", w.Streams, hello.Streams)}
	}
	return c, f, nil
}
