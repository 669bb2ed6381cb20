package replica

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// codecZstd says that the data of a PackedPages is one zstd frame (RFC 8878).
// Zero is invalid.
const codecZstd = 1

const (
	// packWindowBytes is how far back a Packer looks for what repeats: 4 MiB
	// made programs smaller by another 1 %, and takes more cache and memory.
	packWindowBytes = 128 << 10
	// worthPart is the part of its data that a Packer must save at least.
	worthPart = 8
)

// PackedPages announces runs as Pages does; what follows is the data of those that
// are not zero, packed, so there is some. Whoever receives sees a *Pages with its
// data unpacked, and how much travelled in [Frame.Packed].
type PackedPages struct {
	Pages
	Codec uint8 // 1: zstd
}

func (*PackedPages) Type() Type { return TypePackedPages }

func (m *PackedPages) fields(c *codec) {
	m.Pages.fields(c)
	c.check(m.announced() > 0, "runs", "announce no data, so nothing can be packed")
	c.u8("codec", &m.Codec)
	c.check(m.Codec == codecZstd, "codec", "is unknown")
}

// Packer compresses the data of one message after the other. It is for one goroutine.
type Packer struct {
	enc *zstd.Encoder
	raw []byte // data in one piece
	out []byte
}

// NewPacker returns a Packer. It starts no goroutine and needs no closing; once it
// has packed a full message it holds about 9 MiB.
func NewPacker() (*Packer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(packWindowBytes))
	if err != nil {
		return nil, fmt.Errorf("make a packer of pages: %w", err)
	}
	return &Packer{enc: enc}, nil
}

// Pack compresses data, which together is that of the runs of one message, for
// [Conn.SendPacked]. It is not ok, and packed nil, when that saves less than an
// eighth of it, or when data is empty or more than MaxPageData: then send it as it
// is. packed is valid until the next Pack.
func (p *Packer) Pack(data [][]byte) (packed []byte, ok bool) {
	total := 0
	for _, d := range data {
		if total += len(d); total > MaxPageData {
			return nil, false
		}
	}
	if total == 0 {
		return nil, false
	}
	raw := data[0]
	if len(raw) < total {
		p.raw = p.raw[:0]
		for _, d := range data {
			p.raw = append(p.raw, d...)
		}
		raw = p.raw
	}
	p.out = p.enc.EncodeAll(raw, p.out[:0])
	if len(p.out) > total-total/worthPart {
		return nil, false
	}
	return p.out, true
}

// unpacker undoes what a Packer did. It is for one goroutine.
type unpacker struct{ dec *zstd.Decoder }

// newUnpacker bounds the decoder's memory by what one message may have.
func newUnpacker() (*unpacker, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxPageData),
		zstd.WithDecoderMaxWindow(MaxPageData), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("make an unpacker of pages: %w", err)
	}
	return &unpacker{dec}, nil
}

// check refuses packed data that does not announce raw bytes itself, before
// anything is allocated for them.
func (u *unpacker) check(packed []byte, raw int) error {
	var h zstd.Header
	if err := h.Decode(packed); err != nil {
		return packedError("does not begin a zstd frame: %v", err)
	}
	switch {
	case h.Skippable:
		return packedError("begins with a frame to be skipped")
	case h.DictionaryID != 0:
		return packedError("needs dictionary %d", h.DictionaryID)
	case !h.HasFCS || h.FrameContentSize != uint64(raw):
		return packedError("unpacks to %d bytes, the runs announce %d", h.FrameContentSize, raw)
	}
	return nil
}

// into unpacks packed, which was checked, into dst, which it must fill.
func (u *unpacker) into(dst, packed []byte) error {
	out, err := u.dec.DecodeAll(packed, dst[:0:len(dst)])
	switch {
	case err != nil:
		return packedError("cannot be unpacked: %v", err)
	case len(out) != len(dst):
		return packedError("unpacks to %d bytes, the runs announce %d", len(out), len(dst))
	case &out[0] != &dst[0]: // not with the capacity as the limit
		copy(dst, out)
	}
	return nil
}

func packedError(format string, args ...any) error {
	return &FormatError{Type: TypePackedPages, Field: "packed data", Reason: fmt.Sprintf(format, args...)}
}
