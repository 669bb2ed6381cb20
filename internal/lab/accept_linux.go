package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// ClientOptions shape a client of the guest's acceptance service. Zero values
// mean the default in brackets.
type ClientOptions struct {
	ID       uint32        // distinguishes the sessions of clients of one guest
	Seed     uint64        // of nonces and jitter
	TCP, UDP int           // sessions; each has one request outstanding at most
	IPv6     bool          // every other session goes over IPv6, link-local
	Pace     time.Duration // from an answer to the session's next request
	Jitter   time.Duration // added to Pace, from none of it to all
	Resend   time.Duration // a UDP request is sent again after [100ms]
	// AnswerMax is how long a session waits for an answer before it gives up [60s].
	AnswerMax time.Duration
}

const (
	clientSessionsMax = guestapi.AcceptSessionsMax
	// clientResetsMax is how often a session connects anew before it gives up.
	clientResetsMax = 16
	// guestLinkLocal is the address that the kernel derives from guestMAC.
	guestLinkLocal = "fe80::5054:ff:fef7:a"
)

// Client puts numbered requests to the guest from behind the switch, as the
// world outside does, and judges the answers by what it was told before: see
// Journal. Its methods may be called concurrently.
type Client struct {
	*Journal
	lab *Lab
	o   ClientOptions

	cancel   context.CancelFunc
	done     sync.WaitGroup
	sessions []uint64
	// quiet is held shared by a session from request to answer.
	quiet sync.RWMutex
}

