package replica

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestStreamOf: a region is on one stream, any aligned group of regions on as many
// streams as there are, and neither strides nor single regions of many blocks favour
// one stream by much.
func TestStreamOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, MaxStreams).Draw(t, "streams")
		block, region := rapid.Uint16().Draw(t, "block"), rapid.Uint64Max(1<<42).Draw(t, "region")
		want := StreamOf(block, region*RegionBytes, n)
		if in := rapid.Uint64Max(RegionBytes-1).Draw(t, "within"); want < 0 || want >= n || StreamOf(block, region*RegionBytes+in, n) != want {
			t.Fatalf("region %d of %d is on streams %d and %d of %d", region, block, want, StreamOf(block, region*RegionBytes+in, n), n)
		}
		seen := map[int]bool{}
		for i := range uint64(n) {
			seen[StreamOf(block, (region/uint64(n)*uint64(n)+i)*RegionBytes, n)] = true
		}
		if len(seen) != n {
			t.Fatalf("%d regions from %d are on %d streams", n, region, len(seen))
		}
	})
	if StreamOf(7, 1<<40, 0) != 0 || StreamOf(7, 1<<40, -1) != 0 {
		t.Error("no streams are one stream")
	}
	const regions = 4096
	for n := 2; n <= MaxStreams; n++ {
		for stride := uint64(1); stride <= 4096; stride *= 2 {
			loads, ofBlocks := make([]int, n), make([]int, n)
			for i := range uint64(regions) {
				loads[StreamOf(0, i*stride*RegionBytes, n)]++
				ofBlocks[StreamOf(uint16(i), stride*RegionBytes, n)]++
			}
			for i := range n {
				for what, load := range map[string]int{"stride": loads[i], "blocks": ofBlocks[i]} {
					if share := float64(load) * float64(n) / regions; share < 0.75 || share > 1.25 {
						t.Errorf("%s, %d regions apart: stream %d of %d carries %.2f of its share", what, stride, i, n, share)
					}
				}
			}
		}
	}
}

// TestSessionsOfStreams: whatever is wanted and granted, both sides have the same
// connections in the same order, and Close ends all of them.
func TestSessionsOfStreams(t *testing.T) {
	ca := newCA(t, "CA")
	for mode, tr := range map[string]struct{ l, d Transport }{
		"plain":  {Transport{Mode: ModePlain}, Transport{Mode: ModePlain}},
		"tls":    {ca.transport(t, "host-b"), ca.transport(t, "host-a")},
		"sealed": {plainPages(ca.transport(t, "host-b")), plainPages(ca.transport(t, "host-a"))},
	} {
		for _, c := range []struct {
			wanted  uint8
			granted int
			want    int
		}{{0, 0, 1}, {1, 8, 1}, {4, 0, 4}, {4, 2, 2}, {255, 0, MaxStreams}, {2, 99, 2}} {
			l := listen(t, ListenerOptions{Transport: tr.l, Streams: c.granted})
			d, h := Dialer{Transport: tr.d}, testHello()
			h.Streams = c.wanted
			a, err := d.Dial(t.Context(), l.Addr().String(), testProtection, 7, h)
			if err != nil {
				t.Fatalf("%s, %+v: %v", mode, c, err)
			}
			defer a.Close()
			b, err := l.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if len(a.Streams) != c.want || len(b.Streams) != c.want || a.Data != a.Streams[0] || b.Data != b.Streams[0] || int(a.Welcome.Streams) != c.want {
				t.Fatalf("%s, %+v: %d and %d streams", mode, c, len(a.Streams), len(b.Streams))
			}
			exchange(t, a, b)
			for i := range a.Streams {
				if a.Streams[i].Stream() != i || b.Streams[i].Stream() != i || b.Streams[i].Channel() != DataChannel {
					t.Errorf("stream %d is %d and %d", i, a.Streams[i].Stream(), b.Streams[i].Stream())
				}
				m, data := []Run{{Block: uint16(i), Pages: 1}}, bytes.Repeat([]byte{byte(i)}, PageSize)
				if err := a.Streams[i].SendPages(t.Context(), testStamp, m, [][]byte{data}, nil); err != nil {
					t.Fatal(err)
				}
				f, err := b.Streams[i].RecvPages(t.Context(), func(n int) []byte { return make([]byte, n) })
				if err != nil || !bytes.Equal(f.Data, data) || f.Msg.(*Pages).Runs[0].Block != uint16(i) {
					t.Fatalf("stream %d: %+v, %v", i, f.Header, err)
				}
				if st := a.Streams[i].StreamStats(); st.Bytes < PageSize && !strings.Contains(st.Mode, "not built") {
					t.Errorf("stream %d: %+v", i, st)
				}
			}
			a.Close()
			for _, conn := range append(b.Streams, b.Control) {
				if _, err := conn.Recv(t.Context()); !errors.Is(err, ErrPeerClosed) {
					t.Errorf("%v", err)
				}
			}
		}
	}
}

