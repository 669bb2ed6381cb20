package replica

import (
	"context"
	"crypto/tls"
	"fmt"
	"hash/crc32"
	"net"
	"sync"

	"github.com/virt-ft/virt-ft/pkg/zcstream"
)

// Frame is a received message. Data is set by [Conn.RecvPages] only, for Pages and
// DiskWrites: the data of the runs that are not zero, in order, in memory that
// the allocator gave.
type Frame struct {
	Header
	Msg    Message
	Data   []byte
	Packed int // bytes that the data took on the wire, if it travelled packed: then Type is TypePackedPages and Msg a *Pages
}

// Conn is one of the connections of a protection, as [Listener] and [Dialer] make
// it. Sending may be done from any goroutine; receiving is for one goroutine at a
// time. An error of any of them, but for a context that ended between two
// messages, is final: close the Conn.
type Conn struct {
	raw        net.Conn  // the TCP connection, also under TLS
	tls        *tls.Conn // over it; nil in plain
	channel    Channel
	stream     int  // which of the data connections, from 0
	asking     bool // questions are answered on it, and nothing else is said
	protection UUID
	version    uint8
	peer       string
	sender     *zcstream.Sender
	receiver   *zcstream.Receiver
	heads      sync.Pool     // *[]byte, run tables on their way
	packs      sync.Pool     // *[]byte, packed messages on their way
	out        *sealer       // of what is sent; nil: CRCs
	sending    chan struct{} // holds one token: whose turn it is, where records are sealed

	// Owned by the receiving goroutine.
	phase       phase
	head        [HeaderBytes]byte
	in          inbox
	receiveDead error // set once a message was cut off in the middle

	close     func() error
	closeOnce sync.Once
	closeErr  error
}

// newConn wraps stream, which is raw or TLS over raw. During the handshake
// protection may be zero: the first message received sets it.
func newConn(raw, stream net.Conn, ch Channel, protection UUID) *Conn {
	c := &Conn{
		raw: raw, channel: ch, protection: protection, version: handshakeVersion,
		peer:   raw.RemoteAddr().String(),
		sender: zcstream.NewSender(stream), receiver: zcstream.NewReceiver(stream),
	}
	c.close = func() error {
		err := c.sender.Close() // which has the kernel give back what it was lent
		_ = c.receiver.Close()  // only its descriptor: the connection is closed
		return err
	}
	if t, ok := stream.(*tls.Conn); ok {
		c.tls = t
		c.close = raw.Close // without TLS's farewell, which may block
	}
	return c
}

// Protection returns the id that every message of the connection carries.
func (c *Conn) Protection() UUID { return c.protection }

// Channel tells whether this is the control connection or one for data.
func (c *Conn) Channel() Channel { return c.channel }

// Stream tells which of the session's data connections this is, from 0.
func (c *Conn) Stream() int { return c.stream }

// place is the connection's kind as the table of types knows it.
func (c *Conn) place() Channel {
	switch {
	case c.asking:
		return asking
	case c.channel == DataChannel && c.stream > 0:
		return furtherData
	}
	return c.channel
}

// allows refuses a message type that has no place on this kind of connection.
func (c *Conn) allows(t Type) error {
	if kindOf(t).channel&c.place() == 0 {
		return &FormatError{Type: t, Field: "type", Offset: 5, Reason: "is not allowed on the " + c.place().String() + " connection"}
	}
	return nil
}

// StreamStats returns what was sent on the connection, and how. It may be called
// at any time.
func (c *Conn) StreamStats() zcstream.Stats { return c.sender.Stats() }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// Close closes the connection and interrupts blocked calls. It never blocks:
// no TLS farewell is sent, because every message is whole or refused, and Bye
// says goodbye. It is idempotent.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() { c.closeErr = c.close() })
	return c.closeErr
}

func (c *Conn) header(st Stamp) Header {
	return Header{Version: c.version, Protection: c.protection, Stamp: st}
}

// Send sends m. It returns when the kernel has taken it. Errors are
// *ConnError, or *FormatError when m itself is not allowed, in which case
// nothing was sent and the Conn stays usable.
func (c *Conn) Send(ctx context.Context, st Stamp, m Message) error {
	if err := c.allows(m.Type()); err != nil {
		return err
	}
	buf, err := appendMessage(nil, c.header(st), m, c.out != nil)
	if err != nil {
		return err
	}
	return connError("send", c.peer, c.sealedSend(ctx, nil, HeaderBytes, buf))
}

