package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// strangers bounds the connections of whom it is not known yet who they are: in
// all, and from one address. Where there is no room the oldest gives way, if it
// has had its time: who means well is through in milliseconds, and who opens
// connections to say nothing on them holds the door shut for nobody. The newest is
// turned away otherwise. Safe for concurrent use.
type strangers struct {
	max, perAddress int

	mu  sync.Mutex
	all []*stranger // in the order in which they came
}

type stranger struct {
	from  netip.Addr
	came  time.Time
	leave context.CancelCauseFunc // ends its handshake
}

// strangerTime is how long a connection has before it may have to give way.
const strangerTime = 2 * time.Second

var (
	errGaveWay = errors.New("it took too long to say who it is, and others wait")
	errNoRoom  = errors.New("too many connections that have not said who they are")
)

// enter lets a connection in that came from raw, or returns errNoRoom. end is
// called with the reason if it is to give way.
func (s *strangers) enter(raw net.Addr, now time.Time, end context.CancelCauseFunc) (*stranger, error) {
	x := &stranger{came: now, leave: end}
	if tcp, ok := raw.(*net.TCPAddr); ok {
		x.from = subnet(tcp.AddrPort().Addr())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest, same, n := -1, -1, 0
	for i, o := range s.all {
		if oldest < 0 {
			oldest = i
		}
		if o.from == x.from {
			if n++; same < 0 {
				same = i
			}
		}
	}
	evict := -1
	switch {
	case n >= s.perAddress:
		evict = same
	case len(s.all) >= s.max:
		evict = oldest
	default:
		s.all = append(s.all, x)
		return x, nil
	}
	old := s.all[evict]
	if now.Sub(old.came) < strangerTime {
		return nil, errNoRoom
	}
	s.all = append(slices.Delete(s.all, evict, evict+1), x)
	old.leave(errGaveWay)
	return x, nil
}

// subnet is what counts as one address: of IPv6 a /64, which one host may have all of.
func subnet(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if p, err := a.WithZone("").Prefix(64); err == nil && a.Is6() {
		return p.Addr()
	}
	return a
}

// gone takes a connection out: it said who it is, or ended. It may be called twice.
func (s *strangers) gone(x *stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.all, x); i >= 0 {
		s.all = slices.Delete(s.all, i, i+1)
	}
}

// count is how many there are.
func (s *strangers) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// bucket lets so much through in a second, and a burst. Safe for concurrent use.
type bucket struct {
	perSecond, burst float64

	mu   sync.Mutex
	left float64
	at   time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at.IsZero() {
		b.left = b.burst
	} else {
		b.left = min(b.burst, b.left+now.Sub(b.at).Seconds()*b.perSecond)
	}
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// rates are buckets of hosts, by name; at most ratesMax of them. Safe for
// concurrent use.
type rates struct {
	perSecond, burst float64

	mu sync.Mutex
	of map[string]*bucket
}

const ratesMax = 1024

func (r *rates) take(who string, now time.Time) bool {
	r.mu.Lock()
	b := r.of[who]
	if b == nil {
		if len(r.of) >= ratesMax { // in plain mode anybody may make names up
			clear(r.of)
		}
		b = &bucket{perSecond: r.perSecond, burst: r.burst}
		r.of[who] = b
	}
	r.mu.Unlock()
	return b.take(now)
}

// complaints logs what strangers do wrong, without letting them fill the disk or
// drown one kind of complaint in another: what is over the rate of its kind, or of
// all, is counted, and said with the next line. Safe for concurrent use.
type complaints struct {
	log  *slog.Logger
	all  bucket
	kind rates

	mu     sync.Mutex
	silent int
}

func newComplaints(log *slog.Logger) *complaints {
	return &complaints{log: log, all: bucket{perSecond: 5, burst: 100}, kind: rates{perSecond: 0.5, burst: 5, of: map[string]*bucket{}}}
}

func (c *complaints) warn(text string, peer net.Addr, err error) {
	now := time.Now()
	if !c.kind.take(kindOfError(err), now) || !c.all.take(now) {
		c.mu.Lock()
		c.silent++
		c.mu.Unlock()
		return
	}
	c.mu.Lock()
	n := c.silent
	c.silent = 0
	c.mu.Unlock()
	attrs := []any{"peer", peer, "err", err}
	if n > 0 {
		attrs = append(attrs, "not_logged_before", n)
	}
	c.log.Warn(text, attrs...)
}

// kindOfError is what errors of handshakes are counted by: what is wrong, whoever
// it is who does it.
func kindOfError(err error) string {
	var name *NameError
	var format *FormatError
	var refusal *refusalError
	var transport *TransportError
	switch {
	case errors.As(err, &name):
		return "name " + name.Why
	case errors.As(err, &refusal):
		return "refusal " + refusal.Code.String()
	case errors.As(err, &format):
		return "format " + format.Field
	case errors.As(err, &transport):
		return "tls " + transport.Remedy
	}
	return fmt.Sprint(Classify(err), errors.Is(err, errGaveWay), errors.Is(err, errNoRoom))
}
