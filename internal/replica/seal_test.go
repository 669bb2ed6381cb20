package replica

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// sealedPair returns the listener and the dialer of a session with plain pages,
// and a relay between them on which the first data connection goes through tamper.
func sealedPair(t *testing.T, tamper func(record int, b []byte) [][]byte) (dialed, accepted *Session) {
	t.Helper()
	ca := newCA(t, "CA")
	l := listen(t, ListenerOptions{Transport: plainPages(ca.transport(t, "host-b"))})
	addr := l.Addr().String()
	if tamper != nil {
		addr = relay(t, addr, tamper)
	}
	d := Dialer{Transport: plainPages(ca.transport(t, "host-a"))}
	s, err := d.Dial(t.Context(), addr, testProtection, 7, testHello())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	b, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return s, b
}

// relay is whoever is on the way: it hears all, and on connections without TLS has
// each record of the dialer's pass through tamper, the Hello apart.
func relay(t *testing.T, to string, tamper func(record int, b []byte) [][]byte) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				return
			}
			go func() { defer in.Close(); _, _ = io.Copy(in, out) }()
			go func() { defer out.Close(); passRecords(in, out, tamper) }()
		}
	}()
	return ln.Addr().String()
}

func passRecords(in io.Reader, out io.Writer, tamper func(record int, b []byte) [][]byte) {
	for record := -1; ; record++ { // -1 is the Hello
		b := make([]byte, HeaderBytes)
		if _, err := io.ReadFull(in, b[:1]); err != nil {
			return
		}
		if b[0] != magic>>24 { // TLS
			_, _ = out.Write(b[:1])
			_, _ = io.Copy(out, in)
			return
		}
		if _, err := io.ReadFull(in, b[1:]); err != nil {
			return
		}
		h, err := DecodeHeader(b)
		if err != nil {
			return
		}
		rest := int(h.PayloadBytes)
		if record >= 0 {
			rest += sealBytes
		}
		b = append(b, make([]byte, rest)...)
		if _, err := io.ReadFull(in, b[HeaderBytes:]); err != nil {
			return
		}
		all := [][]byte{b}
		if record >= 0 {
			all = tamper(record, b)
		}
		for _, r := range all {
			if _, err := out.Write(r); err != nil {
				return
			}
		}
	}
}

// fixHeader makes a header's own checksum right again, as who changes one would.
func fixHeader(b []byte) {
	h, err := DecodeHeader(append([]byte(nil), withCRC(b)...))
	if err == nil {
		h.append(b[:0])
	}
}

func withCRC(b []byte) []byte {
	c := append([]byte(nil), b[:HeaderBytes]...)
	crc := crc32.Checksum(c[:headerCRCOffset], castagnoli())
	c[52], c[53], c[54], c[55] = byte(crc>>24), byte(crc>>16), byte(crc>>8), byte(crc)
	return c
}

