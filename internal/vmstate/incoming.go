package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// BlockSize is a RAM block as QEMU's `info ramblock` names it, and its used size in bytes.
type BlockSize struct {
	Name string
	Used uint64
}

// Incoming composes the stream that a QEMU started with -incoming loads:
//
//	Pages ... Flush    any number of times; later pages win
//	Finish             once; QEMU then has the whole guest
//
// Blocks may be left out of it: QEMU leaves their memory as it is. Calls that
// are refused because of their arguments write nothing, and the stream stays
// usable. After a failed write QEMU has half a record: every later call
// returns that first error. Not safe for concurrent use.
type Incoming struct {
	out     encoder
	machine string
	blocks  []BlockSize
	index   map[string]int
	total   uint64 // sum of the blocks' used sizes

	err      error // first error that ends the stream
	begun    bool  // header and sizes are written
	inPart   bool  // a RAM part is open
	finished bool
	current  int // block of the part's last record, -1 at its start
}

// NewIncoming starts a stream for a QEMU of that machine type ("pc-q35-7.2",
// the canonical name, as an alias is refused by QEMU). Nothing is written yet.
// Arguments that no stream can carry are reported by the first call. Writes to
// w are of 256 KiB and more, until Flush.
func NewIncoming(w io.Writer, machine string, blocks []BlockSize) *Incoming {
	s := &Incoming{
		out:     newEncoder(w),
		machine: machine,
		blocks:  append([]BlockSize(nil), blocks...),
		index:   make(map[string]int, len(blocks)),
		current: -1,
	}
	s.err = s.checkArguments()
	return s
}

func (s *Incoming) checkArguments() error {
	if n := len(s.machine); n > maxMachineBytes || !isName([]byte(s.machine)) {
		return fmt.Errorf("incoming stream: machine type %q: %w", s.machine, ErrBounds)
	}
	if n := len(s.blocks); n > MaxBlocks {
		return fmt.Errorf("incoming stream: %d RAM blocks: %w", n, ErrBounds)
	}
	for i, b := range s.blocks {
		_, twice := s.index[b.Name]
		switch {
		case !isName([]byte(b.Name)), twice:
			return fmt.Errorf("incoming stream: RAM block %q: bad or repeated name: %w", b.Name, ErrBounds)
		case b.Used == 0 || b.Used > math.MaxInt64-s.total:
			return fmt.Errorf("incoming stream: RAM block %q of %d bytes: %w", b.Name, b.Used, ErrBounds)
		case b.Used%PageSize != 0:
			return fmt.Errorf("incoming stream: RAM block %q of %d bytes: %w", b.Name, b.Used, ErrUnaligned)
		}
		s.index[b.Name] = i
		s.total += b.Used
	}
	return nil
}

// Pages sends data as the contents of block at off; both are multiples of
// PageSize, and off counts bytes within the block. It opens a RAM part if none
// is open. Pages of zeros become records of a few bytes. data is not used after
// the call. What was sent may be held back until Flush.
func (s *Incoming) Pages(block string, off uint64, data []byte) error {
	if err := s.usable(); err != nil {
		return err
	}
	i, ok := s.index[block]
	if !ok {
		return fmt.Errorf("incoming stream: %q: %w", block, ErrUnknownBlock)
	}
	n, used := uint64(len(data)), s.blocks[i].Used
	if off%PageSize != 0 || n%PageSize != 0 {
		return fmt.Errorf("incoming stream: %d bytes at %#x of %q: %w", n, off, block, ErrUnaligned)
	}
	if off > used || n > used-off {
		return fmt.Errorf("incoming stream: %d bytes at %#x of %q (%d bytes): %w", n, off, block, used, ErrOutOfRange)
	}
	if n == 0 {
		return nil
	}
	s.begin()
	s.openPart()
	for ; len(data) > 0; data, off = data[PageSize:], off+PageSize {
		s.record(i, off, data[:PageSize])
	}
	return s.done("write pages")
}

// Flush ends the open RAM part and writes out all that was held back, so that
// QEMU can load everything up to here without waiting for more. It returns when
// the kernel has the bytes, not when QEMU has loaded them. Without an open part
// it only makes sure that the stream's beginning is written.
func (s *Incoming) Flush() error {
	if err := s.usable(); err != nil {
		return err
	}
	s.begin()
	s.closePart()
	s.out.w.Flush() //nolint:errcheck // done reports it
	return s.done("flush")
}

// Finish ends the stream: the RAM section's end, and devices, a blob of
// xen-save-devices-state from the same point of guest time as the pages. A blob
// that is not Complete is refused with ErrIncomplete before any of it is
// written, since it would make the loading QEMU exit. w is not closed.
func (s *Incoming) Finish(devices []byte) error {
	if err := s.usable(); err != nil {
		return err
	}
	if !Complete(devices) {
		return fmt.Errorf("incoming stream: device state of %d bytes: %w", len(devices), ErrIncomplete)
	}
	s.begin()
	s.closePart()
	s.out.section(markEnd, ramSectionID)
	s.out.u64(flagEOS)
	s.out.section(markFooter, ramSectionID)
	s.out.bytes(devices[streamHeader:])
	s.out.section(markVMDesc, 0) // of no bytes
	s.out.w.Flush()              //nolint:errcheck // done reports it
	err := s.done("finish")
	s.finished = err == nil
	return err
}

func (s *Incoming) usable() error {
	if s.finished {
		return ErrFinished
	}
	return s.err
}

// done turns the encoder's first error into the stream's.
func (s *Incoming) done(op string) error {
	if err := s.out.err(); err != nil {
		s.err = fmt.Errorf("incoming stream: %s: %w", op, err)
	}
	return s.err
}

// begin writes the stream's header and the RAM section's start with the sizes, once.
func (s *Incoming) begin() {
	if s.begun {
		return
	}
	s.begun = true
	s.out.u32(streamMagic)
	s.out.u32(streamVersion)
	s.out.u8(markConfig)
	s.out.u32(uint32(len(s.machine)))
	s.out.text(s.machine)
	s.out.section(markStart, ramSectionID)
	s.out.name8(ramName)
	s.out.u32(0)
	s.out.u32(ramVersion)
	s.out.u64(s.total | flagMemSize)
	for _, b := range s.blocks {
		s.out.name8(b.Name)
		s.out.u64(b.Used)
	}
	s.out.u64(flagEOS)
	s.out.section(markFooter, ramSectionID)
}

func (s *Incoming) openPart() {
	if s.inPart {
		return
	}
	s.inPart = true
	s.current = -1
	s.out.section(markPart, ramSectionID)
}

func (s *Incoming) closePart() {
	if !s.inPart {
		return
	}
	s.inPart = false
	s.out.u64(flagEOS)
	s.out.section(markFooter, ramSectionID)
}

// record writes one page.
func (s *Incoming) record(block int, off uint64, page []byte) {
	zero := isZero(page)
	flags := uint64(flagPage)
	if zero {
		flags = flagZero
	}
	if block == s.current {
		s.out.u64(off | flags | flagContinue)
	} else {
		s.out.u64(off | flags)
		s.out.name8(s.blocks[block].Name)
		s.current = block
	}
	if zero {
		s.out.u8(0)
	} else {
		s.out.bytes(page)
	}
}

// isZero looks at one word, as most pages with contents end it there, and then
// compares the page with itself, shifted by a word.
func isZero(page []byte) bool {
	return binary.NativeEndian.Uint64(page) == 0 && bytes.Equal(page[8:], page[:len(page)-8])
}
