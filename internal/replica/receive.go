package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// crcChunk is how much of a payload is read before its checksum is continued:
// little enough to be still in the cache.
const crcChunk = 256 << 10

// vecMax is how many pieces are read at once: what the kernel takes (UIO_MAXIOV).
const vecMax = 1024

// inbox is what a Conn reuses from message to message. It grows to what messages
// need, at most their bounds.
type inbox struct {
	table  []byte    // what comes before the data of a message with runs
	packed []byte    // packed data
	raw    []byte    // the same unpacked, where its place is in several pieces
	unpack *unpacker // made with the first packed message
	seal   *sealer   // nil: CRCs
	sealed [sealBytes]byte
}

// sum takes p into what the message is checked with.
func (in *inbox) sum(crc uint32, p []byte) uint32 {
	if in.seal != nil {
		in.seal.write(p)
		return 0
	}
	return crc32.Update(crc, castagnoli(), p)
}

// resized returns *b with n bytes, whose contents do not matter.
func resized(b *[]byte, n int) []byte {
	if cap(*b) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return *b
}

// Recv receives the next message of a control connection, or of a data
// connection on which nothing with runs is expected. Byte slices in it are the
// caller's.
func (c *Conn) Recv(ctx context.Context) (Frame, error) { return c.RecvInto(ctx, nil) }

// RecvPages receives the next message of a data connection: Pages, DiskWrites,
// Device, Output, EpochEnd or Error; on others than the first, Pages or
// StreamEnd. For Pages and DiskWrites with data, alloc is called with its length,
// at most MaxPageData, and must return that many bytes, or nil to refuse; the data
// is read or unpacked straight into them. On an error after alloc was called,
// Frame.Data still holds what it returned, for the caller to reclaim.
//
// Errors are *ConnError with a Kind. A ctx whose deadline passed counts as
// silence; when it passed between two messages, the Conn stays usable.
func (c *Conn) RecvPages(ctx context.Context, alloc func(n int) []byte) (Frame, error) {
	if alloc == nil {
		return c.RecvInto(ctx, nil)
	}
	var given []byte
	f, err := c.RecvInto(ctx, func(f Frame, n int) ([][]byte, error) {
		if given = alloc(n); len(given) != n {
			return nil, fmt.Errorf("no memory of %d bytes for %s", n, f.Type)
		}
		return [][]byte{given}, nil
	})
	f.Data = given
	return f, err
}

// Place returns where the n bytes of data of f go, 1 to MaxPageData, in pieces that
// are n bytes together. f has its header and its message, *Pages or *DiskWrites.
type Place func(f Frame, n int) ([][]byte, error)

