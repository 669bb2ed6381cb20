package e2e

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/internal/pki"
	"github.com/virt-ft/virt-ft/internal/replica"
)

const (
	attackPort  = "7879"
	attackPause = 20 * time.Millisecond // so that it is the daemons that are tried, not the machine
	runDir      = "/run/virt-ft"
)

// TestAttack: a guest is protected over TLS, its pages sealed, while strangers are at
// every port and socket of both hosts. It stays protected, fails over meanwhile, and
// no answer is lost; and the daemons say who was refused, and why.
func TestAttack(t *testing.T) {
	p := newPair(t, "transport.pages = \"plain\"\n[heartbeat]\nlimit = \"2s\"\n")
	g := p.guest(small(lab.GuestOptions{Disks: []lab.GuestDisk{{Target: "vda"}}}))
	c := p.clients()
	p.protect(p.A, g.Name)
	p.answered(c)
	generation := p.state(p.A, g.Name, "protected").Generation
	strangers := p.strangers()
	ctx, end := context.WithCancel(p.ctx)
	defer end()
	var wg sync.WaitGroup
	for _, h := range p.Hosts() {
		for _, s := range strangers {
			wg.Go(func() {
				for ctx.Err() == nil {
					s(ctx, h)
					select {
					case <-ctx.Done():
					case <-time.After(attackPause):
					}
				}
			})
		}
	}
	for range 4 {
		p.answered(c)
		p.tickFrom(p.A)
	}
	if s := p.state(p.A, g.Name, "protected"); s.Generation != generation {
		p.t.Errorf("generation %d became %d", generation, s.Generation)
	}
	p.survives(g, c)
	end()
	wg.Wait()
	// Whose certificate is of an authority that the listener does not name shows none.
	everywhere := []string{"client didn't provide a certificate", `made out to \"host-z\"`, "magic", "token of the data connection", "control connection without TLS", "does not look like a TLS handshake"}
	p.said(p.B, everywhere...)
	p.said(p.A, append(everywhere, `calls itself \"host-a\"`, "not the guest's QEMU")...) // it lets host-b in, and has the socket of the disks
}

// said fails unless the daemon of h complained about the other host's address, and
// for each of these reasons.
func (p *pair) said(h *lab.Host, reasons ...string) {
	p.t.Helper()
	log, err := os.ReadFile(h.Daemon.LogPath())
	p.must(err)
	for _, words := range append(reasons, "peer="+p.Peer(h).Repl+":") {
		if !strings.Contains(string(log), words) {
			p.t.Errorf("%s was not heard to say %q", h.Name, words)
		}
	}
}

// strangers are who tries: each makes one attempt on a host.
func (p *pair) strangers() []func(context.Context, *lab.Host) {
	dir := p.t.TempDir()
	pair := func(ca, caName, name string) replica.Transport {
		if ca == "" {
			ca = p.CADir()
		} else {
			ca = filepath.Join(dir, ca)
			p.must(pki.CreateCA(ca, caName, time.Now()))
		}
		f, err := pki.CreateHost(ca, name, []netip.Addr{netip.MustParseAddr("192.0.2.9")}, filepath.Join(dir, caName+name), time.Now())
		p.must(err)
		return replica.Transport{CACert: filepath.Join(p.CADir(), pki.CACertFile), ServerCert: f.ServerCert, ServerKey: f.ServerKey, ClientCert: f.ClientCert, ClientKey: f.ClientKey,
			Peers: map[string]string{"host-a": lab.ReplicationA, "host-b": lab.ReplicationB}}
	}
	dial := func(tr replica.Transport, host string) func(context.Context, *lab.Host) {
		return func(ctx context.Context, h *lab.Host) {
			_ = p.Peer(h).Inside(func() error {
				d := replica.Dialer{Transport: tr, HandshakeTimeout: 2 * time.Second}
				s, err := d.Dial(ctx, net.JoinHostPort(h.Repl, attackPort), replica.UUID{1}, 99, replica.Hello{Role: replica.RolePrimary, WantGeneration: 99, Domain: replica.UUID{1}, Host: host})
				if err == nil {
					p.t.Errorf("%s let somebody in", h.Name)
					s.Close()
				}
				return nil
			})
		}
	}
	forged := func() []byte { // opens a data connection without TLS, with a ticket that was guessed
		b, err := replica.AppendMessage(nil, replica.Header{Version: 1, Protection: replica.UUID{1}}, &replica.Hello{VersionMin: 1, VersionMax: 99,
			Channel: replica.DataChannel, Role: replica.RolePrimary, Token: replica.Token{1}, Domain: replica.UUID{1}})
		p.must(err)
		return b
	}()
	return []func(context.Context, *lab.Host){
		dial(pair("other", "other", "host-a"), "host-a"), // another authority
		dial(pair("", "lab", "host-z"), "host-z"),        // a host that is no peer
		dial(pair("", "lab2", "host-b"), "host-a"),       // a peer that pretends to be the other
		dial(replica.Transport{Mode: "plain"}, "host-a"), // no TLS
		p.bytesTo(forged),
		p.bytesTo([]byte("VFT?" + strings.Repeat("x", 200))),
		p.bytesTo([]byte("GET / HTTP/1.1\r\n\r\n")),
		p.bytesTo([]byte{0x16, 3, 1, 2, 0}), // half of a TLS greeting
		p.bytesTo(nil),
		p.socketBytes("control.sock", "GET /v1/status HTTP/1.1\r\nHost: x\r\nX: "),
		p.socketBytes("control.sock", "POST /v1/protect HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"),
		p.socketBytes("hook.sock", "{"),
		p.socketBytes("hook.sock", strings.Repeat("\x00", 5000)),
		p.socketBytes("nbd/*", "\x00\x00\x00\x03"),
	}
}

// bytesTo says something to the port of a host, and waits for what comes of it.
func (p *pair) bytesTo(b []byte) func(context.Context, *lab.Host) {
	return func(ctx context.Context, h *lab.Host) {
		var conn net.Conn
		err := p.Peer(h).Inside(func() (err error) {
			conn, err = (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(h.Repl, attackPort))
			return err
		})
		if err == nil {
			drain(ctx, conn, b)
		}
	}
}

// socketBytes does the same with a Unix socket of a host, as root.
func (p *pair) socketBytes(name, text string) func(context.Context, *lab.Host) {
	return func(ctx context.Context, h *lab.Host) {
		path, err := h.Root(filepath.Join(runDir, name))
		if err != nil {
			return
		}
		found, _ := filepath.Glob(path)
		for _, f := range found {
			if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", f); err == nil {
				drain(ctx, conn, []byte(text))
			}
		}
	}
}

func drain(ctx context.Context, conn net.Conn, b []byte) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := conn.Write(b); err != nil {
		return
	}
	var answer [512]byte
	for {
		if _, err := conn.Read(answer[:]); err != nil {
			return
		}
	}
}