// TestWhatGoesWhere: what a connection refuses to send, it refuses to receive too.
func TestWhatGoesWhere(t *testing.T) {
	only := func(want ...Type) func(Type) bool {
		return func(typ Type) bool {
			for _, w := range want {
				if w == typ {
					return true
				}
			}
			return false
		}
	}
	data := only(TypePages, TypePackedPages, TypeDiskWrites, TypeDevice, TypeOutput, TypeEpochEnd, TypeError)
	for place, c := range map[string]struct {
		conn   func() (*Conn, *wire)
		allows func(Type) bool
	}{
		"control": {func() (*Conn, *wire) { return wireConn(ControlChannel) }, func(typ Type) bool {
			return typ == TypeError || !data(typ) && typ != TypeStreamEnd && typ != TypeQuestion && typ != TypeAnswer
		}},
		"asking": {func() (*Conn, *wire) { return wireFor(TypeQuestion) }, only(TypeQuestion, TypeAnswer)},
		"first":  {func() (*Conn, *wire) { return wireStream(0) }, data},
		"last":   {func() (*Conn, *wire) { return wireStream(MaxStreams - 1) }, only(TypePages, TypePackedPages, TypeStreamEnd)},
	} {
		for typ := Type(1); typ.Valid(); typ++ {
			if kindOf(typ).growable {
				continue // of the handshake
			}
			conn, w := c.conn()
			err := conn.allows(typ)
			if (err == nil) != c.allows(typ) {
				t.Errorf("%s on %s: %v", typ, place, err)
			}
			h := testHeader()
			h.Type, h.PayloadBytes = typ, typ.MaxPayload()
			w.Buffer.Write(h.append(nil))
			_, got := conn.Recv(t.Context())
			var fe *FormatError
			if refused := errors.As(got, &fe) && fe.Field == "type"; refused == c.allows(typ) && typ.MaxPayload() > 0 {
				t.Errorf("%s received on %s: %v", typ, place, got)
			}
		}
	}
	conn, w := wireStream(1)
	for _, m := range []Message{&EpochEnd{}, &Device{}, &Ack{}, &Error{Code: CodeInternal}} {
		if err := conn.Send(t.Context(), testStamp, m); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "further data") {
			t.Errorf("%s: %v", m.Type(), err)
		}
	}
	if err := conn.SendDiskWrites(t.Context(), testStamp, []DiskRun{{Bytes: 1}}, [][]byte{{1}}, nil); !errors.Is(err, ErrMalformed) || w.Len() != 0 {
		t.Errorf("DiskWrites: %v", err)
	}
}

// streamHello is a Hello for data connection i of the session of w.
func streamHello(w *Welcome, i uint8) Hello {
	h := testHello()
	h.Channel, h.VersionMin, h.VersionMax, h.Token, h.Streams, h.Stream = DataChannel, VersionMin, VersionMax, w.Token, w.Streams, i
	return h
}

// openControl opens a control connection that wants streams data connections.
func openControl(t *testing.T, l *Listener, streams uint8) (*Conn, *Welcome) {
	t.Helper()
	h := testHello()
	h.Channel, h.VersionMin, h.VersionMax, h.Streams = ControlChannel, VersionMin, VersionMax, streams
	f, c, err := rawHello(t, l.Addr().String(), testProtection, h)
	if err != nil {
		t.Fatal(err)
	}
	w, ok := f.Msg.(*Welcome)
	if !ok || w.Streams != streams {
		t.Fatalf("%+v", f.Msg)
	}
	return c, w
}

