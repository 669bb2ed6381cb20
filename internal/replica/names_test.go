package replica

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// logBuffer is where a listener under test complains.
type logBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	said chan struct{} // closed, if it is there, at the first line
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said != nil && l.b.Len() == 0 {
		close(l.said)
	}
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// TestWhoMayDial: over real TLS, who gets as far as Admit, and what the others and
// the log are told. All dialers have a certificate of the CA, and are host-c.
func TestWhoMayDial(t *testing.T) {
	ca := newCA(t, "CA")
	hostB := ca.transport(t, "host-b")
	base := ca.transport(t, "host-c")
	client := func(name string, change func(*x509.Certificate)) Transport {
		tr := base
		tr.ClientCert, tr.ClientKey = ca.issueAs(t, name, change)
		return tr
	}
	as := func(allowed []string, peers map[string]string) Transport {
		tr := hostB
		tr.AllowedNames, tr.Peers = allowed, peers
		return tr
	}
	none := func(*x509.Certificate) {}
	for name, c := range map[string]struct {
		l, d Transport
		host string // as the Hello has it
		says string // of the dialer's error, and the log; empty: let in
	}{
		"on the list":                {as([]string{"HOST-C."}, nil), base, "host-c", ""},
		"among the peers by name":    {as(nil, map[string]string{"host-c": "192.0.2.3"}), base, "host-c", ""},
		"among the peers by address": {as(nil, map[string]string{"host-c": "192.0.2.3"}), client("192.0.2.3", none), "host-c", ""},
		"by common name alone":       {as([]string{"host-c"}, nil), client("host-c", func(x *x509.Certificate) { x.DNSNames = nil }), "host-c", ""},
		"no list and no peers":       {as(nil, nil), base, "host-c", "lets in nobody"},
		"not on the list":            {as([]string{"host-a"}, map[string]string{"host-c": "192.0.2.3"}), base, "host-c", "transport.allowed_names"},
		"on the list, as another":    {as([]string{"host-c", "host-a"}, nil), base, "host-a", `calls itself "host-a"`},
		"a peer, as another peer":    {as(nil, map[string]string{"host-c": "192.0.2.3", "host-a": "192.0.2.1"}), base, "host-a", `calls itself "host-a"`},
		"a pattern is nobody":        {as([]string{"host-c.example.org"}, nil), client("*.example.org", none), "host-c.example.org", "is made out to nobody"},
		"server certificate":         {as([]string{"host-c"}, nil), client("host-c", func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "host-c", "incompatible key usage"},
		"expired":                    {as([]string{"host-c"}, nil), client("host-c", func(x *x509.Certificate) { x.NotAfter = time.Now().Add(-time.Minute) }), "host-c", "expired"},
		"not valid yet":              {as([]string{"host-c"}, nil), client("host-c", func(x *x509.Certificate) { x.NotBefore = time.Now().Add(time.Minute) }), "host-c", "not yet valid"},
	} {
		t.Run(name, func(t *testing.T) {
			log := logBuffer{said: make(chan struct{})}
			l := listen(t, ListenerOptions{Transport: c.l, Logger: log.logger(), Admit: func(ctx context.Context, p Peer, h *Hello) (*Welcome, *Refuse) {
				if c.says != "" {
					t.Error("got as far as Admit")
				}
				return admitAll(ctx, p, h)
			}})
			h := testHello()
			h.Host = c.host
			s, err := (&Dialer{Transport: c.d}).Dial(t.Context(), l.Addr().String(), testProtection, 7, h)
			if c.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
				return
			}
			if err == nil || errors.Is(err, ErrPeerSilent) {
				t.Errorf("%v", err)
			}
			// The dialer may have heard of the refusal before the listener's handshake was over, which Close breaks off.
			select {
			case <-log.said:
			case <-time.After(2 * DefaultHandshakeTimeout):
			}
			if got := log.String(); !strings.Contains(strings.ReplaceAll(got, `\"`, `"`), c.says) || !strings.Contains(got, "peer=127.0.0.1:") {
				t.Errorf("the log does not say %q and the address: %s", c.says, got)
			}
		})
	}
}

