package diskrep

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The journal of a Target is a directory:
//
//	state                      what of the rest is alive, in two slots
//	segment-0000000000000001   records, in the order in which they were made
//	segment-0000000000000002   ...
//
// All integers are big endian, CRC is CRC32C. Zero is invalid as a version and
// as a type.
//
//	state: a slot at 0 and one at 4096. The valid one with the higher count
//	counts; a new one is written over the other, so a torn write leaves the old.
//
//	 0                8           12         16       24        32       40      56    60
//	┌────────────────┬───────────┬──────────┬────────┬─────────┬────────┬───────┬─────┬──────┐
//	│ "virtftjs"     │ version 1 │ flags    │ count  │ journal │ first  │ disks │ 0   │ CRC  │
//	└────────────────┴───────────┴──────────┴────────┴─────────┴────────┴───────┴─────┴──────┘
//	flags 1: the images are whole: an initial sync ended, and what has changed since is in
//	         the journal. journal: the segments that carry this number are alive; 0: none is.
//	first:   the first segment that is needed. disks: digest of names, sizes and paths.
//
//	segment: a header, then records. An epoch does not go on in the next segment.
//
//	 0                8           12      16        24       32    36
//	┌────────────────┬───────────┬───────┬─────────┬────────┬─────┬──────┐
//	│ "virtftjl"     │ version 1 │ chain │ journal │ number │ 0   │ CRC  │
//	└────────────────┴───────────┴───────┴─────────┴────────┴─────┴──────┘
//	chain: CRC of the last record (or header) of the segment before it; 0 in the first of all.
//
//	record:
//	 0     4      5       6      8       16       24       32
//	┌─────┬──────┬───────┬──────┬───────┬────────┬────────┬──────────────┐
//	│ CRC │ type │ flags │ disk │ epoch │ offset │ length │ data …       │
//	└─────┴──────┴───────┴──────┴───────┴────────┴────────┴──────────────┘
//	CRC: over the CRC before it in the segment (of its header, for the first), then all of the
//	     record after this field. So a record counts only behind the ones that it was written behind.
//	type 1 write: length bytes at offset of a disk; flags 1: zeros, no data; else data, at most 1 MiB.
//	type 2 end:   the epoch is whole; offset: how many write records it has, at least one.
//	type 3 drop:  all records of later epochs are void; these epochs may come again.
//
// Who reads a journal takes the records up to the first one that is torn or
// wrong, and of these the epochs that have their end. Epochs without a write
// have no records, so numbers may be left out.
const (
	stateName     = "state"
	segmentPrefix = "segment-"

	journalVersion = 1
	stateMagic     = "virtftjs"
	segmentMagic   = "virtftjl"

	slotBytes     = 64
	slotDistance  = 4096 // a sector each, so that a torn write spoils one of them only
	stateBytes    = 2 * slotDistance
	segmentHeader = 40
	recordHeader  = 32
	// recordDataMax bounds the data of a record; longer writes make several.
	recordDataMax = 1 << 20
	// spansMax bounds what is remembered of a journal that is read.
	spansMax = 1 << 20
)

type recordType uint8

const (
	recordWrite recordType = iota + 1
	recordEnd
	recordDrop
)

const recordZero = 1 // flag of a write

// record is one of the journal, without its data.
type record struct {
	kind     recordType
	flags    uint8
	disk     uint16
	epoch    uint64
	off, len uint64
}

// dataBytes is what follows the header.
func (r record) dataBytes() int64 {
	if r.kind == recordWrite && r.flags&recordZero == 0 {
		return int64(r.len)
	}
	return 0
}