// TestOnTheWay: with pages in plain, whatever somebody on the way does ends the
// session at that record, and nothing of it is given to who receives.
//
// long: a table of everything that somebody on the way can do.
func TestOnTheWay(t *testing.T) {
	page := func(fill byte) []byte { return bytes.Repeat([]byte{fill}, 3*PageSize) }
	var kept []byte
	for name, c := range map[string]struct {
		tamper func(record int, b []byte) [][]byte
		good   int // records that arrive before
		ends   error
	}{
		"hears only":        {func(_ int, b []byte) [][]byte { return [][]byte{b} }, 4, nil},
		"changes a page":    {only(1, func(b []byte) { b[HeaderBytes+4+runBytes+PageSize] ^= 1 }), 1, ErrMalformed},
		"changes a run":     {only(1, func(b []byte) { b[HeaderBytes+4+15] ^= 0x10 }), 1, ErrMalformed},
		"changes the epoch": {only(2, func(b []byte) { b[47] ^= 1; fixHeader(b) }), 2, ErrMalformed},
		"changes the seal":  {only(0, func(b []byte) { b[len(b)-1] ^= 1 }), 0, ErrMalformed},
		"swaps pages": {only(1, func(b []byte) {
			d := b[HeaderBytes+4+runBytes:]
			one := append([]byte(nil), d[:PageSize]...)
			copy(d, d[PageSize:2*PageSize])
			copy(d[PageSize:], one)
		}), 1, ErrMalformed},
		"leaves one out": {func(r int, b []byte) [][]byte {
			if r == 1 {
				return nil
			}
			return [][]byte{b}
		}, 1, ErrMalformed},
		"sends one twice": {func(r int, b []byte) [][]byte {
			if r == 1 {
				return [][]byte{b, b}
			}
			return [][]byte{b}
		}, 2, ErrMalformed},
		"changes the order": {func(r int, b []byte) [][]byte {
			switch r {
			case 1:
				kept = b
				return nil
			case 2:
				return [][]byte{b, kept}
			}
			return [][]byte{b}
		}, 1, ErrMalformed},
		"makes one up": {func(r int, b []byte) [][]byte {
			forged, _ := AppendMessage(nil, Header{Version: VersionMax, Protection: testProtection, Stamp: testStamp}, &Device{Blob: []byte("evil")})
			if r == 1 {
				return [][]byte{append(forged, make([]byte, sealBytes)...), b}
			}
			return [][]byte{b}
		}, 1, ErrMalformed},
		"cuts one off": {func(r int, b []byte) [][]byte {
			if r == 1 {
				return [][]byte{b[:len(b)-sealBytes]}
			}
			return [][]byte{b}
		}, 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := sealedPair(t, c.tamper)
			sent := make(chan struct{})
			go func() { // fails when the session ends, as it may
				defer close(sent)
				for i := range 4 {
					if i == 2 {
						_ = a.Data.Send(context.Background(), testStamp, &Device{Blob: []byte("state")})
						continue
					}
					data := page(byte(i))
					data[0] = 0xaa
					_ = a.Data.SendPages(context.Background(), testStamp, []Run{{Pages: 3, Off: PageSize}}, [][]byte{data[:100], data[100:]}, nil)
				}
				if c.good == 1 && c.ends == nil {
					a.Close() // so that the end is seen
				}
			}()
			for n := range 5 {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				var given []byte
				f, err := b.Data.RecvPages(ctx, func(n int) []byte { given = make([]byte, n); return given })
				cancel()
				if n < c.good {
					if err != nil || f.Stamp != testStamp || (n == 2) != (f.Type == TypeDevice) || n != 2 && (given[0] != 0xaa || given[PageSize] != byte(n)) {
						t.Fatalf("record %d: %v %v", n, f.Header, err)
					}
					if n == 3 {
						break
					}
					continue
				}
				if err == nil || c.ends != nil && !errors.Is(err, c.ends) {
					t.Errorf("record %d: %v, %v", n, f.Header, err)
				}
				if _, again := b.Data.RecvPages(t.Context(), nil); again == nil {
					t.Error("the connection goes on")
				}
				break
			}
			a.Close()
			<-sent
		})
	}
}

func only(record int, change func(b []byte)) func(int, []byte) [][]byte {
	return func(r int, b []byte) [][]byte {
		if r == record {
			change(b)
		}
		return [][]byte{b}
	}
}

// TestTickets: what opens a data connection without TLS works once, on its place,
// and is not what the control connection was sent.
func TestTickets(t *testing.T) {
	ca := newCA(t, "CA")
	hostA := plainPages(ca.transport(t, "host-a"))
	for name, use := range map[string]func(secret *seals, token Token) []Token{
		"the token itself":     func(_ *seals, token Token) []Token { return []Token{token} },
		"one of another place": func(s *seals, _ Token) []Token { return []Token{s.ticket(1)} },
		"a replayed one":       func(s *seals, _ Token) []Token { return []Token{s.ticket(0), s.ticket(0)} },
		"one that was made up": func(*seals, Token) []Token { return []Token{{1}} },
		"none":                 func(*seals, Token) []Token { return []Token{{}} },
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, ListenerOptions{Transport: plainPages(ca.transport(t, "host-b"))})
			d := Dialer{Transport: hostA}
			cfg, err := d.configFor(l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			h := testHello()
			h.VersionMin, h.VersionMax, h.Channel, h.Streams, h.Capabilities = VersionMin, VersionMax, ControlChannel, 2, CapPlainPages
			control, f, err := d.greet(t.Context(), l.Addr().String(), cfg, testProtection, testStamp, &h)
			if err != nil {
				t.Fatal(err)
			}
			defer control.Close()
			w := f.Msg.(*Welcome)
			secret, err := newSeals(control.tls, w.Token)
			if err != nil {
				t.Fatal(err)
			}
			tokens := use(secret, w.Token)
			for i, token := range tokens {
				h.Channel, h.Token, h.Stream = DataChannel, token, 0
				f, _, err := rawHello(t, l.Addr().String(), testProtection, h)
				_, refused := f.Msg.(*Refuse)
				if err != nil || refused != (i == len(tokens)-1) {
					t.Errorf("%d: %+v, %v", i, f.Msg, err)
				}
			}
		})
	}
}

// TestPlainControl: a host that takes pages in plain takes nothing else so, and one
// that does not takes no byte without TLS.
func TestPlainControl(t *testing.T) {
	ca := newCA(t, "CA")
	admitted := func(context.Context, Peer, *Hello) (*Welcome, *Refuse) {
		t.Error("got as far as Admit")
		return nil, nil
	}
	for name, c := range map[string]struct {
		l    Transport
		says string
	}{"pages in plain": {plainPages(ca.transport(t, "host-b")), "without TLS"}, "pages in TLS": {ca.transport(t, "host-b"), ""}} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, ListenerOptions{Transport: c.l, Admit: admitted})
			for _, role := range []Role{RolePrimary, RoleAsking} {
				h := testHello()
				h.Role = role
				_, err := plainDialer().Dial(t.Context(), l.Addr().String(), testProtection, 7, h)
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v", err)
				}
			}
		})
	}
}

