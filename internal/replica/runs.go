package replica

import (
	"encoding/binary"
	"fmt"
)

// runsMessage is a message whose payload is a table of runs, followed by the data of
// those that are not zero: Pages, PackedPages and DiskWrites. Its data is lent by the
// sender and goes into memory of the receiver's, so it is never part of the message.
type runsMessage interface {
	Message
	// announced is how many bytes of data the runs announce. In a message that
	// was encoded or decoded it is at most MaxPageData.
	announced() uint64
}

// hasRuns tells the types of which messages are a runsMessage.
func (t Type) hasRuns() bool {
	return t == TypePages || t == TypePackedPages || t == TypeDiskWrites
}

// sentWith names the method that sends messages of a type with runs.
func (t Type) sentWith() string {
	if t == TypePackedPages {
		return "SendPacked"
	}
	return "Send" + t.String()
}

// table is a count (u32) and that many runs of runBytes each; each lists the
// fields of one of them.
func table[R any](c *codec, v *[]R, each func(*R)) {
	n := c.count("runs", len(*v), MaxRuns, runBytes)
	if !c.encoding && n > 0 {
		*v = make([]R, n)
	}
	for i := range n {
		if each(&(*v)[i]); c.err != nil {
			return
		}
	}
}

// run is one run: what it is of, its flags, its length, in units that differ,
// and where it begins. Written out, because there may be many.
func (c *codec) run(of, flags *uint16, length *uint32, off *uint64) {
	be := binary.BigEndian
	if c.encoding {
		c.buf = be.AppendUint16(c.buf, *of)
		c.buf = be.AppendUint16(c.buf, *flags)
		c.buf = be.AppendUint32(c.buf, *length)
		c.buf = be.AppendUint64(c.buf, *off)
	} else if b := c.take("run", runBytes); b != nil {
		*of, *flags, *length, *off = be.Uint16(b), be.Uint16(b[2:]), be.Uint32(b[4:]), be.Uint64(b[8:])
	}
}

// bounded refuses runs that announce more data than one message may have.
func (c *codec) bounded(m runsMessage) {
	if n := m.announced(); c.err == nil && n > MaxPageData {
		c.fail("runs", "announce %d bytes of data, the limit is %d", n, MaxPageData)
	}
}

// runError is the error of run i of a message of type t.
func runError(t Type, i int, field, format string, args ...any) error {
	return &FormatError{Type: t, Field: field, Offset: 4 + i*runBytes, Reason: fmt.Sprintf(format, args...)}
}