// TestStreamsOutOfOrder: data connections may come in any order, and the session
// comes with the last of them.
func TestStreamsOutOfOrder(t *testing.T) {
	l := listen(t, ListenerOptions{})
	_, w := openControl(t, l, 3)
	for _, i := range []uint8{2, 0, 1} {
		f, c, err := rawHello(t, l.Addr().String(), testProtection, streamHello(w, i))
		if got, ok := f.Msg.(*Welcome); err != nil || !ok || got.Streams != 3 || got.Token != (Token{}) || got.Channel != DataChannel {
			t.Fatalf("stream %d: %+v, %v", i, f.Msg, err)
		}
		if n := l.strangers.count(); n > 0 { // or a dialer's next connection may be one too many
			t.Errorf("stream %d has its answer and takes one of %d handshakes", i, n)
		}
		c.phase, c.version, c.stream = established, VersionMax, int(i)
		if err := c.SendPages(t.Context(), testStamp, []Run{{Block: uint16(i), Pages: 1, Flags: RunZero}}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	s, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, c := range s.Streams {
		if f, err := c.Recv(t.Context()); err != nil || f.Msg.(*Pages).Runs[0].Block != uint16(i) {
			t.Errorf("stream %d: %+v, %v", i, f.Msg, err)
		}
	}
	// All have come: the token is used up.
	if f, _, err := rawHello(t, l.Addr().String(), testProtection, streamHello(w, 1)); err != nil || f.Msg.(*Refuse).Code != CodeToken {
		t.Errorf("%+v, %v", f.Msg, err)
	}
}

// TestStreamRefusals: a data connection that has no place in its session is refused,
// and ends it at once, with all connections that it had.
func TestStreamRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		id     UUID
		change func(h *Hello)
		code   Code
		ends   bool
	}{
		"twice":         {testProtection, func(h *Hello) { h.Stream = 0 }, CodeProtocol, true},
		"never granted": {testProtection, func(h *Hello) { h.Stream = 3 }, CodeProtocol, true},
		"far too many":  {testProtection, func(h *Hello) { h.Stream = 255 }, CodeProtocol, true},
		"another's":     {UUID{9}, func(*Hello) {}, CodeToken, true},
		"wrong token":   {testProtection, func(h *Hello) { h.Token[5]++ }, CodeToken, false},
		"no token":      {testProtection, func(h *Hello) { h.Token = Token{} }, CodeToken, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, ListenerOptions{HandshakeTimeout: time.Hour})
			addr := l.Addr().String()
			control, w := openControl(t, l, 3)
			_, first, err := rawHello(t, addr, testProtection, streamHello(w, 0))
			if err != nil {
				t.Fatal(err)
			}
			h := streamHello(w, 1)
			c.change(&h)
			f, refused, err := rawHello(t, addr, c.id, h)
			r, ok := f.Msg.(*Refuse)
			if err != nil || !ok || r.Code != c.code || r.Remedy == "" {
				t.Fatalf("%+v, %v", f.Msg, err)
			}
			if _, err := refused.Recv(t.Context()); !errors.Is(err, ErrPeerClosed) {
				t.Errorf("%v", err)
			}
			if !c.ends { // the rest may still come
				for _, i := range []uint8{1, 2} {
					if f, _, err := rawHello(t, addr, testProtection, streamHello(w, i)); err != nil || f.Type != TypeWelcome {
						t.Fatalf("stream %d: %+v, %v", i, f.Msg, err)
					}
				}
				s, err := l.Accept(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
				return
			}
			for _, conn := range []*Conn{control, first} {
				if _, err := conn.Recv(t.Context()); !errors.Is(err, ErrPeerClosed) {
					t.Errorf("%v", err)
				}
			}
			if f, _, err := rawHello(t, addr, testProtection, streamHello(w, 2)); err != nil || f.Msg.(*Refuse).Code != CodeToken {
				t.Errorf("the token is still good: %+v, %v", f.Msg, err)
			}
		})
	}
}

// TestStreamThatNeverComes: after the handshake timeout the session and its other
// connections are gone, and the listener has forgotten them.
func TestStreamThatNeverComes(t *testing.T) {
	l := listen(t, ListenerOptions{HandshakeTimeout: 100 * time.Millisecond})
	control, w := openControl(t, l, 2)
	_, first, err := rawHello(t, l.Addr().String(), testProtection, streamHello(w, 1))
	if err != nil {
		t.Skipf("the machine is too slow to open a second connection in the handshake timeout: %v", err)
	}
	for _, c := range []*Conn{control, first} {
		if _, err := c.Recv(t.Context()); !errors.Is(err, ErrPeerClosed) {
			t.Errorf("%v", err)
		}
	}
	if err := l.Close(); err != nil { // waits for the handshakes
		t.Error(err)
	}
	if len(l.pending) != 0 || len(l.unpaired) != 0 || l.strangers.count() != 0 {
		t.Errorf("%d tokens, %d control connections, %d handshakes are left", len(l.pending), len(l.unpaired), l.strangers.count())
	}
}

// TestManySessionsOfManyStreams dials as many sessions at once as a listener takes
// handshakes: none of their connections may be one too many.
func TestManySessionsOfManyStreams(t *testing.T) {
	const sessions = 6
	l := listen(t, ListenerOptions{MaxHandshakes: sessions * addressShare}) // all from one address
	var wg sync.WaitGroup
	var dialed atomic.Int32
	for i := range sessions {
		wg.Go(func() {
			h := testHello()
			h.Streams = MaxStreams
			s, err := plainDialer().Dial(t.Context(), l.Addr().String(), UUID{byte(i + 1)}, 7, h)
			if err != nil {
				t.Errorf("Dial: %v", err)
				return
			}
			dialed.Add(1)
			s.Close()
		})
	}
	wg.Wait()
	for range dialed.Load() {
		s, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Streams) != MaxStreams {
			t.Errorf("%d streams", len(s.Streams))
		}
		s.Close()
	}
}

