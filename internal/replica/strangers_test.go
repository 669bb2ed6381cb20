package replica

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestStrangersGiveWay: one address has a part of the room; the oldest gives way
// when it has had its time, and the newest is turned away before.
func TestStrangersGiveWay(t *testing.T) {
	s := &strangers{max: 4, perAddress: 2}
	now := time.Unix(1000, 0)
	var left []string
	enter := func(name, addr string) error {
		_, err := s.enter(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)), now, func(error) { left = append(left, name) })
		return err
	}
	for _, c := range []struct {
		name, addr string
		after      time.Duration
		room       bool
		left       string
	}{
		{"a1", "192.0.2.1:1", 0, true, ""},
		{"a2", "192.0.2.1:2", time.Second, true, ""},
		{"a3", "192.0.2.1:3", 0, false, ""},
		{"a4", "192.0.2.1:4", time.Second, true, "a1"},
		{"b1", "[2001:db8::1]:1", 0, true, "a1"},
		{"b2", "[2001:db8::2]:1", 0, true, "a1"}, // the same network
		{"b3", "[2001:db8::3]:1", 0, false, "a1"},
		{"c1", "[2001:db8:1::]:1", time.Second, true, "a1 a2"}, // all is full
		{"c2", "[2001:db8:1::]:2", 0, false, "a1 a2"},
	} {
		now = now.Add(c.after)
		err := enter(c.name, c.addr)
		if (err == nil) != c.room || err != nil && !errors.Is(err, errNoRoom) || strings.Join(left, " ") != c.left {
			t.Errorf("%s: %v, left: %v", c.name, err, left)
		}
	}
	if s.count() != 4 {
		t.Errorf("%d are there", s.count())
	}
}

func TestRates(t *testing.T) {
	r := rates{perSecond: 2, burst: 3, of: map[string]*bucket{}}
	now := time.Unix(1000, 0)
	took := 0
	for range 10 {
		if r.take("a", now) {
			took++
		}
	}
	if took != 3 || !r.take("b", now) {
		t.Errorf("%d of a burst of 3", took)
	}
	if now = now.Add(time.Second); !r.take("a", now) || !r.take("a", now) || r.take("a", now) {
		t.Error("not two in a second")
	}
	for i := range 3 * ratesMax {
		r.take(string(rune(i)), now)
	}
	if len(r.of) > ratesMax {
		t.Errorf("%d buckets", len(r.of))
	}
}

// TestSlowloris: connections that say nothing, or a byte now and then, do not keep a
// host out: theirs is the door that closes.
func TestSlowloris(t *testing.T) {
	var log logBuffer
	l := listen(t, ListenerOptions{MaxHandshakes: 2 * addressShare, Logger: log.logger()})
	for i := range 2 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("VF")[:1+i]); err != nil {
			t.Fatal(err)
		}
	}
	d := plainDialer()
	for start := time.Now(); ; {
		s, err := d.Dial(t.Context(), l.Addr().String(), testProtection, 7, testHello())
		if err == nil {
			s.Close()
			break
		}
		if time.Since(start) > DefaultHandshakeTimeout/2 {
			t.Fatal(err)
		}
	}
	l.Close()
	if got := log.String(); !strings.Contains(got, errGaveWay.Error()) || !strings.Contains(got, errNoRoom.Error()) {
		t.Error(got)
	}
	if lines := strings.Count(log.String(), "\n"); lines > 64 {
		t.Errorf("%d lines", lines)
	}
}