// StartClient starts a client. TCP sessions connect before it returns, and keep
// their connection for good: one that ends is a reset. End it with Stop.
func (l *Lab) StartClient(ctx context.Context, o ClientOptions) (*Client, error) {
	if o.TCP < 0 || o.UDP < 0 || o.TCP+o.UDP < 1 || o.TCP+o.UDP > clientSessionsMax {
		return nil, fmt.Errorf("lab: a client with %d TCP and %d UDP sessions", o.TCP, o.UDP)
	}
	if o.Resend == 0 {
		o.Resend = 100 * time.Millisecond
	}
	if o.AnswerMax == 0 {
		o.AnswerMax = time.Minute
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &Client{Journal: NewJournal(), lab: l, o: o, cancel: cancel}
	for i := range o.TCP + o.UDP {
		s := &session{c: c, id: uint64(o.ID)<<16 | uint64(i+1), network: "tcp", v6: o.IPv6 && i%2 == 1}
		if i >= o.TCP {
			s.network = "udp"
		}
		s.rng = rand.New(rand.NewPCG(o.Seed, s.id))
		var err error
		if s.conn, err = c.dial(ctx, s.network, s.v6); err != nil {
			c.Stop()
			return nil, fmt.Errorf("lab: session %d: %w", i, err)
		}
		c.sessions = append(c.sessions, s.id)
		c.done.Go(func() { s.run(running) })
	}
	return c, nil
}

// dial connects to the acceptance service.
func (c *Client) dial(ctx context.Context, network string, v6 bool) (net.Conn, error) {
	host := GuestAddr
	if v6 {
		link, err := c.lab.net.nl.LinkByName(clientBridge)
		if err != nil {
			return nil, err
		}
		// By number: names of interfaces are cached by the net package, for all
		// namespaces in one.
		host = guestLinkLocal + "%" + strconv.Itoa(link.Attrs().Index)
	}
	return c.lab.Dial(ctx, network, net.JoinHostPort(host, strconv.Itoa(guestapi.AcceptPort)))
}

// Stop ends the sessions, those at once that wait for an answer.
func (c *Client) Stop() {
	c.cancel()
	c.done.Wait()
}

// Quiet runs f while no request is under way: it waits for the answers, or for
// sessions to give up, and the sessions go on afterwards. f must not call Check.
func (c *Client) Quiet(f func() error) error {
	c.quiet.Lock()
	defer c.quiet.Unlock()
	return f()
}

// Check waits until every request that is under way is answered, asks the guest
// for all sessions' states and returns the verdict so far. The sessions go on
// afterwards. It fails if the guest cannot be asked.
func (c *Client) Check(ctx context.Context) (Verdict, error) {
	c.quiet.Lock()
	defer c.quiet.Unlock()
	conn, err := c.dial(ctx, "tcp", false)
	if err != nil {
		return c.Verdict(), fmt.Errorf("lab: asking for states: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	in := make([]byte, guestapi.AnswerBytes)
	for _, id := range c.sessions {
		_, err := conn.Write(guestapi.Request{Op: guestapi.OpQuery, Session: id}.Append(nil))
		if err == nil {
			_, err = io.ReadFull(conn, in)
		}
		var a guestapi.Answer
		if err == nil {
			a, err = guestapi.ParseAnswer(in)
		}
		if err == nil && a.Session != id {
			err = fmt.Errorf("session %#x was asked for, %#x answered", id, a.Session)
		}
		if err != nil {
			return c.Verdict(), fmt.Errorf("lab: asking for states: %w", errors.Join(ctx.Err(), err))
		}
		c.State(a)
	}
	return c.Verdict(), nil
}

// session is one numbered sequence of requests.
type session struct {
	c       *Client
	id      uint64
	network string
	v6      bool
	rng     *rand.Rand
	conn    net.Conn
	resets  int
}

// run puts one request after the other until ctx ends or the session cannot go
// on, which the journal then says.
func (s *session) run(ctx context.Context) {
	defer func() { s.conn.Close() }()
	for {
		pause := s.c.o.Pace
		if s.c.o.Jitter > 0 {
			pause += time.Duration(s.rng.Int64N(int64(s.c.o.Jitter)))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if !s.step(ctx) {
			return
		}
	}
}

func (s *session) step(ctx context.Context) bool {
	s.c.quiet.RLock()
	defer s.c.quiet.RUnlock()
	r := guestapi.Request{Op: guestapi.OpApply, Session: s.id, Nonce: s.rng.Uint64()}
	now := time.Now()
	var err error
	if r.Seq, err = s.c.Sent(s.id, r.Nonce, now); err == nil {
		err = s.ask(ctx, r.Append(nil), now.Add(s.c.o.AnswerMax))
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, errRefused) { // that one is counted as what it is
		s.c.Unanswered(s.id, err)
	}
	return err == nil
}

// ask sends the request until it is answered, which is once over TCP as long as
// the connection lives.
func (s *session) ask(ctx context.Context, request []byte, end time.Time) error {
	for {
		err := s.exchange(ctx, request, end)
		if err == nil || ctx.Err() != nil || !time.Now().Before(end) || errors.Is(err, errRefused) {
			return errors.Join(ctx.Err(), err)
		}
		if s.network == "udp" {
			continue // nobody answered yet, or an error that ICMP told: ask again
		}
		s.c.Reset(s.id, err)
		s.conn.Close()
		if s.resets++; s.resets > clientResetsMax {
			return fmt.Errorf("lab: %d resets: %w", s.resets, err)
		}
		dialCtx, cancel := context.WithDeadline(ctx, end)
		conn, err := s.c.dial(dialCtx, s.network, s.v6)
		cancel()
		if err != nil {
			return err
		}
		s.conn = conn
	}
}

// errRefused marks an answer after which the session cannot go on.
var errRefused = errors.New("refused")

// exchange sends the request once and reads until it is answered, for Resend
// over UDP.
func (s *session) exchange(ctx context.Context, request []byte, end time.Time) error {
	if again := time.Now().Add(s.c.o.Resend); s.network == "udp" && again.Before(end) {
		end = again
	}
	if err := s.conn.SetDeadline(end); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })()
	_, err := s.conn.Write(request)
	if err != nil && s.network == "tcp" {
		return err
	}
	in := make([]byte, guestapi.AnswerBytes+1)
	for {
		if s.network == "tcp" {
			in = in[:guestapi.AnswerBytes]
			_, err = io.ReadFull(s.conn, in)
		} else {
			var n int
			if n, err = s.conn.Read(in[:cap(in)]); err == nil {
				in = in[:n]
			} else if !errors.Is(err, os.ErrDeadlineExceeded) {
				time.Sleep(time.Millisecond) // ICMP said that nobody is there, and may say so again
				continue
			}
		}
		if err != nil {
			return err
		}
		a, err := guestapi.ParseAnswer(in)
		if err == nil && a.Session != s.id {
			err = fmt.Errorf("an answer for session %#x", a.Session)
		}
		if err != nil {
			s.c.Garbled(s.id, err)
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		done, err := s.c.Received(a, time.Now())
		if err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		if done {
			return nil
		}
	}
}
