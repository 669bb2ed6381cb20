package replica

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf8"
)

// codec walks the fields of a message, in either direction: a message lists its
// fields once (its fields method), so that writing and reading cannot disagree.
// It keeps its first error, with offset and field; after it, fields are left
// alone. Bounds are checked in both directions. Encoding writes nothing into a
// message, which may be on its way over several connections.
type codec struct {
	encoding bool
	typ      Type
	buf      []byte // encoding: what was written; decoding: the whole payload
	off      int    // decoding: where to read next
	err      *FormatError
}

func (c *codec) fail(field, format string, args ...any) {
	if c.err == nil {
		off := c.off
		if c.encoding {
			off = len(c.buf)
		}
		c.err = &FormatError{Type: c.typ, Field: field, Offset: off, Reason: fmt.Sprintf(format, args...)}
	}
}

// check records an error unless ok.
func (c *codec) check(ok bool, field, reason string) {
	if !ok {
		c.fail(field, "%s", reason)
	}
}

// take returns the next n bytes when decoding, or nil after recording an error.
func (c *codec) take(field string, n int) []byte {
	if c.err != nil {
		return nil
	}
	if len(c.buf)-c.off < n {
		c.fail(field, "needs %d bytes, %d are left", n, len(c.buf)-c.off)
		return nil
	}
	b := c.buf[c.off : c.off+n]
	c.off += n
	return b
}

// more reports whether fields that a growable message got in a later version are
// to be walked: a peer that is older does not send them, and they stay zero.
func (c *codec) more() bool { return c.encoding || c.off < len(c.buf) }

func (c *codec) u8(field string, v *uint8) {
	if c.encoding {
		c.buf = append(c.buf, *v)
	} else if b := c.take(field, 1); b != nil {
		*v = b[0]
	}
}

func (c *codec) u16(field string, v *uint16) {
	if c.encoding {
		c.buf = binary.BigEndian.AppendUint16(c.buf, *v)
	} else if b := c.take(field, 2); b != nil {
		*v = binary.BigEndian.Uint16(b)
	}
}

func (c *codec) u32(field string, v *uint32) {
	if c.encoding {
		c.buf = binary.BigEndian.AppendUint32(c.buf, *v)
	} else if b := c.take(field, 4); b != nil {
		*v = binary.BigEndian.Uint32(b)
	}
}

func (c *codec) u64(field string, v *uint64) {
	if c.encoding {
		c.buf = binary.BigEndian.AppendUint64(c.buf, *v)
	} else if b := c.take(field, 8); b != nil {
		*v = binary.BigEndian.Uint64(b)
	}
}

func (c *codec) i64(field string, v *int64) {
	u := uint64(*v)
	c.u64(field, &u)
	if !c.encoding {
		*v = int64(u)
	}
}

func (c *codec) boolean(field string, v *bool) {
	var b uint8
	if *v {
		b = 1
	}
	c.u8(field, &b)
	c.check(b <= 1, field, "is neither 0 nor 1")
	if !c.encoding {
		*v = b == 1
	}
}

// fixed is an array of bytes, written as it is.
func (c *codec) fixed(field string, v []byte) {
	if c.encoding {
		c.buf = append(c.buf, v...)
	} else if b := c.take(field, len(v)); b != nil {
		copy(v, b)
	}
}

// count is the number of elements that follow, each at least elemBytes long.
// It returns how many to walk: 0 after an error, so that nothing is allocated.
func (c *codec) count(field string, n, max, elemBytes int) int {
	u := uint32(min(n, max+1))
	c.u32(field, &u)
	if c.err == nil && int64(u) > int64(max) {
		c.fail(field, "%d, the limit is %d", u, max)
	}
	if c.err == nil && !c.encoding && int(u) > (len(c.buf)-c.off)/elemBytes {
		c.fail(field, "%d elements cannot fit in %d bytes", u, len(c.buf)-c.off)
	}
	if c.err != nil {
		return 0
	}
	return int(u)
}

