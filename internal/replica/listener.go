package replica

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/pki"
)

// Peer is what is known of a dialer besides its Hello.
type Peer struct {
	Addr       net.Addr
	Names      []string // of its certificate, which vouches for the Hello's host; nil in plain mode
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
	// Answer answers questions of a daemon that only asks and was admitted; nil: none
	// are answered. ctx ends with the connection's time, or with the Listener. It
	// may be called from a few goroutines at a time.
	Answer func(ctx context.Context, peer Peer, hello *Hello, question []byte) ([]byte, error)

	// Streams is how many data connections a session may have at most, 1 to
	// MaxStreams; 0: MaxStreams. The dialer says how many it wants.
	Streams          int
	HandshakeTimeout time.Duration // from accept to the last data connection; 0: DefaultHandshakeTimeout
	UserTimeout      time.Duration // TCP_USER_TIMEOUT; 0: DefaultUserTimeout
	MaxHandshakes    int           // 0: DefaultMaxHandshakes; a quarter of them from one address; see strangers
	Refused          func()        // told of each connection that came to nothing; nil: nobody is
	Logger           *slog.Logger  // nil: none
}

// Listener accepts sessions.
type Listener struct {
	o     ListenerOptions
	keys  *keyring
	ln    net.Listener
	ready chan *Session

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	wg         sync.WaitGroup
	strangers  *strangers
	unpaired   chan struct{} // control connections without a session yet
	asks       rates
	complaints *complaints
	askers     chan struct{} // connections on which questions are answered

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
	keys, err := newKeyring(o.Transport, o.Logger)
	if err != nil {
		return nil, err
	}
	l := &Listener{
		o: o, keys: keys, ln: ln, ready: make(chan *Session), pending: make(map[Token]*pending),
		strangers:  &strangers{max: o.MaxHandshakes, perAddress: max(o.MaxHandshakes/addressShare, 1)},
		unpaired:   make(chan struct{}, maxUnpaired),
		askers:     make(chan struct{}, maxAskers),
		asks:       rates{perSecond: asksPerSecond, burst: asksBurst, of: map[string]*bucket{}},
		complaints: newComplaints(o.Logger),
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
		// A handshake's context, which it has to itself: it may have to give way.
		ctx, end := context.WithCancelCause(l.ctx)
		x, err := l.strangers.enter(raw.RemoteAddr(), time.Now(), end)
		if err != nil {
			end(nil)
			l.refused()
			l.complaints.warn("replication: connection closed", raw.RemoteAddr(), err)
			_ = raw.Close()
			continue
		}
		l.wg.Go(func() {
			defer end(nil)
			l.serve(ctx, raw, func() { l.strangers.gone(x) })
		})
	}
}

// serve runs one handshake, for at most the handshake timeout. It counts as a
// stranger's until known is called, and no longer than it lasts.
func (l *Listener) serve(ctx context.Context, raw net.Conn, known func()) {
	defer known()
	bounded, cancel := context.WithTimeout(ctx, l.o.HandshakeTimeout)
	defer cancel()
	if err := l.handshake(bounded, raw, known); err != nil {
		_ = raw.Close()
		if cause := context.Cause(ctx); errors.Is(cause, errGaveWay) {
			err = cause
		}
		l.refused()
		l.complaints.warn("replication: handshake failed", raw.RemoteAddr(), err)
	}
}

// handshake reads the Hello and goes on as the connection's channel demands. On
// an error the caller closes raw.
func (l *Listener) handshake(ctx context.Context, raw net.Conn, known func()) error {
	if tcp, ok := raw.(*net.TCPConn); ok {
		if err := tune(tcp, l.o.UserTimeout); err != nil {
			return err
		}
	}
	stream, err := l.secure(ctx, raw)
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
	if c.tls != nil {
		leaf := c.tls.ConnectionState().PeerCertificates[0]
		peer.Names, cert = pki.Names(leaf), leaf.Raw
		if err := l.o.Transport.identify(peer.Names, hello.Host); err != nil {
			return l.refuseName(ctx, c, err)
		}
	}
	if hello.Channel == DataChannel {
		return l.serveData(ctx, c, hello, cert, known)
	}
	if c.tls == nil && l.keys.t.Mode == ModeTLS {
		return l.refuse(ctx, c, Stamp{}, Refuse{CodePolicy, "a control connection without TLS", "set the same transport on both hosts"})
	}
	return l.serveControl(ctx, c, peer, hello, cert, known)
}

// refuseName tells a dialer whose certificate is good why it is not let in all the same.
func (l *Listener) refuseName(ctx context.Context, c *Conn, err error) error {
	r := Refuse{Code: CodePolicy, Reason: err.Error()}
	var name *NameError
	if errors.As(err, &name) {
		r.Reason, r.Remedy = fmt.Sprintf("the certificate is made out to %s, %s", quoted(name.Names), name.Why), "on the refusing host: "+name.Remedy
	}
	_ = c.Send(ctx, Stamp{}, &r) // the peer may be gone; the refusal stands
	return err
}

// secure runs the TLS handshake. Where pages may come in plain, what begins as a
// message of ours does is a data connection that does without.
func (l *Listener) secure(ctx context.Context, raw net.Conn) (net.Conn, error) {
	if l.o.Transport.plainPages() {
		first, err := peek(ctx, raw)
		if err != nil {
			return nil, err
		}
		if first == magic>>24 {
			return raw, nil
		}
	}
	return secure(ctx, raw, l.keys.config(), true)
}

// refused tells whoever counts.
func (l *Listener) refused() {
	if l.o.Refused != nil {
		l.o.Refused()
	}
}

// refuse says why and returns it as an error.
func (l *Listener) refuse(ctx context.Context, c *Conn, st Stamp, r Refuse) error {
	_ = c.Send(ctx, st, &r) // the peer may be gone; the refusal stands
	return &refusalError{r}
}

// refusalError is that this host refused, where it is noted here.
type refusalError struct{ Refuse }

func (e *refusalError) Error() string { return fmt.Sprintf("refused (%s): %s", e.Code, e.Reason) }

func (l *Listener) serveControl(ctx context.Context, c *Conn, peer Peer, hello *Hello, cert []byte, known func()) error {
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
	if peer.Names != nil {
		known() // from here on it is bounded by unpaired
	}
	if hello.Role == RoleAsking && !l.asks.take(hello.Host, time.Now()) {
		return l.refuse(ctx, c, Stamp{}, Refuse{CodeBusy, "too many questions", "try again"})
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
		if hello.Capabilities&CapQuestions != 0 && l.o.Answer != nil {
			return l.serveQuestions(ctx, c, peer, hello, st, welcome, known)
		}
		return errors.Join(c.Send(ctx, st, &welcome), c.Close())
	}
	if err := CheckGeneration(welcome.Generation, hello.WantGeneration); err != nil {
		return l.refuse(ctx, c, st, Refuse{CodeGeneration, err.Error(), "stand down; the host with the newest generation runs the guest"})
	}
	welcome.Version, welcome.Channel = version, ControlChannel
	if l.o.Transport.plainPages() {
		welcome.Capabilities |= hello.Capabilities & CapPlainPages
	}
	welcome.Streams = min(max(hello.Streams, 1), uint8(l.o.Streams))
	_, _ = rand.Read(welcome.Token[:]) // never fails
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	p, err := l.expect(c, cert, welcome, fail)
	if err != nil {
		return err
	}
	defer l.forget(p)
	known() // before the dialer can go on, in plain mode, too
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