// check refuses what no writer makes. It bounds len before anything is read.
func (r record) check() error {
	ok := false
	switch r.kind {
	case recordWrite:
		ok = r.flags&^recordZero == 0 && r.len > 0 && r.len < 1<<62 && r.off < 1<<62 &&
			(r.flags&recordZero != 0 || r.len <= recordDataMax) && r.epoch != 0
	case recordEnd:
		ok = r.flags == 0 && r.disk == 0 && r.len == 0 && r.off > 0 && r.epoch != 0
	case recordDrop:
		ok = r.flags == 0 && r.disk == 0 && r.len == 0 && r.off == 0
	}
	if !ok {
		return fmt.Errorf("a record of type %d, flags %#x, disk %d, epoch %d, %d bytes at %d", r.kind, r.flags, r.disk, r.epoch, r.len, r.off)
	}
	return nil
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // built once by the library

// put writes the header of r into b, behind a record whose CRC is chain, and
// returns its own.
func (r record) put(b []byte, chain uint32, data []byte) uint32 {
	be := binary.BigEndian
	be.PutUint32(b[0:], chain)
	b[4], b[5] = byte(r.kind), r.flags
	be.PutUint16(b[6:], r.disk)
	be.PutUint64(b[8:], r.epoch)
	be.PutUint64(b[16:], r.off)
	be.PutUint64(b[24:], r.len)
	crc := crc32.Update(crc32.Checksum(b[:recordHeader], castagnoli()), castagnoli(), data)
	be.PutUint32(b[0:], crc)
	return crc
}

func parseRecord(b []byte) record {
	be := binary.BigEndian
	return record{
		kind: recordType(b[4]), flags: b[5], disk: be.Uint16(b[6:]),
		epoch: be.Uint64(b[8:]), off: be.Uint64(b[16:]), len: be.Uint64(b[24:]),
	}
}

// segmentHead begins a segment. Its CRC is the chain of the first record.
type segmentHead struct {
	journal, number uint64
	chain           uint32
}

func (h segmentHead) encode() (b []byte, crc uint32) {
	be := binary.BigEndian
	b = make([]byte, segmentHeader)
	copy(b, segmentMagic)
	be.PutUint32(b[8:], journalVersion)
	be.PutUint32(b[12:], h.chain)
	be.PutUint64(b[16:], h.journal)
	be.PutUint64(b[24:], h.number)
	crc = crc32.Checksum(b[:segmentHeader-4], castagnoli())
	be.PutUint32(b[segmentHeader-4:], crc)
	return b, crc
}

func decodeSegmentHead(b []byte) (h segmentHead, crc uint32, err error) {
	be := binary.BigEndian
	if len(b) < segmentHeader || string(b[:8]) != segmentMagic {
		return h, 0, fmt.Errorf("%w: it is not a segment of a journal", errTorn)
	}
	crc = crc32.Checksum(b[:segmentHeader-4], castagnoli())
	if be.Uint32(b[segmentHeader-4:]) != crc {
		return h, 0, fmt.Errorf("%w: the checksum of its header is wrong", errTorn)
	}
	if v := be.Uint32(b[8:]); v != journalVersion {
		return h, 0, errVersion(v) // written in earnest: not to be thrown away
	}
	if be.Uint32(b[32:]) != 0 {
		return h, 0, fmt.Errorf("%w: its header says what nobody writes", errTorn)
	}
	return segmentHead{journal: be.Uint64(b[16:]), number: be.Uint64(b[24:]), chain: be.Uint32(b[12:])}, crc, nil
}

func errVersion(v uint32) error {
	return fmt.Errorf("version %d of the journal, this virt-ft knows %d: let the one that wrote it take it up, or remove the directory", v, journalVersion)
}

// slot is what the state file says.
type slot struct {
	whole   bool // the images are some epoch's, together with the journal
	count   uint64
	journal uint64 // 0: no segment is alive
	first   uint64
	disks   [16]byte
}

const slotWhole = 1 // flag

func (s slot) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, slotBytes)
	copy(b, stateMagic)
	be.PutUint32(b[8:], journalVersion)
	if s.whole {
		be.PutUint32(b[12:], slotWhole)
	}
	be.PutUint64(b[16:], s.count)
	be.PutUint64(b[24:], s.journal)
	be.PutUint64(b[32:], s.first)
	copy(b[40:], s.disks[:])
	be.PutUint32(b[slotBytes-4:], crc32.Checksum(b[:slotBytes-4], castagnoli()))
	return b
}