// answering accepts connections and answers each Hello with what answer makes of it.
func answering(t *testing.T, answer func(h *Hello) Message) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			c := newConn(raw, raw, DataChannel, UUID{})
			c.phase = expectHello
			f, err := c.Recv(context.Background())
			if err == nil {
				c.protection = f.Protection
				_ = c.Send(context.Background(), Stamp{}, answer(f.Msg.(*Hello)))
				c.phase = established
				wg.Go(func() { _, _ = c.Recv(context.Background()); c.Close() }) // until the dialer closes it
			}
		}
	})
	return ln.Addr().String()
}

// TestListenersThatLie: a dialer believes no number of streams that it did not ask
// for, and no change of mind.
func TestListenersThatLie(t *testing.T) {
	welcome := func(h *Hello, streams uint8) *Welcome {
		w, _ := admitAll(context.Background(), Peer{}, h)
		w.Version, w.Channel, w.Streams = VersionMax, h.Channel, streams
		if h.Channel == ControlChannel {
			w.Token = Token{1}
		}
		return w
	}
	for name, answer := range map[string]func(h *Hello) Message{
		"none":     func(h *Hello) Message { return welcome(h, 0) },
		"too many": func(h *Hello) Message { return welcome(h, h.Streams+1) },
		"changes": func(h *Hello) Message {
			if h.Channel == DataChannel && h.Stream == 1 {
				return welcome(h, 1)
			}
			return welcome(h, 2)
		},
		"another version": func(h *Hello) Message {
			w := welcome(h, 2)
			w.Version++
			return w
		},
		"refuses the second": func(h *Hello) Message {
			if h.Stream == 1 {
				return &Refuse{Code: CodeBusy, Reason: "enough"}
			}
			return welcome(h, 2)
		},
	} {
		h := testHello()
		h.Streams = 2
		_, err := plainDialer().Dial(t.Context(), answering(t, answer), testProtection, 7, h)
		var refused *RefusedError
		if name == "refuses the second" {
			if !errors.As(err, &refused) || refused.Code != CodeBusy {
				t.Errorf("%s: %v", name, err)
			}
		} else if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestVersion1: what version 1 said in a handshake is still understood, so that it
// can be told why it is refused.
func TestVersion1(t *testing.T) {
	for _, name := range []string{"Hello", "Welcome"} {
		text, err := os.ReadFile(filepath.Join("testdata", name+"-v1.hex"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
		if err != nil {
			t.Fatal(err)
		}
		h, err := DecodeHeader(b)
		if err != nil || h.Type.String() != name {
			t.Fatalf("%s: %+v, %v", name, h, err)
		}
		m, err := DecodePayload(h.Type, b[HeaderBytes:])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		switch m := m.(type) {
		case *Hello:
			if m.Streams != 0 || m.Stream != 0 || m.Software != "0.1" {
				t.Errorf("%+v", m)
			}
		case *Welcome:
			if m.Streams != 0 || m.Software != "0.1" {
				t.Errorf("%+v", m)
			}
		}
	}
	l := listen(t, ListenerOptions{})
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	old := testHello()
	old.Channel, old.VersionMin, old.VersionMax = ControlChannel, 1, 1
	h := testHeader()
	h.Version = handshakeVersion
	b, err := AppendMessage(nil, h, &old)
	if err != nil {
		t.Fatal(err)
	}
	b = b[:len(b)-grownBytes(TypeHello)]
	b[11] -= byte(grownBytes(TypeHello)) // the payload's length
	if _, err := raw.Write(fixPayloadCRC(b)); err != nil {
		t.Fatal(err)
	}
	c := newConn(raw, raw, ControlChannel, testProtection)
	c.phase = expectAnswer
	if f, err := c.Recv(t.Context()); err != nil || f.Msg.(*Refuse).Code != CodeVersion {
		t.Errorf("%+v, %v", f.Msg, err)
	}
}

func TestHelloOfAStream(t *testing.T) {
	h := testHello()
	h.Channel, h.VersionMin, h.VersionMax, h.Stream = ControlChannel, 2, 2, 1
	var fe *FormatError
	if _, err := AppendMessage(nil, testHeader(), &h); !errors.As(err, &fe) || fe.Field != "stream" {
		t.Errorf("a control connection that is a stream: %v", err)
	}
}