// SendPages sends runs and the data of those that are not zero: data holds
// their pages in order, cut in any way. Page data is not copied on its way to
// the kernel (TLS apart): data belongs to the Conn until done has been called,
// exactly once, also on failure; see [zcstream.Sender.Send] for what done may
// do. runs may be reused at once. Finding zero pages is the caller's part.
func (c *Conn) SendPages(ctx context.Context, st Stamp, runs []Run, data [][]byte, done func(error)) error {
	return c.sendRuns(ctx, st, &Pages{Runs: runs}, data, done)
}

// SendDiskWrites sends runs and the data of those that are not zero. It lends
// data to the Conn exactly as SendPages does.
func (c *Conn) SendDiskWrites(ctx context.Context, st Stamp, runs []DiskRun, data [][]byte, done func(error)) error {
	return c.sendRuns(ctx, st, &DiskWrites{Runs: runs}, data, done)
}

func (c *Conn) sendRuns(ctx context.Context, st Stamp, m runsMessage, data [][]byte, done func(error)) error {
	if done == nil {
		done = func(error) {}
	}
	head, err := c.runsHead(st, m, data)
	if err != nil {
		done(err)
		return err
	}
	bufs := make([][]byte, 0, 2+len(data))
	bufs = append(append(bufs, *head), data...)
	err = c.sealedSend(ctx, func(err error) {
		c.heads.Put(head)
		done(connError("send", c.peer, err))
	}, len(*head), bufs...)
	return connError("send", c.peer, err)
}

// runsHead returns the header of m and its table for data, from the pool.
func (c *Conn) runsHead(st Stamp, m runsMessage, data [][]byte) (*[]byte, error) {
	head, err := c.startRuns(&c.heads, m)
	if err != nil {
		return nil, err
	}
	buf := *head
	crc, total := c.sum(0, buf[HeaderBytes:]), uint64(0)
	for _, d := range data {
		crc = c.sum(crc, d)
		total += uint64(len(d))
	}
	if want := m.announced(); total != want {
		c.heads.Put(head)
		return nil, &FormatError{Type: m.Type(), Field: "data", Reason: fmt.Sprintf("%d bytes, the runs announce %d", total, want)}
	}
	h := c.header(st)
	h.Type, h.PayloadBytes, h.PayloadCRC = m.Type(), uint32(len(buf)-HeaderBytes)+uint32(total), crc
	h.append(buf[:0])
	return head, nil
}

// sum returns crc continued over p; 0 where a seal takes its place.
func (c *Conn) sum(crc uint32, p []byte) uint32 {
	if c.out != nil {
		return 0
	}
	return crc32.Update(crc, castagnoli(), p)
}

// startRuns returns room for a header and what m has before its data, from pool,
// in which it belongs again when it has been sent.
func (c *Conn) startRuns(pool *sync.Pool, m runsMessage) (*[]byte, error) {
	if err := c.allows(m.Type()); err != nil {
		return nil, err
	}
	head, _ := pool.Get().(*[]byte)
	if head == nil {
		head = new([]byte)
	}
	buf, err := encodePayload(append((*head)[:0], make([]byte, HeaderBytes)...), m)
	*head = buf // keeps what it grew to
	if err != nil {
		pool.Put(head)
		return nil, err
	}
	return head, nil
}

// SendPacked sends runs whose data of rawBytes, at most MaxPageData, a [Packer]
// made packed of. It returns when runs and packed may be reused: packed is copied
// once, which costs little beside the packing. Errors are those of Send.
func (c *Conn) SendPacked(ctx context.Context, st Stamp, runs []Run, rawBytes int, packed []byte) error {
	m := &PackedPages{Pages{runs}, codecZstd}
	msg, err := c.startRuns(&c.packs, m)
	if err != nil {
		return err
	}
	want := m.announced()
	if rawBytes < 0 || uint64(rawBytes) != want || len(packed) == 0 || len(packed) > rawBytes {
		c.packs.Put(msg)
		return &FormatError{Type: m.Type(), Field: "packed data", Reason: fmt.Sprintf("%d bytes of %d, the runs announce %d", len(packed), rawBytes, want)}
	}
	tableEnd := len(*msg)
	*msg = append(*msg, packed...)
	buf := *msg
	h := c.header(st)
	h.Type, h.PayloadBytes, h.PayloadCRC = m.Type(), uint32(len(buf)-HeaderBytes), c.sum(0, buf[HeaderBytes:])
	h.append(buf[:0])
	err = c.sealedSend(ctx, func(error) { c.packs.Put(msg) }, tableEnd, buf)
	return connError("send", c.peer, err)
}
