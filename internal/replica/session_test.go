package replica

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testHello() Hello {
	return Hello{Role: RolePrimary, WantGeneration: 7, Domain: testDomain, DomainName: "web1", Host: "host-a", Software: "test"}
}

func admitAll(_ context.Context, _ Peer, _ *Hello) (*Welcome, *Refuse) {
	return &Welcome{State: BackupStandby, HeartbeatPeriodNs: 1e8, SilenceLimitNs: 5e8, LastCommitted: 41, Generation: 7, Host: "host-b"}, nil
}

func listen(t *testing.T, o ListenerOptions) *Listener {
	t.Helper()
	if o.Admit == nil {
		o.Admit = admitAll
	}
	if o.Transport.Mode == "" {
		o.Transport.Mode = ModePlain
	}
	l, err := Listen(t.Context(), "127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func plainDialer() *Dialer { return &Dialer{Transport: Transport{Mode: ModePlain}} }

// exchange proves that the two sessions are each other's.
func exchange(t *testing.T, a, b *Session) {
	t.Helper()
	for _, c := range []struct {
		from, to *Conn
		m        Message
	}{
		{a.Control, b.Control, &Heartbeat{Seq: 1}}, {b.Control, a.Control, &Ack{}}, {a.Data, b.Data, &Device{Blob: []byte("x")}},
	} {
		if err := c.from.Send(t.Context(), testStamp, c.m); err != nil {
			t.Fatal(err)
		}
		if f, err := c.to.Recv(t.Context()); err != nil || f.Type != c.m.Type() || f.Stamp != testStamp {
			t.Fatalf("%v, %v", f, err)
		}
	}
}

func TestSessionsArePaired(t *testing.T) {
	ca := newCA(t, "CA")
	hostB := ca.transport(t, "host-b")
	hostB.AllowedNames = []string{"host-a"}
	for mode, tr := range map[string]struct{ l, d Transport }{
		"plain":                         {Transport{Mode: ModePlain}, Transport{Mode: ModePlain}},
		"tls":                           {hostB, ca.transport(t, "host-a")},
		"sealed":                        {plainPages(hostB), plainPages(ca.transport(t, "host-a"))},
		"tls, for one of them wants it": {hostB, plainPages(ca.transport(t, "host-a"))},
		"tls, for the other wants it":   {plainPages(hostB), ca.transport(t, "host-a")},
	} {
		t.Run(mode, func(t *testing.T) {
			var peers sync.Map
			l := listen(t, ListenerOptions{Transport: tr.l, Admit: func(ctx context.Context, p Peer, h *Hello) (*Welcome, *Refuse) {
				peers.Store(p.Protection, p)
				return admitAll(ctx, p, h)
			}})
			const n = 8
			dialed := make([]*Session, n)
			var wg sync.WaitGroup
			for i := range n { // at the same time, to mix their connections
				wg.Go(func() {
					d := Dialer{Transport: tr.d}
					s, err := d.Dial(t.Context(), l.Addr().String(), UUID{byte(i + 1)}, 6, testHello())
					if err != nil {
						t.Errorf("Dial: %v", err)
						return
					}
					dialed[i] = s
				})
			}
			accepted := map[UUID]*Session{}
			for range n {
				s, err := l.Accept(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				accepted[s.Protection()] = s
			}
			wg.Wait()
			for i, a := range dialed {
				b := accepted[UUID{byte(i + 1)}]
				if a == nil || b == nil {
					t.Fatal("a session is missing")
				}
				defer a.Close()
				if sealed := a.Data.out != nil; sealed != (mode == "sealed") || sealed == (a.Data.tls != nil) && mode != "plain" || (a.Control.tls == nil) != (mode == "plain") {
					t.Errorf("sealed: %v", sealed)
				}
				exchange(t, a, b)
				if a.Version != VersionMax || b.Version != VersionMax || a.PeerGeneration != 7 || b.PeerGeneration != 6 || a.Welcome.LastCommitted != 41 || b.Hello.DomainName != "web1" {
					t.Errorf("%+v / %+v", a, b)
				}
				if p, ok := peers.Load(b.Protection()); !ok || (mode != "plain") != (len(p.(Peer).Names) == 1) {
					t.Errorf("peer %+v", p)
				}
				a.Close()
				if _, err := b.Control.Recv(t.Context()); !errors.Is(err, ErrPeerClosed) {
					t.Errorf("%v", err)
				}
			}
		})
	}
}

func TestSocketOptions(t *testing.T) {
	l := listen(t, ListenerOptions{UserTimeout: 1234 * time.Millisecond})
	s, err := plainDialer().Dial(t.Context(), l.Addr().String(), testProtection, 7, testHello())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for conn, wantTimeout := range map[*Conn]int{s.Control: 5000, s.Data: 5000, b.Control: 1234, b.Data: 1234} {
		rc, err := conn.raw.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = rc.Control(func(fd uintptr) {
			for _, o := range []struct{ level, opt, want int }{
				{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0},
				{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, wantTimeout}, {unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
			} {
				if got, err := unix.GetsockoptInt(int(fd), o.level, o.opt); err != nil || got != o.want {
					t.Errorf("option %d: %d, %v; want %d", o.opt, got, err, o.want)
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		admit func(context.Context, Peer, *Hello) (*Welcome, *Refuse)
		want  uint64
		code  Code
	}{
		"policy": {func(context.Context, Peer, *Hello) (*Welcome, *Refuse) {
			return nil, &Refuse{CodePolicy, "no", "ask nicely"}
		}, 7, CodePolicy},
		"generation": {admitAll, 6, CodeGeneration},
		"no answer":  {func(context.Context, Peer, *Hello) (*Welcome, *Refuse) { return nil, nil }, 7, CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, ListenerOptions{Admit: c.admit})
			h := testHello()
			h.WantGeneration = c.want
			_, err := plainDialer().Dial(t.Context(), l.Addr().String(), testProtection, 6, h)
			var r *RefusedError
			if !errors.As(err, &r) || r.Code != c.code || r.Reason == "" {
				t.Errorf("%v", err)
			}
			if c.code == CodeGeneration && r.Generation != 7 {
				t.Errorf("the refusal does not tell the generation: %+v", r)
			}
		})
	}
}

// rawHello sends one Hello of the caller's making and returns the answer.
func rawHello(t *testing.T, addr string, protection UUID, h Hello) (Frame, *Conn, error) {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(raw, raw, h.Channel, protection)
	c.phase = expectAnswer
	t.Cleanup(func() { c.Close() })
	if err := c.Send(t.Context(), Stamp{}, &h); err != nil {
		t.Fatal(err)
	}
	f, err := c.Recv(t.Context())
	return f, c, err
}

func TestVersionsAndTokens(t *testing.T) {
	l := listen(t, ListenerOptions{})
	addr := l.Addr().String()
	h := testHello()
	h.Channel, h.VersionMin, h.VersionMax = ControlChannel, VersionMax+1, VersionMax+2
	if f, _, err := rawHello(t, addr, testProtection, h); err != nil || f.Msg.(*Refuse).Code != CodeVersion {
		t.Errorf("a peer from the future: %+v, %v", f.Msg, err)
	}
	h.VersionMin = VersionMax
	f, _, err := rawHello(t, addr, testProtection, h)
	if err != nil || f.Msg.(*Welcome).Version != VersionMax {
		t.Fatalf("a newer peer that speaks ours: %+v, %v", f.Msg, err)
	}
	data := h
	data.Channel, data.Token = DataChannel, f.Msg.(*Welcome).Token
	// Another protection with the right token uses it up; then it is worth nothing.
	for _, id := range []UUID{{9}, testProtection} {
		if f, _, err := rawHello(t, addr, id, data); err != nil || f.Msg.(*Refuse).Code != CodeToken {
			t.Errorf("%s: %+v, %v", id, f.Msg, err)
		}
	}
	data.Token = Token{}
	if f, _, err := rawHello(t, addr, testProtection, data); err != nil || f.Msg.(*Refuse).Code != CodeToken {
		t.Errorf("zero token: %+v, %v", f.Msg, err)
	}
	for min := range 4 {
		for max := min; max < 4; max++ {
			v, err := negotiate(uint8(min), uint8(max))
			if ok := min <= VersionMax && max >= VersionMin; ok != (err == nil) || ok && v != VersionMax {
				t.Errorf("versions %d to %d: %d, %v", min, max, v, err)
			}
		}
	}
}

// closes waits until the peer closes c, for as long as the test may run.
func closes(t *testing.T, c net.Conn) {
	t.Helper()
	for buf := make([]byte, 4096); ; {
		if _, err := c.Read(buf); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%v", err)
			}
			return
		}
	}
}

func TestStrangersAreBounded(t *testing.T) {
	l := listen(t, ListenerOptions{HandshakeTimeout: 300 * time.Millisecond, MaxHandshakes: 3 * addressShare})
	dial := func(say string) net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write([]byte(say)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	closes(t, dial("GET / HTTP/1.1\r\nHost: nobody in particular, at least 56 bytes\r\n\r\n"))
	closes(t, dial("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"+strings.Repeat("x", 64))) // speaks TLS
	// Three that say nothing hold the slots (connections are taken in order); a
	// fourth is turned away at once, and all are gone after the timeout.
	start := time.Now()
	silent := []net.Conn{dial(""), dial(""), dial("V")}
	closes(t, dial(""))
	if took := time.Since(start); took > 250*time.Millisecond {
		t.Skipf("the machine is too slow to tell: %v", took)
	}
	for _, c := range silent {
		closes(t, c)
	}
	// One that opens a control connection and no data connection.
	h := testHello()
	h.Channel, h.VersionMin, h.VersionMax = ControlChannel, VersionMin, VersionMax
	_, c, err := rawHello(t, l.Addr().String(), testProtection, h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Recv(t.Context()); !errors.Is(err, ErrPeerClosed) {
		t.Errorf("%v", err)
	}
	// After all that, an honest peer gets its session.
	s, err := plainDialer().Dial(t.Context(), l.Addr().String(), testProtection, 7, testHello())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// Nobody accepts it: it is closed.
	if _, err := s.Control.Recv(t.Context()); !errors.Is(err, ErrPeerClosed) {
		t.Errorf("%v", err)
	}
}

func TestListenerCloses(t *testing.T) {
	l := listen(t, ListenerOptions{})
	c, err := net.Dial("tcp", l.Addr().String()) // a handshake under way
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	closes(t, c)
}

func TestDialTellsDeadFromSilent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	mute := ln.Addr().String() // accepts (in the kernel) and never answers
	d := plainDialer()
	d.HandshakeTimeout = 50 * time.Millisecond
	if _, err := d.Dial(t.Context(), mute, testProtection, 1, testHello()); !errors.Is(err, ErrPeerSilent) {
		t.Errorf("mute: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if !Probe(ctx, mute) {
		t.Error("a listening port is alive")
	}
	ln.Close()
	if _, err := d.Dial(t.Context(), mute, testProtection, 1, testHello()); !errors.Is(err, ErrPeerClosed) {
		t.Errorf("nobody there: %v", err)
	}
	if !Probe(ctx, mute) {
		t.Error("a refusing port is alive")
	}
	ended, end := context.WithCancel(ctx)
	end()
	if Probe(ended, mute) {
		t.Error("no answer is not alive")
	}
}

func TestTLSRefusals(t *testing.T) {
	ca, other := newCA(t, "CA"), newCA(t, "other CA")
	hostA, hostB := ca.transport(t, "host-a"), ca.transport(t, "host-b")
	with := func(tr Transport, change func(*Transport)) Transport { change(&tr); return tr }
	old := time.Now().Add(-time.Hour)
	oldCert, oldKey := ca.issue(t, "host-b", old)
	expired := func(tr *Transport) {
		tr.ServerCert, tr.ServerKey, tr.ClientCert, tr.ClientKey = oldCert, oldKey, oldCert, oldKey
	}
	for name, c := range map[string]struct {
		l, d Transport
		says string // part of the dialer's error; empty: whichever
	}{
		"server of another CA":  {other.transport(t, "host-b"), hostA, "signed by the authority"},
		"client of another CA":  {hostB, with(other.transport(t, "host-a"), func(tr *Transport) { tr.CACert = ca.file }), ""},
		"server of wrong name":  {ca.transport(t, "host-c"), hostA, `made out to "host-c", and not to "host-b"`},
		"client not on list":    {with(hostB, func(tr *Transport) { tr.AllowedNames = []string{"host-z"} }), hostA, ""},
		"expired server":        {with(hostB, expired), hostA, "renew the certificate"},
		"expired client":        {hostB, with(hostA, expired), ""},
		"listener speaks plain": {Transport{Mode: ModePlain}, hostA, ""},
		"dialer speaks plain":   {hostB, Transport{Mode: ModePlain}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, ListenerOptions{Transport: c.l, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
				Admit: func(context.Context, Peer, *Hello) (*Welcome, *Refuse) {
					t.Error("got as far as Admit")
					return nil, nil
				}})
			d := Dialer{Transport: c.d, HandshakeTimeout: 5 * time.Second}
			_, err := d.Dial(t.Context(), l.Addr().String(), testProtection, 7, testHello())
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v does not say %q", err, c.says)
			}
			if errors.Is(err, ErrPeerSilent) {
				t.Errorf("%v: took the timeout", err)
			}
			l.Close() // waits for the handshake, which must not reach Admit
		})
	}
}

func TestTransportNamesTheFile(t *testing.T) {
	ca := newCA(t, "CA")
	good := ca.transport(t, "host-a")
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	if err := (Transport{Mode: ModePlain}).Check(); err != nil {
		t.Error(err)
	}
	missing := filepath.Join(t.TempDir(), "missing.pem")
	garbage := filepath.Join(t.TempDir(), "garbage.pem")
	if err := os.WriteFile(garbage, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{missing, garbage} {
		for i, change := range []func(*Transport){
			func(tr *Transport) { tr.CACert = file }, func(tr *Transport) { tr.ServerCert = file }, func(tr *Transport) { tr.ServerKey = file },
			func(tr *Transport) { tr.ClientCert = file }, func(tr *Transport) { tr.ClientKey = file },
		} {
			tr := good
			change(&tr)
			var te *TransportError
			if err := tr.Check(); !errors.As(err, &te) || !strings.Contains(err.Error(), file) || te.Remedy == "" {
				t.Errorf("%d: %v", i, err)
			}
		}
	}
	var te *TransportError
	if err := (Transport{Mode: "tsl"}).Check(); !errors.As(err, &te) || te.Remedy == "" {
		t.Errorf("%v", err)
	}
	if d := DefaultTransport(); d.ClientKey != "/etc/pki/libvirt/private/clientkey.pem" || d.CACert != "/etc/pki/CA/cacert.pem" {
		t.Errorf("%+v", d)
	}
}
