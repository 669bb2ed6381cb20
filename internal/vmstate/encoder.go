package vmstate

import (
	"bufio"
	"encoding/binary"
	"io"
)

// holdBack is what the encoder buffers. It is small enough to stay in a core's
// cache: copying a page into it costs a twentieth of what the socket costs, and
// measured the same as lending pages to writev with their headers in between
// (BenchmarkPages).
const holdBack = 256 << 10

// encoder writes fields of a stream, buffered. Its bufio.Writer keeps the first
// error and drops everything after it; flush returns it.
type encoder struct{ w *bufio.Writer }

func newEncoder(w io.Writer) encoder { return encoder{bufio.NewWriterSize(w, holdBack)} }

func (e encoder) bytes(b []byte) {
	e.w.Write(b) //nolint:errcheck // kept by the writer
}

func (e encoder) u8(v byte) {
	e.w.WriteByte(v) //nolint:errcheck // kept by the writer
}

func (e encoder) u32(v uint32) {
	e.bytes(binary.BigEndian.AppendUint32(e.w.AvailableBuffer(), v))
}

func (e encoder) u64(v uint64) {
	e.bytes(binary.BigEndian.AppendUint64(e.w.AvailableBuffer(), v))
}

func (e encoder) text(t string) {
	e.w.WriteString(t) //nolint:errcheck // kept by the writer
}

func (e encoder) name8(t string) {
	e.u8(byte(len(t)))
	e.text(t)
}

// section writes the mark and id that begin and end sections.
func (e encoder) section(mark byte, id uint32) {
	e.u8(mark)
	e.u32(id)
}

func (e encoder) err() error {
	_, err := e.w.Write(nil)
	return err
}
