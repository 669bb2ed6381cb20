package replica

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"
)

const (
	// HeaderBytes is the size of the header of every message.
	HeaderBytes = 56
	// VersionMin and VersionMax are the protocol versions spoken here.
	VersionMin, VersionMax = 3, 3
	// handshakeVersion is in the header of Hello, Welcome and Refuse, in every
	// version of the protocol, so that strangers can refuse each other.
	handshakeVersion = 1

	magic           = 0x56465401 // "VFT" 01
	headerCRCOffset = 52
)

// UUID names a protection or a domain. The zero UUID is invalid on the wire.
type UUID [16]byte

// String returns the usual 8-4-4-4-12 form.
func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// ParseUUID reads the usual form, dashes being optional.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	plain := strings.ReplaceAll(s, "-", "")
	if len(plain) != 2*len(u) {
		return UUID{}, fmt.Errorf("%q is not a UUID", s)
	}
	if _, err := hex.Decode(u[:], []byte(plain)); err != nil {
		return UUID{}, fmt.Errorf("%q is not a UUID: %w", s, err)
	}
	return u, nil
}

// Stamp is what a sender says with every message: which generation it runs in,
// and which epoch the message is about (0: none).
type Stamp struct{ Generation, Epoch uint64 }

// Header precedes every message.
type Header struct {
	Version      uint8
	Type         Type
	PayloadBytes uint32
	PayloadCRC   uint32 // CRC32C of the payload
	Protection   UUID
	Stamp
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // built once by the library

// append adds the encoded header to dst.
func (h Header) append(dst []byte) []byte {
	start := len(dst)
	be := binary.BigEndian
	dst = be.AppendUint32(dst, magic)
	dst = append(dst, h.Version, byte(h.Type), 0, 0) // no flags yet
	dst = be.AppendUint32(dst, h.PayloadBytes)
	dst = be.AppendUint32(dst, h.PayloadCRC)
	dst = append(dst, h.Protection[:]...)
	dst = be.AppendUint64(dst, h.Generation)
	dst = be.AppendUint64(dst, h.Epoch)
	dst = be.AppendUint32(dst, 0) // reserved
	return be.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli()))
}

// DecodeHeader reads the header at the start of b. It refuses everything that
// can be refused without knowing the connection: magic, checksum, version 0,
// unknown types, flags, lengths over the type's bound, a zero protection.
func DecodeHeader(b []byte) (Header, error) {
	bad := func(field string, off int, format string, args ...any) (Header, error) {
		return Header{}, &FormatError{Field: field, Offset: off, Reason: fmt.Sprintf(format, args...)}
	}
	if len(b) < HeaderBytes {
		return bad("header", len(b), "ends early, want %d bytes", HeaderBytes)
	}
	b = b[:HeaderBytes]
	be := binary.BigEndian
	if m := be.Uint32(b); m != magic {
		return bad("magic", 0, "%#08x instead of %#08x: the peer is not a virt-ft daemon or uses another transport (tls, plain)", m, magic)
	}
	if got, want := crc32.Checksum(b[:headerCRCOffset], castagnoli()), be.Uint32(b[headerCRCOffset:]); got != want {
		return bad("header CRC", headerCRCOffset, "%#08x, computed %#08x", want, got)
	}
	h := Header{
		Version: b[4], Type: Type(b[5]),
		PayloadBytes: be.Uint32(b[8:]), PayloadCRC: be.Uint32(b[12:]),
		Protection: UUID(b[16:32]),
		Stamp:      Stamp{Generation: be.Uint64(b[32:]), Epoch: be.Uint64(b[40:])},
	}
	switch {
	case h.Version == 0:
		return bad("version", 4, "zero is invalid")
	case !h.Type.Valid():
		return bad("type", 5, "%d is unknown", b[5])
	case be.Uint16(b[6:]) != 0:
		return bad("flags", 6, "unknown flags %#04x", be.Uint16(b[6:]))
	case h.PayloadBytes > h.Type.MaxPayload():
		return bad("payload length", 8, "%d bytes, %s allows %d", h.PayloadBytes, h.Type, h.Type.MaxPayload())
	case h.Protection == UUID{}:
		return bad("protection", 16, "zero is invalid")
	case be.Uint32(b[48:]) != 0:
		return bad("reserved", 48, "not zero")
	}
	return h, nil
}