// RecvInto is RecvPages with a place for each run. place checks the runs
// ([CheckRuns]); an error of it ends the connection. Packed data is unpacked
// through memory of the Conn's own, at most twice MaxPageData; other data is read
// straight into the pieces.
//
// That is before its checksum can be known. On an error the pieces hold anything:
// place may lead only to memory that is of no use until something later says
// that it is whole. RecvInto keeps neither the pieces nor the slice of them.
func (c *Conn) RecvInto(ctx context.Context, place Place) (Frame, error) {
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
	f, err := c.receiveBody(ctx, place)
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
func (c *Conn) receiveBody(ctx context.Context, place Place) (Frame, error) {
	h, err := DecodeHeader(c.head[:])
	if err == nil {
		err = c.admit(h)
	}
	if err != nil {
		return Frame{}, err
	}
	if c.in.seal != nil {
		c.in.seal.begin(c.head[:])
	}
	if h.Type.hasRuns() {
		return c.receiveRuns(ctx, h, place)
	}
	payload := make([]byte, h.PayloadBytes) // bounded by DecodeHeader
	crc, err := c.readSummed(ctx, 0, payload)
	if err == nil {
		err = c.checkSum(ctx, h, crc)
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
	if err := c.allows(h.Type); err != nil {
		return err
	}
	if h.Version != c.version { // during the handshake: handshakeVersion
		return &FormatError{Type: h.Type, Field: "version", Offset: 4, Reason: fmt.Sprintf("%d, this session speaks %d", h.Version, c.version)}
	}
	if c.protection != (UUID{}) && h.Protection != c.protection {
		return &FormatError{Type: h.Type, Field: "protection", Offset: 16, Reason: fmt.Sprintf("%s, this session is of %s", h.Protection, c.protection)}
	}
	return nil
}

// receiveRuns reads Pages, PackedPages or DiskWrites.
func (c *Conn) receiveRuns(ctx context.Context, h Header, place Place) (Frame, error) {
	crc, err := c.readTable(ctx, h)
	if err != nil {
		return Frame{}, err
	}
	m, err := DecodePayload(h.Type, c.in.table) // keeps nothing of it
	if err != nil {
		return Frame{}, err
	}
	want := int(m.(runsMessage).announced()) // in bounds: DecodePayload checked
	f := Frame{Header: h, Msg: m}
	if p, packed := m.(*PackedPages); packed {
		f.Msg = &p.Pages
		return c.receivePacked(ctx, f, crc, want, place)
	}
	if rest := int(h.PayloadBytes) - len(c.in.table); rest != want {
		return Frame{}, &FormatError{Type: h.Type, Field: "data", Offset: len(c.in.table), Reason: fmt.Sprintf("%d bytes, the runs announce %d", rest, want)}
	}
	if want > 0 {
		pieces, err := placed(place, f, want)
		if err == nil {
			crc, err = c.readPieces(ctx, crc, pieces)
		}
		if err != nil {
			return f, err
		}
	}
	return f, c.checkSum(ctx, h, crc)
}

// readTable reads what comes before the data, into the inbox.
func (c *Conn) readTable(ctx context.Context, h Header) (crc uint32, err error) {
	tail := 0
	if h.Type == TypePackedPages {
		tail = codecBytes
	}
	if int(h.PayloadBytes) < 4+tail {
		return 0, &FormatError{Type: h.Type, Field: "runs", Reason: fmt.Sprintf("payload of %d bytes", h.PayloadBytes)}
	}
	var count [4]byte
	if crc, err = c.readSummed(ctx, 0, count[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(count[:])
	if n > MaxRuns || 4+int(n)*runBytes+tail > int(h.PayloadBytes) {
		return 0, &FormatError{Type: h.Type, Field: "runs", Reason: fmt.Sprintf("%d runs in %d bytes, the limit is %d", n, h.PayloadBytes, MaxRuns)}
	}
	table := resized(&c.in.table, 4+int(n)*runBytes+tail)
	copy(table, count[:])
	if crc, err = c.readSummed(ctx, crc, table[4:]); err == nil && c.in.seal != nil {
		c.in.seal.cut()
	}
	return crc, err
}

// placed asks where want bytes of data of f go.
func placed(place Place, f Frame, want int) ([][]byte, error) {
	if place == nil {
		return nil, &FormatError{Type: f.Type, Field: "type", Offset: 5, Reason: "was not expected"}
	}
	pieces, err := place(f, want)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, p := range pieces {
		total += len(p)
	}
	if total != want {
		return nil, fmt.Errorf("a place of %d bytes for %s of %d", total, f.Type, want)
	}
	return pieces, nil
}

// receivePacked reads packed data of pages, of which want bytes are to come. All
// of it is here and its checksum right before anything is made of it.
func (c *Conn) receivePacked(ctx context.Context, f Frame, crc uint32, want int, place Place) (Frame, error) {
	in := &c.in
	f.Packed = int(f.PayloadBytes) - len(in.table)
	if f.Packed < 1 || f.Packed > want {
		return Frame{}, &FormatError{Type: f.Type, Field: "packed data", Offset: len(in.table), Reason: fmt.Sprintf("%d bytes, the runs announce %d of data", f.Packed, want)}
	}
	crc, err := c.readSummed(ctx, crc, resized(&in.packed, f.Packed))
	if err == nil {
		err = c.checkSum(ctx, f.Header, crc)
	}
	if err == nil && in.unpack == nil {
		in.unpack, err = newUnpacker()
	}
	if err == nil {
		err = in.unpack.check(in.packed, want)
	}
	if err != nil {
		return Frame{}, err
	}
	pieces, err := placed(place, f, want)
	if err != nil {
		return f, err
	}
	if len(pieces) == 1 {
		return f, in.unpack.into(pieces[0], in.packed)
	}
	raw := resized(&in.raw, want)
	if err := in.unpack.into(raw, in.packed); err != nil {
		return f, err
	}
	for _, p := range pieces {
		raw = raw[copy(p, raw):]
	}
	return f, nil
}

// readPieces fills pieces, in order, and returns crc continued over them.
func (c *Conn) readPieces(ctx context.Context, crc uint32, pieces [][]byte) (uint32, error) {
	for len(pieces) > 0 {
		if len(pieces[0]) >= crcChunk || len(pieces) == 1 {
			var err error
			if crc, err = c.readSummed(ctx, crc, pieces[0]); err != nil {
				return 0, err
			}
			pieces = pieces[1:]
			continue
		}
		n, bytes := 0, 0 // a chunk, or up to one more where pieces do not end with it
		for n < min(len(pieces), vecMax) && bytes < crcChunk && len(pieces[n]) < crcChunk {
			bytes += len(pieces[n])
			n++
		}
		if _, err := c.receiver.ReadVec(ctx, pieces[:n]); err != nil {
			return 0, err
		}
		for _, p := range pieces[:n] {
			crc = c.in.sum(crc, p)
		}
		pieces = pieces[n:]
	}
	return crc, nil
}

// readSummed fills p and returns crc continued over it.
func (c *Conn) readSummed(ctx context.Context, crc uint32, p []byte) (uint32, error) {
	for len(p) > 0 {
		chunk := p[:min(len(p), crcChunk)]
		if _, err := c.receiver.ReadFull(ctx, chunk); err != nil {
			return 0, err
		}
		crc = c.in.sum(crc, chunk)
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
