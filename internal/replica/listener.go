package replica

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Peer is what is known of a dialer besides its Hello.
type Peer struct {
	Addr       net.Addr
	Names      []string // of its certificate; nil in plain mode
	Protection UUID
	Generation uint64 // in the header of its Hello
}

// ListenerOptions configure a Listener. Admit is required.
type ListenerOptions struct {
	Transport Transport
	// Admit decides on a control connection: it returns a Welcome (Version,
	// Channel, Token and Streams are filled in) or a Refuse. ctx ends with the handshake
	// timeout. It is called from many goroutines. A Hello that wants a
	// generation older than Welcome.Generation is refused without further ado.
	Admit func(ctx context.Context, peer Peer, hello *Hello) (*Welcome, *Refuse)

	// Streams is how many data connections a session may have at most, 1 to
	// MaxStreams; 0: MaxStreams. The dialer says how many it wants.
	Streams          int
	HandshakeTimeout time.Duration // from accept to the last data connection; 0: DefaultHandshakeTimeout
	UserTimeout      time.Duration // TCP_USER_TIMEOUT; 0: DefaultUserTimeout
	MaxHandshakes    int           // 0: DefaultMaxHandshakes; more are closed at once
	Logger           *slog.Logger  // nil: none
}

// Listener accepts sessions.
type Listener struct {
	o     ListenerOptions
	tls   *tls.Config
	ln    net.Listener
	ready chan *Session

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	slots    chan struct{} // handshakes under way
	unpaired chan struct{} // control connections without a session yet

	mu      sync.Mutex
	pending map[Token]*pending
}

// Listen listens on addr (host:port).
func Listen(ctx context.Context, addr string, o ListenerOptions) (*Listener, error) {
	ln, err := tcpListen(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("listen for replication: %w", err)
	}
	l, err := NewListener(ln, o)
	if err != nil {
		_ = ln.Close()
	}
	return l, err
}