// bytes is a length (u32) and that many bytes. Decoded, it aliases the payload.
func (c *codec) bytes(field string, v *[]byte, max int) {
	n := c.count(field, len(*v), max, 1)
	if c.err != nil {
		return
	}
	if c.encoding {
		c.buf = append(c.buf, *v...)
	} else {
		*v = c.take(field, n)
	}
}

// str is a length (u32) and that many bytes of UTF-8 without NUL.
func (c *codec) str(field string, v *string, max int) {
	b := []byte(*v)
	c.bytes(field, &b, max)
	if c.err == nil && (!utf8.Valid(b) || strings.IndexByte(string(b), 0) >= 0) {
		c.fail(field, "is not UTF-8 text without NUL")
	}
	if c.err == nil && !c.encoding {
		*v = string(b)
	}
}

// text is a str for people. A sender never fails for its sake: what is too long
// or not UTF-8 is cut or replaced.
func (c *codec) text(field string, v *string) {
	if !c.encoding {
		c.str(field, v, MaxTextBytes)
		return
	}
	s := strings.ReplaceAll(strings.ToValidUTF8(*v, "?"), "\x00", "?")
	if len(s) > MaxTextBytes {
		s = strings.ToValidUTF8(s[:MaxTextBytes], "") // drops a rune cut in two
	}
	c.str(field, &s, MaxTextBytes)
}

// sized is a message that may be large and knows how large: its buffer is made once.
type sized interface{ payloadBytes() int }

// encodePayload appends m's payload to dst.
func encodePayload(dst []byte, m Message) ([]byte, error) {
	start := len(dst)
	c := codec{encoding: true, typ: m.Type(), buf: dst}
	m.fields(&c)
	if n := len(c.buf) - start; c.err == nil && n > int(m.Type().MaxPayload()) {
		c.fail("payload", "%d bytes, the limit is %d", n, m.Type().MaxPayload())
	}
	if c.err != nil {
		c.err.Offset -= start
		return dst, c.err
	}
	return c.buf, nil
}

// AppendMessage appends header and payload of m to dst. h gives version,
// protection and stamp; type, length and checksums are filled in. Pages,
// PackedPages and DiskWrites are refused: their data follows them, see
// [Conn.SendPages], [Conn.SendPacked] and [Conn.SendDiskWrites].
func AppendMessage(dst []byte, h Header, m Message) ([]byte, error) {
	return appendMessage(dst, h, m, false)
}

// appendMessage is AppendMessage, or the same without a checksum of the payload,
// for what is sealed.
func appendMessage(dst []byte, h Header, m Message, sealed bool) ([]byte, error) {
	if m.Type().hasRuns() {
		return dst, &FormatError{Type: m.Type(), Field: "type", Reason: "is sent with " + m.Type().sentWith() + " only"}
	}
	start := len(dst)
	if s, ok := m.(sized); ok {
		dst = slices.Grow(dst, HeaderBytes+min(s.payloadBytes(), int(m.Type().MaxPayload())))
	}
	buf, err := encodePayload(append(dst, make([]byte, HeaderBytes)...), m)
	if err != nil {
		return dst, err
	}
	payload := buf[start+HeaderBytes:]
	h.Type, h.PayloadBytes, h.PayloadCRC = m.Type(), uint32(len(payload)), 0
	if !sealed {
		h.PayloadCRC = crc32.Checksum(payload, castagnoli())
	}
	h.append(buf[start:start])
	return buf, nil
}

// DecodePayload reads the payload of a message of type t. It checks the format,
// not the checksum. Byte slices in the result alias payload. For Pages,
// PackedPages and DiskWrites, payload is what comes before the data.
func DecodePayload(t Type, payload []byte) (Message, error) {
	k := kindOf(t)
	if k.message == nil {
		return nil, &FormatError{Field: "type", Offset: 5, Reason: fmt.Sprintf("%d is unknown", uint8(t))}
	}
	m := k.message()
	c := codec{typ: t, buf: payload}
	m.fields(&c)
	if c.err == nil && c.off != len(payload) && !k.growable {
		c.fail("payload", "%d bytes too many", len(payload)-c.off)
	}
	if c.err != nil {
		return nil, c.err
	}
	return m, nil
}
