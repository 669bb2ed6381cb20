package replica

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"

	"github.com/virt-ft/virt-ft/pkg/zcstream"
)

// crcChunk is how much of a payload is read before its checksum is continued:
// little enough to be still in the cache.
const crcChunk = 256 << 10

// Frame is a received message. Data is set for Pages and DiskWrites only: the
// data of the runs that are not zero, in order, in memory that the allocator
// gave.
type Frame struct {
	Header
	Msg  Message
	Data []byte
}

// Conn is one of the two connections of a protection, as [Listener] and
// [Dialer] make it. Send, SendPages and SendDiskWrites may be called from any
// goroutine; receiving is for one goroutine at a time. An error of any of them,
// but for a context that ended between two messages, is final: close the Conn.
type Conn struct {
	raw        net.Conn // the TCP connection, also under TLS
	channel    Channel
	protection UUID
	version    uint8
	peer       string
	sender     *zcstream.Sender
	receiver   *zcstream.Receiver
	heads      sync.Pool // *[]byte, run tables on their way

	// Owned by the receiving goroutine.
	phase       phase
	head        [HeaderBytes]byte
	receiveDead error // set once a message was cut off in the middle

	closeOnce sync.Once
	closeErr  error
}

// newConn wraps stream, which is raw or TLS over raw. During the handshake
// protection may be zero: the first message received sets it.
func newConn(raw, stream net.Conn, ch Channel, protection UUID) *Conn {
	return &Conn{
		raw: raw, channel: ch, protection: protection, version: handshakeVersion,
		peer:   raw.RemoteAddr().String(),
		sender: zcstream.NewSender(stream), receiver: zcstream.NewReceiver(stream),
	}
}

// Protection returns the id that every message of the connection carries.
func (c *Conn) Protection() UUID { return c.protection }

// Channel tells which of the two connections this is.
func (c *Conn) Channel() Channel { return c.channel }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// Close closes the connection and interrupts blocked calls. It never blocks:
// no TLS farewell is sent, because every message is whole or refused, and Bye
// says goodbye. It is idempotent.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() { c.closeErr = c.raw.Close() })
	return c.closeErr
}

func (c *Conn) header(st Stamp) Header {
	return Header{Version: c.version, Protection: c.protection, Stamp: st}
}

// Send sends m. It returns when the kernel has taken it. Errors are
// *ConnError, or *FormatError when m itself is not allowed, in which case
// nothing was sent and the Conn stays usable.
func (c *Conn) Send(ctx context.Context, st Stamp, m Message) error {
	if kindOf(m.Type()).channel&c.channel == 0 {
		return &FormatError{Type: m.Type(), Field: "type", Reason: "is not allowed on the " + c.channel.String() + " connection"}
	}
	buf, err := AppendMessage(nil, c.header(st), m)
	if err != nil {
		return err
	}
	return connError("send", c.peer, c.sender.Send(ctx, nil, buf))
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
	bufs := make([][]byte, 0, 1+len(data))
	bufs = append(append(bufs, *head), data...)
	err = c.sender.Send(ctx, func(err error) {
		c.heads.Put(head)
		done(connError("send", c.peer, err))
	}, bufs...)
	return connError("send", c.peer, err)
}