// NewListener serves ln, a TCP listener, and owns it unless it returns an error.
func NewListener(ln net.Listener, o ListenerOptions) (*Listener, error) {
	cfg, err := o.Transport.serverConfig()
	if err != nil {
		return nil, err
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.UserTimeout <= 0 {
		o.UserTimeout = DefaultUserTimeout
	}
	if o.Streams <= 0 || o.Streams > MaxStreams {
		o.Streams = MaxStreams
	}
	if o.MaxHandshakes <= 0 {
		o.MaxHandshakes = DefaultMaxHandshakes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Listener{
		o: o, tls: cfg, ln: ln, ready: make(chan *Session), pending: make(map[Token]*pending),
		slots: make(chan struct{}, o.MaxHandshakes), unpaired: make(chan struct{}, maxUnpaired),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(l.acceptLoop)
	return l, nil
}

// Addr returns the address listened on.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Close stops listening, breaks off handshakes, and waits for them. Accepted
// sessions live on. It is idempotent.
func (l *Listener) Close() error {
	l.cancel()
	err := l.ln.Close()
	l.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Accept returns the next session. A session that nobody accepts within the
// handshake timeout is closed. After Close it returns ErrClosed.
func (l *Listener) Accept(ctx context.Context) (*Session, error) {
	select {
	case s := <-l.ready:
		return s, nil
	case <-l.ctx.Done():
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *Listener) acceptLoop() {
	for {
		raw, err := l.ln.Accept()
		if l.ctx.Err() != nil {
			if err == nil {
				_ = raw.Close()
			}
			return
		}
		if err != nil { // out of descriptors, or a connection reset in the queue
			l.o.Logger.Warn("replication: accept failed, will try again", "error", err)
			select {
			case <-l.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case l.slots <- struct{}{}:
			l.wg.Go(func() { l.serve(raw) })
		default:
			l.o.Logger.Warn("replication: too many handshakes under way, connection closed", "peer", raw.RemoteAddr(), "max", l.o.MaxHandshakes)
			_ = raw.Close()
		}
	}
}

// serve runs one handshake; it holds one of the slots, for at most the
// handshake timeout.
func (l *Listener) serve(raw net.Conn) {
	release := sync.OnceFunc(func() { <-l.slots })
	defer release()
	ctx, cancel := context.WithTimeout(l.ctx, l.o.HandshakeTimeout)
	defer cancel()
	if err := l.handshake(ctx, raw, release); err != nil {
		_ = raw.Close()
		l.o.Logger.Warn("replication: handshake failed", "error", connError("handshake", raw.RemoteAddr().String(), err))
	}
}

// handshake reads the Hello and goes on as the connection's channel demands. On
// an error the caller closes raw.
func (l *Listener) handshake(ctx context.Context, raw net.Conn, release func()) error {
	if tcp, ok := raw.(*net.TCPConn); ok {
		if err := tune(tcp, l.o.UserTimeout); err != nil {
			return err
		}
	}
	stream, err := secure(ctx, raw, l.tls, true)
	if err != nil {
		return err
	}
	// Neither channel nor protection are known before the Hello; both channels allow it.
	c := newConn(raw, stream, DataChannel, UUID{})
	c.phase = expectHello
	f, err := c.Recv(ctx)
	if err != nil {
		return err
	}
	hello := f.Msg.(*Hello) // the phase allows nothing else
	c.phase, c.protection, c.channel, c.stream = established, f.Protection, hello.Channel, int(hello.Stream)
	peer := Peer{Addr: raw.RemoteAddr(), Protection: f.Protection, Generation: f.Generation}
	var cert []byte
	if t, ok := stream.(*tls.Conn); ok {
		cs := t.ConnectionState()
		peer.Names, cert = certNames(cs), cs.PeerCertificates[0].Raw
	}
	if hello.Channel == DataChannel {
		return l.serveData(ctx, c, hello, cert, release)
	}
	return l.serveControl(ctx, c, peer, hello, cert, release)
}

// refuse says why and returns it as an error.
func (l *Listener) refuse(ctx context.Context, c *Conn, st Stamp, r Refuse) error {
	_ = c.Send(ctx, st, &r) // the peer may be gone; the refusal stands
	return fmt.Errorf("refused (%s): %s", r.Code, r.Reason)
}

func (l *Listener) serveControl(ctx context.Context, c *Conn, peer Peer, hello *Hello, cert []byte, release func()) error {
	version, err := negotiate(hello.VersionMin, hello.VersionMax)
	if err != nil {
		return l.refuse(ctx, c, Stamp{}, Refuse{CodeVersion, err.Error(), "install the same release of virt-ft on both hosts"})
	}
	select {
	case l.unpaired <- struct{}{}:
		defer func() { <-l.unpaired }()
	default:
		return l.refuse(ctx, c, Stamp{}, Refuse{CodeBusy, "too many sessions are being set up", "try again"})
	}
	answer, refusal := l.o.Admit(ctx, peer, hello)
	if refusal != nil || answer == nil {
		if refusal == nil {
			refusal = &Refuse{Code: CodeInternal, Reason: "no answer"}
		}
		return l.refuse(ctx, c, Stamp{}, *refusal)
	}
	welcome := *answer
	st := Stamp{Generation: welcome.Generation, Epoch: welcome.LastCommitted}
	if hello.Role == RoleAsking {
		welcome.Version, welcome.Channel = version, ControlChannel
		return errors.Join(c.Send(ctx, st, &welcome), c.Close())
	}
	if err := CheckGeneration(welcome.Generation, hello.WantGeneration); err != nil {
		return l.refuse(ctx, c, st, Refuse{CodeGeneration, err.Error(), "stand down; the host with the newest generation runs the guest"})
	}
	welcome.Version, welcome.Channel = version, ControlChannel
	welcome.Streams = min(max(hello.Streams, 1), uint8(l.o.Streams))
	_, _ = rand.Read(welcome.Token[:]) // never fails
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	p := l.expect(c.protection, cert, welcome, fail)
	defer l.forget(welcome.Token, p)
	release() // before the dialer can go on: what there is from here on is bounded by unpaired
	if err := c.Send(ctx, st, &welcome); err != nil {
		return err
	}
	streams, err := p.collect(ctx)
	if err != nil {
		return err
	}
	s := newSession(c, streams, version, hello, &welcome, peer.Generation)
	select {
	case l.ready <- s:
		return nil
	case <-ctx.Done():
		_ = s.Close()
		return fmt.Errorf("nobody accepted the session: %w", context.Cause(ctx))
	}
}
