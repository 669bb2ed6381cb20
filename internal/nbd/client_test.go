package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"
)

// served is a server on a Unix socket, with what Closed reported.
type served struct {
	*Server
	socket string
	closed chan error
}

// serve serves backends by name until the test ends.
func serve(t *testing.T, o Options, backends map[string]Backend) *served {
	t.Helper()
	s := &served{socket: filepath.Join(t.TempDir(), "nbd"), closed: make(chan error, 100)}
	if o.Closed == nil {
		o.Closed = func(_ string, err error) { s.closed <- err }
	}
	s.Server = NewServer(o)
	for name, b := range backends {
		if err := s.Add(name, b); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func (s *served) uri(export string) string { return "nbd+unix:///" + export + "?socket=" + s.socket }

// client speaks raw NBD; what does not go as a test wants fails it.
type client struct {
	t  *testing.T
	nc net.Conn
}

func (s *served) dial(t *testing.T) *client {
	t.Helper()
	nc, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &client{t, nc}
}

// greet gets through the handshake up to the options.
func (c *client) greet() *client {
	c.t.Helper()
	want := append([]byte("NBDMAGICIHAVEOPT"), 0, 3)
	if got := c.take(len(want)); !bytes.Equal(got, want) {
		c.t.Fatalf("greeting %q", got)
	}
	c.put(u32(3))
	return c
}

// choose enters transmission with structured replies or not.
func (c *client) choose(export string, structured bool) *client {
	c.t.Helper()
	c.greet()
	if structured {
		c.option(optStructuredReply, nil)
		c.wantReply(optStructuredReply, repAck)
	}
	c.option(optGo, goData(export))
	for c.reply(optGo) != repAck {
	}
	return c
}

func goData(export string, infos ...uint16) []byte {
	b := append(u32(uint32(len(export))), export...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(infos)))
	for _, i := range infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

func (c *client) put(parts ...[]byte) {
	c.t.Helper()
	if _, err := c.nc.Write(bytes.Join(parts, nil)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) take(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.nc, b); err != nil {
		c.t.Fatalf("after %d of %d bytes: %v", n, len(b), err)
	}
	return b
}

// wantClosed waits until the server has closed, and returns what came before.
func (c *client) wantClosed() []byte {
	c.t.Helper()
	b, err := io.ReadAll(c.nc)
	if err != nil && len(b) > 0 {
		c.t.Fatal(err)
	}
	return b
}

func optionBytes(option uint32, data []byte) []byte {
	return bytes.Join([][]byte{[]byte("IHAVEOPT"), u32(option), u32(uint32(len(data))), data}, nil)
}

func (c *client) option(option uint32, data []byte) {
	c.t.Helper()
	c.put(optionBytes(option, data))
}

// reply takes one reply to an option and returns its kind.
func (c *client) reply(option uint32) uint32 {
	c.t.Helper()
	kind, _ := c.replyData(option)
	return kind
}

func (c *client) replyData(option uint32) (uint32, []byte) {
	c.t.Helper()
	b := c.take(20)
	be := binary.BigEndian
	if be.Uint64(b) != magicRep || be.Uint32(b[8:]) != option {
		c.t.Fatalf("reply %x to option %d", b, option)
	}
	return be.Uint32(b[12:]), c.take(int(be.Uint32(b[16:])))
}

func (c *client) wantReply(option, kind uint32) {
	c.t.Helper()
	if got := c.reply(option); got != kind {
		c.t.Fatalf("option %d: reply %#x, want %#x", option, got, kind)
	}
}

func requestHead(r request) []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, magicRequest)
	b = be.AppendUint16(b, r.flags)
	b = be.AppendUint16(b, r.kind)
	b = be.AppendUint64(b, r.cookie)
	b = be.AppendUint64(b, r.off)
	return be.AppendUint32(b, r.length)
}

// wantSimple takes a simple reply.
func (c *client) wantSimple(cookie uint64, e errno) {
	c.t.Helper()
	if got, want := c.take(simpleReplyBytes), appendSimple(nil, e, cookie); !bytes.Equal(got, want) {
		c.t.Fatalf("reply %x, want %x", got, want)
	}
}

// chunk takes one chunk of a structured reply.
func (c *client) chunk(cookie uint64) (kind uint16, payload []byte) {
	c.t.Helper()
	b := c.take(chunkHeadBytes)
	be := binary.BigEndian
	if be.Uint32(b) != magicStructured || be.Uint16(b[4:]) != chunkDone || be.Uint64(b[8:]) != cookie {
		c.t.Fatalf("chunk %x", b)
	}
	return be.Uint16(b[6:]), c.take(int(be.Uint32(b[16:])))
}

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