// TestWhoIsDialed: the listener's certificate must be made out to what was dialed,
// and vouch for the name in its Welcome, host-b.
func TestWhoIsDialed(t *testing.T) {
	ca := newCA(t, "CA")
	listener := ca.transport(t, "host-b")
	server := func(name string, change func(*x509.Certificate)) Transport {
		tr := listener
		tr.ServerCert, tr.ServerKey = ca.issueAs(t, name, change)
		return tr
	}
	at := func(peers map[string]string) Transport {
		tr := ca.transport(t, "host-a")
		tr.ServerName, tr.Peers = "", peers
		return tr
	}
	both := func(x *x509.Certificate) { x.IPAddresses = []net.IP{net.ParseIP("127.0.0.1")} }
	for name, c := range map[string]struct {
		l, d Transport
		says string
	}{
		"address and name":                   {server("host-b", both), at(nil), ""},
		"address and common name":            {server("host-b", func(x *x509.Certificate) { both(x); x.DNSNames = nil }), at(nil), ""},
		"the peer at that address, by name":  {listener, at(map[string]string{"host-b": "127.0.0.1"}), ""},
		"address alone, known as host-b":     {server("127.0.0.1", func(*x509.Certificate) {}), at(map[string]string{"host-b": "127.0.0.1"}), ""},
		"address alone, known as nobody":     {server("127.0.0.1", func(*x509.Certificate) {}), at(nil), `calls itself "host-b"`},
		"another host at that address":       {listener, at(map[string]string{"host-c": "127.0.0.1"}), `not to "127.0.0.1", "host-c"`},
		"another host's name in its Welcome": {server("host-c", both), at(nil), `calls itself "host-b"`},
		"client certificate": {server("host-b", func(x *x509.Certificate) {
			both(x)
			x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}), at(nil), "extended key usage"},
		"not valid yet": {server("host-b", func(x *x509.Certificate) { both(x); x.NotBefore = time.Now().Add(time.Minute) }), at(nil), "not yet valid"},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, ListenerOptions{Transport: c.l})
			s, err := (&Dialer{Transport: c.d}).Dial(t.Context(), l.Addr().String(), testProtection, 7, testHello())
			if err == nil {
				s.Close()
			}
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) && !strings.Contains(err.Error(), "incompatible") {
				t.Errorf("%v does not say %q", err, c.says)
			}
		})
	}
}

// TestRenewedCertificates: what changes on the disk counts for the next connection,
// what cannot be used does not.
func TestRenewedCertificates(t *testing.T) {
	ca := newCA(t, "CA")
	hostB, hostA := ca.transport(t, "host-b"), ca.transport(t, "host-a")
	l := listen(t, ListenerOptions{Transport: hostB})
	dial := func() error {
		s, err := (&Dialer{Transport: hostA}).Dial(t.Context(), l.Addr().String(), testProtection, 7, testHello())
		if err == nil {
			s.Close()
		}
		return err
	}
	replace := func(file, with string) {
		t.Helper()
		b, err := os.ReadFile(with)
		if err == nil {
			err = os.WriteFile(file+".new", b, 0o600)
		}
		if err == nil {
			err = os.Rename(file+".new", file)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := dial(); err != nil {
		t.Fatal(err)
	}
	cert, key := ca.issue(t, "host-z", time.Now().Add(time.Hour))
	replace(hostB.ServerCert, cert) // and its key is still the old one
	if err := dial(); err != nil {
		t.Errorf("half of a renewal: %v", err)
	}
	replace(hostB.ServerKey, key)
	if err := dial(); err == nil || !strings.Contains(err.Error(), `made out to "host-z"`) {
		t.Errorf("the renewed certificate is not used: %v", err)
	}
	cert, key = ca.issue(t, "host-b", time.Now().Add(time.Hour))
	replace(hostB.ServerKey, key)
	replace(hostB.ServerCert, cert)
	if err := dial(); err != nil {
		t.Errorf("renewed again: %v", err)
	}
}