var errNoSlot = errors.New("no valid slot")

// decodeState returns the slot that counts; errNoSlot if none is valid.
func decodeState(b []byte) (best slot, err error) {
	be, found := binary.BigEndian, false
	for at := 0; at+slotBytes <= len(b) && at <= slotDistance; at += slotDistance {
		s := b[at : at+slotBytes]
		if string(s[:8]) != stateMagic || be.Uint32(s[slotBytes-4:]) != crc32.Checksum(s[:slotBytes-4], castagnoli()) {
			continue
		}
		if v := be.Uint32(s[8:]); v != journalVersion {
			return best, errVersion(v)
		}
		got := slot{whole: be.Uint32(s[12:])&slotWhole != 0, count: be.Uint64(s[16:]), journal: be.Uint64(s[24:]), first: be.Uint64(s[32:])}
		copy(got.disks[:], s[40:])
		if !found || got.count > best.count {
			best, found = got, true
		}
	}
	if !found {
		return best, errNoSlot
	}
	return best, nil
}

// digest tells whether a journal is of these disks at these places.
func digest(disks []Disk, paths []string) (d [16]byte) {
	h := sha256.New()
	for i, disk := range disks {
		fmt.Fprintf(h, "%q %d %q\n", disk.Name, disk.SizeBytes, paths[i])
	}
	copy(d[:], h.Sum(nil))
	return d
}

// errTorn ends the reading of a segment: what follows is not what was written
// behind what was read.
var errTorn = errors.New("torn")

// segmentReader reads the records of a segment behind its header.
type segmentReader struct {
	r     io.Reader
	left  int64 // bytes of the file that are not read
	chain uint32
	buf   []byte // data of the last record
}

// newSegmentReader reads the header. left is the size of the file.
func newSegmentReader(r io.Reader, size int64) (*segmentReader, segmentHead, error) {
	var b [segmentHeader]byte
	if size < segmentHeader {
		return nil, segmentHead{}, fmt.Errorf("%w: %d bytes", errTorn, size)
	}
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, segmentHead{}, err
	}
	h, crc, err := decodeSegmentHead(b[:])
	if err != nil {
		return nil, h, err
	}
	return &segmentReader{r: r, left: size - segmentHeader, chain: crc}, h, nil
}

// next returns a record and its data, which are valid until the next call. The
// error is io.EOF at the end, wraps errTorn where the segment ends otherwise,
// and is anything else when reading failed.
func (s *segmentReader) next() (record, []byte, error) {
	if s.left == 0 {
		return record{}, nil, io.EOF
	}
	var b [recordHeader]byte
	if s.left < recordHeader {
		return record{}, nil, fmt.Errorf("%w: %d bytes of a record", errTorn, s.left)
	}
	if err := s.read(b[:]); err != nil {
		return record{}, nil, err
	}
	s.left -= recordHeader
	rec := parseRecord(b[:])
	if err := rec.check(); err != nil {
		return rec, nil, fmt.Errorf("%w: %w", errTorn, err)
	}
	n := rec.dataBytes()
	if n > s.left {
		return rec, nil, fmt.Errorf("%w: %d of %d bytes of data", errTorn, s.left, n)
	}
	if int64(cap(s.buf)) < n {
		s.buf = make([]byte, n)
	}
	data := s.buf[:n]
	if err := s.read(data); err != nil {
		return rec, nil, err
	}
	s.left -= n
	want := binary.BigEndian.Uint32(b[0:])
	if got := rec.put(b[:], s.chain, data); got != want {
		return rec, nil, fmt.Errorf("%w: a checksum is wrong", errTorn)
	}
	s.chain = want
	return rec, data, nil
}

// read fills b, which the file's size promised. So its end is no usual one.
func (s *segmentReader) read(b []byte) error {
	_, err := io.ReadFull(s.r, b)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
