package vmstate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Section is one device's state within a device blob.
type Section struct {
	Type     byte   // 0x04, a whole section: the only type in a device blob
	ID       uint32 // QEMU's number for it in this stream
	Name     string // for example "timer" or "0000:00:02.0/virtio-net"
	Instance uint32
	Version  uint32
	Offset   int // of the payload in the blob, bytes
	Len      int // of the payload, bytes
}

// Payload returns the section's state: a part of blob, not a copy.
func (s Section) Payload(blob []byte) []byte { return blob[s.Offset : s.Offset+s.Len] }

// Devices are the sections of a device blob, in the blob's order.
type Devices []Section

// Section returns the section with that name and instance.
func (d Devices) Section(name string, instance uint32) (Section, bool) {
	for _, s := range d {
		if s.Name == name && s.Instance == instance {
			return s, true
		}
	}
	return Section{}, false
}

// ParseDevices finds the sections of a blob written by xen-save-devices-state,
// or of the device part of a whole migration stream. It does not keep blob.
// The package comment says how ends of sections are found. Errors are
// *FormatError; one that is ErrIncomplete means that QEMU had not finished.
func ParseDevices(blob []byte) (Devices, error) {
	if err := checkHeader(blob); err != nil {
		return nil, err
	}
	first, ok := headerAt(blob, streamHeader)
	if !ok {
		if couldBeHeader(blob[streamHeader:]) {
			return nil, &FormatError{streamHeader, "first section", ErrIncomplete}
		}
		return nil, &FormatError{streamHeader, "first section", errors.New("no section header")}
	}
	bs, err := boundaries(blob)
	if err != nil {
		return nil, err
	}
	open := linkBoundaries(bs)
	at := nearest(bs, open, first)
	if at < 0 {
		return nil, lostAt(blob, bs, first)
	}
	var ds Devices
	index := make(map[uint32]int, 64)
	for s := first; ; s, at = bs[at].next, bs[at].until {
		// An id occurs once in a stream: whatever led back to it was payload of
		// the section that had it first, and that section ends here.
		if i, again := index[s.ID]; again {
			for _, inner := range ds[i+1:] {
				delete(index, inner.ID)
			}
			s, ds = ds[i], ds[:i]
		}
		index[s.ID] = len(ds)
		s.Len = bs[at].pos - s.Offset
		ds = append(ds, s)
		if bs[at].last {
			return ds, nil
		}
	}
}

// Complete says whether the blob's tail is that of finished device state: the
// last section's footer and the end mark, and a header for that footer. It
// looks at the tail and the last section only, and does not allocate; cheap
// enough for every checkpoint.
func Complete(blob []byte) bool {
	if checkHeader(blob) != nil {
		return false
	}
	p := len(blob) - footerBytes - 1
	if p < streamHeader+minHeaderBytes || blob[p] != markFooter || blob[p+footerBytes] != markEOF {
		return false
	}
	header := [5]byte{markFull, blob[p+1], blob[p+2], blob[p+3], blob[p+4]}
	for end := p; end > streamHeader; {
		i := bytes.LastIndex(blob[streamHeader:end], header[:])
		if i < 0 {
			return false
		}
		i += streamHeader
		follows := i == streamHeader || i >= streamHeader+minHeaderBytes+footerBytes && blob[i-footerBytes] == markFooter
		if follows && isHeader(blob[i:p]) {
			return true
		}
		end = i + len(header) - 1
	}
	return false
}

// checkHeader looks at magic, version and size.
func checkHeader(blob []byte) error {
	if len(blob) > MaxDeviceBytes {
		return &FormatError{0, "device state", fmt.Errorf("%d bytes: %w", len(blob), ErrBounds)}
	}
	if len(blob) < streamHeader {
		return &FormatError{int64(len(blob)), "stream header", ErrIncomplete}
	}
	if m := binary.BigEndian.Uint32(blob); m != streamMagic {
		return &FormatError{0, "magic", fmt.Errorf("%#x instead of %#x", m, streamMagic)}
	}
	if v := binary.BigEndian.Uint32(blob[4:]); v != streamVersion {
		return &FormatError{4, "stream version", fmt.Errorf("%d instead of %d", v, streamVersion)}
	}
	return nil
}

// isHeader says whether b starts with the header of a FULL section.
func isHeader(b []byte) bool {
	if len(b) < minHeaderBytes || b[0] != markFull {
		return false
	}
	n := int(b[5])
	return len(b) >= minHeaderBytes-1+n && isName(b[6:6+n])
}

// couldBeHeader says whether b is a beginning of a header, and all there is.
func couldBeHeader(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if b[0] != markFull || len(b) >= minHeaderBytes-1+MaxNameBytes {
		return false
	}
	if len(b) < 6 {
		return true
	}
	n := int(b[5])
	name := b[6:min(len(b), 6+n)]
	return n > 0 && len(b) < minHeaderBytes-1+n && (len(name) == 0 || isName(name))
}

// headerAt reads the header at offset pos; the section's end is not known yet.
func headerAt(blob []byte, pos int) (Section, bool) {
	b := blob[pos:]
	if !isHeader(b) {
		return Section{}, false
	}
	n := int(b[5])
	return Section{
		Type:     b[0],
		ID:       binary.BigEndian.Uint32(b[1:]),
		Name:     string(b[6 : 6+n]),
		Instance: binary.BigEndian.Uint32(b[6+n:]),
		Version:  binary.BigEndian.Uint32(b[10+n:]),
		Offset:   pos + minHeaderBytes - 1 + n,
	}, true
}
