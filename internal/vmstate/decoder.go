package vmstate

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// readAhead is what the decoder reads at once, and the most that next may ask for.
const readAhead = 256 << 10

// decoder reads fields of a stream. It keeps its first error, with the offset
// and the name of the field, and gives zero values from then on; so callers
// read a whole record and look at err once, before they act on it.
type decoder struct {
	r   *bufio.Reader
	off int64
	err error
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{r: bufio.NewReaderSize(r, readAhead)}
}

func (d *decoder) fail(off int64, field string, err error) {
	if d.err == nil {
		d.err = &FormatError{Offset: off, Field: field, Err: err}
	}
}

// next returns the next n bytes, n <= readAhead, valid until the next call; nil after an error.
func (d *decoder) next(n int, field string) []byte {
	if d.err != nil {
		return nil
	}
	b, err := d.r.Peek(n)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = ErrIncomplete
		}
		d.fail(d.off, field, err)
		return nil
	}
	d.r.Discard(n) //nolint:errcheck // n bytes were just peeked
	d.off += int64(n)
	return b
}

func (d *decoder) u8(field string) byte {
	if b := d.next(1, field); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u32(field string) uint32 {
	if b := d.next(4, field); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64(field string) uint64 {
	if b := d.next(8, field); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// name8 reads a name with a length of one byte.
func (d *decoder) name8(field string) string {
	off := d.off
	n := int(d.u8(field))
	b := d.next(n, field)
	if d.err == nil && !isName(b) {
		d.fail(off, field, fmt.Errorf("%q is not a name", b))
	}
	return string(b)
}

// want reads a number that can only be v.
func (d *decoder) want(v uint32, field string) {
	off := d.off
	if got := d.u32(field); d.err == nil && got != v {
		d.fail(off, field, fmt.Errorf("%#x instead of %#x", got, v))
	}
}

// isName says whether QEMU would give such a name to a section or RAM block:
// 1 to 255 printable ASCII characters.
func isName(b []byte) bool {
	if len(b) == 0 || len(b) > MaxNameBytes {
		return false
	}
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}