// runsHead returns the header of m and its table for data, from the pool.
func (c *Conn) runsHead(st Stamp, m runsMessage, data [][]byte) (*[]byte, error) {
	if c.channel != DataChannel {
		return nil, &FormatError{Type: m.Type(), Field: "type", Reason: "is not allowed on the control connection"}
	}
	head, _ := c.heads.Get().(*[]byte)
	if head == nil {
		head = new([]byte)
	}
	buf, err := encodePayload(append((*head)[:0], make([]byte, HeaderBytes)...), m)
	*head = buf // keeps what it grew to
	if err != nil {
		c.heads.Put(head)
		return nil, err
	}
	crc, total := crc32.Checksum(buf[HeaderBytes:], castagnoli()), uint64(0)
	for _, d := range data {
		crc = crc32.Update(crc, castagnoli(), d)
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

// Recv receives the next message of a control connection, or of a data
// connection on which neither Pages nor DiskWrites are expected. Byte slices in it are the caller's.
func (c *Conn) Recv(ctx context.Context) (Frame, error) { return c.RecvPages(ctx, nil) }

// RecvPages receives the next message of a data connection: Pages, DiskWrites,
// Device, Output, EpochEnd or Error. For Pages and DiskWrites with data, alloc
// is called with its length, at most MaxPageData, and must return that many
// bytes, or nil to refuse; the data is read straight into them. On an error
// after alloc was called, Frame.Data still holds what it returned, for the
// caller to reclaim.
//
// Errors are *ConnError with a Kind. A ctx whose deadline passed counts as
// silence; when it passed between two messages, the Conn stays usable.
func (c *Conn) RecvPages(ctx context.Context, alloc func(n int) []byte) (Frame, error) {
	if c.receiveDead != nil {
		return Frame{}, c.receiveDead
	}
	n, err := c.receiver.ReadFull(ctx, c.head[:])
	if err != nil {
		err = connError("receive", c.peer, err)
		if n > 0 || ctx.Err() == nil {
			c.receiveDead = err
		}
		return Frame{}, err
	}
	f, err := c.receiveBody(ctx, alloc)
	if err != nil {
		if errors.Is(err, io.EOF) { // at the edge of a read, but within a message
			err = io.ErrUnexpectedEOF
		}
		err = connError("receive", c.peer, err)
		c.receiveDead = err
	}
	return f, err
}

// receiveBody decodes the header in c.head and reads what follows it.
func (c *Conn) receiveBody(ctx context.Context, alloc func(int) []byte) (Frame, error) {
	h, err := DecodeHeader(c.head[:])
	if err == nil {
		err = c.admit(h)
	}
	if err != nil {
		return Frame{}, err
	}
	if h.Type.hasRuns() {
		return c.receiveRuns(ctx, h, alloc)
	}
	payload := make([]byte, h.PayloadBytes) // bounded by DecodeHeader
	crc, err := c.readSummed(ctx, 0, payload)
	if err == nil {
		err = checkCRC(h, crc)
	}
	if err != nil {
		return Frame{}, err
	}
	m, err := DecodePayload(h.Type, payload)
	if err != nil {
		return Frame{}, err
	}
	return Frame{Header: h, Msg: m}, nil
}

// admit checks a header against the connection it came from, before anything
// is allocated for it.
func (c *Conn) admit(h Header) error {
	if !c.phase.allows(h.Type) {
		return &FormatError{Type: h.Type, Field: "type", Offset: 5, Reason: "has no place here (" + c.phase.String() + ")"}
	}
	if kindOf(h.Type).channel&c.channel == 0 {
		return &FormatError{Type: h.Type, Field: "type", Offset: 5, Reason: "is not allowed on the " + c.channel.String() + " connection"}
	}
	if h.Version != c.version { // during the handshake: handshakeVersion
		return &FormatError{Type: h.Type, Field: "version", Offset: 4, Reason: fmt.Sprintf("%d, this session speaks %d", h.Version, c.version)}
	}
	if c.protection != (UUID{}) && h.Protection != c.protection {
		return &FormatError{Type: h.Type, Field: "protection", Offset: 16, Reason: fmt.Sprintf("%s, this session is of %s", h.Protection, c.protection)}
	}
	return nil
}

// receiveRuns reads table and data of Pages or DiskWrites.
func (c *Conn) receiveRuns(ctx context.Context, h Header, alloc func(int) []byte) (Frame, error) {
	bad := func(field string, off int, format string, args ...any) error {
		return &FormatError{Type: h.Type, Field: field, Offset: off, Reason: fmt.Sprintf(format, args...)}
	}
	if h.PayloadBytes < 4 {
		return Frame{}, bad("runs", 0, "payload of %d bytes", h.PayloadBytes)
	}
	var count [4]byte
	crc, err := c.readSummed(ctx, 0, count[:])
	if err != nil {
		return Frame{}, err
	}
	n := uint64(count[0])<<24 | uint64(count[1])<<16 | uint64(count[2])<<8 | uint64(count[3])
	if n > MaxRuns || 4+n*runBytes > uint64(h.PayloadBytes) {
		return Frame{}, bad("runs", 0, "%d runs in %d bytes, the limit is %d", n, h.PayloadBytes, MaxRuns)
	}
	table := make([]byte, 4+n*runBytes)
	copy(table, count[:])
	if crc, err = c.readSummed(ctx, crc, table[4:]); err != nil {
		return Frame{}, err
	}
	m, err := DecodePayload(h.Type, table)
	if err != nil {
		return Frame{}, err
	}
	want := int(m.(runsMessage).announced()) // in bounds: DecodePayload checked
	if len(table)+want != int(h.PayloadBytes) {
		return Frame{}, bad("data", len(table), "%d bytes, the runs announce %d", int(h.PayloadBytes)-len(table), want)
	}
	f := Frame{Header: h, Msg: m}
	if want > 0 {
		if alloc == nil {
			return Frame{}, bad("type", 5, "was not expected")
		}
		if f.Data = alloc(want); len(f.Data) != want {
			return f, fmt.Errorf("no memory of %d bytes for %s", want, h.Type)
		}
	}
	if crc, err = c.readSummed(ctx, crc, f.Data); err != nil {
		return f, err
	}
	return f, checkCRC(h, crc)
}

// readSummed fills p and returns crc continued over it.
func (c *Conn) readSummed(ctx context.Context, crc uint32, p []byte) (uint32, error) {
	for len(p) > 0 {
		chunk := p[:min(len(p), crcChunk)]
		if _, err := c.receiver.ReadFull(ctx, chunk); err != nil {
			return 0, err
		}
		crc = crc32.Update(crc, castagnoli(), chunk)
		p = p[len(chunk):]
	}
	return crc, nil
}

func checkCRC(h Header, crc uint32) error {
	if crc != h.PayloadCRC {
		return &FormatError{Type: h.Type, Field: "payload CRC", Offset: 12, Reason: fmt.Sprintf("%#08x, computed %#08x: corrupted on the way", h.PayloadCRC, crc)}
	}
	return nil
}
