package vmstate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
)

// Stream is what a whole migration stream holds beside its pages.
type Stream struct {
	Machine string
	Blocks  []BlockSize
	Parts   int     // RAM part sections
	Pages   int     // page records, zero pages among them
	Zero    int     // records of zero pages
	Devices []byte  // as a blob of xen-save-devices-state, without description
	Found   Devices // the sections of Devices
	VMDesc  []byte  // QEMU's JSON description of the device sections; may be empty
}

// PageFunc gets one page. page is nil for a page of zeros, and valid during the call only.
type PageFunc func(block string, off uint64, page []byte) error

// ReadIncoming decodes a migration stream as Incoming writes it, and as QEMU
// does with default capabilities, up to the end of r. It reads all device state
// into memory (at most MaxDeviceBytes) and hands pages to each. On error it
// returns what was decoded so far; ErrIncomplete means that r ended early.
func ReadIncoming(r io.Reader, each PageFunc) (*Stream, error) {
	d := newDecoder(r)
	s := &streamReader{d: d, each: each, out: &Stream{}}
	d.want(streamMagic, "magic")
	d.want(streamVersion, "stream version")
	s.configuration()
	s.start()
	for d.err == nil && s.section() {
	}
	return s.out, d.err
}

type streamReader struct {
	d    *decoder
	each PageFunc
	out  *Stream

	ramID   uint32
	used    map[string]uint64
	current string // block of the last record; QEMU continues it across parts
	ended   bool   // RAM end was seen
}

func (s *streamReader) configuration() {
	off := s.d.off
	if m := s.d.u8("configuration section"); s.d.err == nil && m != markConfig {
		s.d.fail(off, "configuration section", fmt.Errorf("mark %#x", m))
	}
	off = s.d.off
	n := s.d.u32("machine type length")
	if n == 0 || n > maxMachineBytes {
		s.d.fail(off, "machine type length", fmt.Errorf("%d: %w", n, ErrBounds))
	}
	b := s.d.next(int(n), "machine type")
	if s.d.err == nil && !isName(b) {
		s.d.fail(off, "machine type", fmt.Errorf("%q is not a name", b))
	}
	s.out.Machine = string(b)
}

// start reads the RAM section's start: the blocks and their sizes.
func (s *streamReader) start() {
	d := s.d
	off := d.off
	mark := d.u8("RAM start")
	s.ramID = d.u32("RAM section id")
	name := d.name8("RAM section name")
	d.want(0, "RAM instance")
	d.want(ramVersion, "RAM version")
	if d.err == nil && (mark != markStart || name != ramName) {
		d.fail(off, "RAM start", fmt.Errorf("mark %#x, name %q", mark, name))
	}
	off = d.off
	total := d.u64("sum of RAM")
	if d.err == nil && total&flagMask != flagMemSize {
		d.fail(off, "sum of RAM", fmt.Errorf("flags %#x", total&flagMask))
	}
	total &^= flagMask
	s.used = make(map[string]uint64)
	for total > 0 && d.err == nil {
		off = d.off
		b := BlockSize{Name: d.name8("RAM block name"), Used: d.u64("RAM block size")}
		_, twice := s.used[b.Name]
		if b.Used == 0 || b.Used%PageSize != 0 || b.Used > total || total > math.MaxInt64 || twice || len(s.used) == MaxBlocks {
			d.fail(off, "RAM block size", fmt.Errorf("%q of %d bytes, %d left: %w", b.Name, b.Used, total, ErrBounds))
			return
		}
		total -= b.Used
		s.used[b.Name] = b.Used
		s.out.Blocks = append(s.out.Blocks, b)
	}
	s.records(false)
	s.footer()
}

// section reads one section and says whether another may follow.
func (s *streamReader) section() bool {
	off := s.d.off
	mark := s.d.u8("section mark")
	if s.d.err != nil {
		return false
	}
	switch {
	case mark == markPart && !s.ended, mark == markEnd && !s.ended:
		if id := s.d.u32("section id"); s.d.err == nil && id != s.ramID {
			s.d.fail(off, "section id", fmt.Errorf("%#x instead of %#x", id, s.ramID))
		}
		s.ended = mark == markEnd
		if !s.ended {
			s.out.Parts++
		}
		s.records(true)
		s.footer()
		return true
	case (mark == markFull || mark == markEOF) && s.ended:
		s.devices(mark, off)
	default:
		s.d.fail(off, "section mark", fmt.Errorf("unexpected mark %#x", mark))
	}
	return false
}

func (s *streamReader) footer() {
	off := s.d.off
	if m := s.d.u8("footer"); s.d.err == nil && m != markFooter {
		s.d.fail(off, "footer", fmt.Errorf("mark %#x", m))
	}
	s.d.want(s.ramID, "footer")
}

// records reads page records up to the end mark; none are allowed without pages.
func (s *streamReader) records(pages bool) {
	d := s.d
	for d.err == nil {
		off := d.off
		v := d.u64("page record")
		if d.err != nil {
			return
		}
		at, flags := v&^flagMask, v&flagMask
		if flags == flagEOS && at == 0 {
			return
		}
		if !pages {
			d.fail(off, "page record", errors.New("in a section without pages"))
			return
		}
		if flags&flagContinue == 0 {
			s.current = d.name8("page's block")
		}
		used, ok := s.used[s.current]
		switch {
		case d.err != nil:
		case !ok:
			d.fail(off, "page's block", fmt.Errorf("%q: %w", s.current, ErrUnknownBlock))
		case at >= used:
			d.fail(off, "page's offset", fmt.Errorf("%#x of %q: %w", at, s.current, ErrOutOfRange))
		default:
			s.page(off, at, flags&^flagContinue)
		}
	}
}

func (s *streamReader) page(off int64, at, flags uint64) {
	var page []byte
	switch flags {
	case flagPage:
		page = s.d.next(PageSize, "page")
	case flagZero:
		if fill := s.d.u8("zero page"); fill != 0 {
			s.d.fail(off, "zero page", fmt.Errorf("filled with %#x", fill))
		}
		s.out.Zero++
	default:
		s.d.fail(off, "page record", fmt.Errorf("flags %#x are not supported", flags))
	}
	if s.d.err != nil {
		return
	}
	s.out.Pages++
	if s.each == nil {
		return
	}
	if err := s.each(s.current, at, page); err != nil {
		s.d.fail(off, "page", err)
	}
}

// devices reads the rest of the stream, which begins with mark at off.
func (s *streamReader) devices(mark byte, off int64) {
	var blob bytes.Buffer
	blob.Write([]byte{'Q', 'E', 'V', 'M', 0, 0, 0, streamVersion, mark})
	if _, err := io.Copy(&blob, io.LimitReader(s.d.r, MaxDeviceBytes)); err != nil {
		s.d.fail(off, "device state", err)
		return
	}
	all := blob.Bytes()
	found, err := ParseDevices(all)
	if err != nil {
		var fe *FormatError
		if errors.As(err, &fe) { // its offsets count from the blob's start
			s.d.fail(off+max(fe.Offset-streamHeader, 0), fe.Field, fe.Err)
		} else {
			s.d.fail(off, "device state", err)
		}
		return
	}
	last := found[len(found)-1]
	end := last.Offset + last.Len + footerBytes + 1
	s.out.Devices, s.out.Found = all[:end], found
	if rest := all[end:]; len(rest) > 0 {
		s.out.VMDesc = rest[1+4:]
	}
}