// TestSealIsFixed: the seal of a known record under a known key, so that releases
// agree.
func TestSealIsFixed(t *testing.T) {
	for _, pieces := range [][]int{{10000}, {1, 4095, 4096, 1808}, {5000, 5000}} {
		s := newSealer([]byte("0123456789abcdef"))
		s.sum(nil) // record 0
		data := bytes.Repeat([]byte("seal"), 2500)
		s.begin([]byte("header"))
		s.write([]byte("table"))
		s.cut()
		for _, n := range pieces {
			s.write(data[:n])
			data = data[n:]
		}
		const want = "0d8af69aa7d290e65f859bc45e43142a"
		if got := hex.EncodeToString(s.sum(nil)); got != want {
			t.Errorf("%v: %s, want %s", pieces, got, want)
		}
	}
}

// BenchmarkSeal tells what a page's seal costs: as a multiple of its CRC, and as a
// part of encrypting it with what TLS uses, in the same run.
func BenchmarkSeal(b *testing.B) {
	const pages = 64
	data := make([]byte, pages*PageSize)
	out := make([]byte, 0, 16<<10+16)
	gcm := newSealer(make([]byte, sealKeyBytes))
	works := []struct {
		name string
		do   func()
		took time.Duration
	}{
		{name: "crc", do: func() { _ = crc32.Update(0, castagnoli(), data) }},
		{name: "seal", do: func() { gcm.begin(nil); gcm.write(data); gcm.sum(nil) }},
		{name: "encrypt", do: func() {
			for p := data; len(p) > 0; p = p[16<<10:] { // a TLS record
				_ = gcm.gmac.Seal(out, gcm.nonce[:], p[:16<<10], nil)
			}
		}},
	}
	b.SetBytes(int64(len(data)))
	for b.Loop() { // taken in turns: what else the machine does falls on all of them
		for i := range works {
			start := time.Now()
			works[i].do()
			works[i].took += time.Since(start)
		}
	}
	b.ReportMetric(works[1].took.Seconds()/works[0].took.Seconds(), "seal/crc")
	b.ReportMetric(works[1].took.Seconds()/works[2].took.Seconds(), "seal/encrypt")
	for _, w := range works {
		b.ReportMetric(float64(w.took.Nanoseconds())/float64(b.N)/pages, w.name+"-ns/page")
	}
}

// BenchmarkEpochs sends epochs of 1024 pages over loopback and waits for each: over
// TLS, sealed and in plain, in turns, and tells how much longer than plain.
func BenchmarkEpochs(b *testing.B) {
	ca := benchCA(b)
	modes := []struct {
		name string
		l, d Transport
		a, z *Session
		took time.Duration
	}{
		{name: "plain", l: Transport{Mode: ModePlain}, d: Transport{Mode: ModePlain}},
		{name: "sealed", l: plainPages(ca["host-b"]), d: plainPages(ca["host-a"])},
		{name: "tls", l: ca["host-b"], d: ca["host-a"]},
	}
	for i := range modes {
		m := &modes[i]
		l, err := Listen(b.Context(), "127.0.0.1:0", ListenerOptions{Transport: m.l, Admit: admitAll})
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		if m.a, err = (&Dialer{Transport: m.d}).Dial(b.Context(), l.Addr().String(), testProtection, 7, testHello()); err != nil {
			b.Fatal(err)
		}
		defer m.a.Close()
		if m.z, err = l.Accept(b.Context()); err != nil {
			b.Fatal(err)
		}
		defer m.z.Close()
	}
	data, into := make([]byte, MaxPageData), make([]byte, MaxPageData)
	b.SetBytes(MaxPageData)
	for b.Loop() {
		for i := range modes {
			m := &modes[i]
			start := time.Now()
			failed := make(chan error, 1)
			go func() {
				failed <- m.a.Data.SendPages(b.Context(), testStamp, []Run{{Pages: MaxPageData / PageSize}}, [][]byte{data}, nil)
			}()
			if _, err := m.z.Data.RecvPages(b.Context(), func(int) []byte { return into }); err != nil {
				b.Fatal(err)
			}
			if err := <-failed; err != nil {
				b.Fatal(err)
			}
			m.took += time.Since(start)
		}
	}
	for _, m := range modes[1:] {
		b.ReportMetric(m.took.Seconds()/modes[0].took.Seconds(), m.name+"/plain")
	}
}
