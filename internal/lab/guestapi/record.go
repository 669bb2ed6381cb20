package guestapi

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// RecordBytes is the size of a record on a disk of the guest, and of a slot.
const RecordBytes = 4096

// Record is one block that the guest wrote to a disk: a header that says which
// write it is, a payload that follows from the header, and a checksum of both,
// so that a block of which only a part was written is found out.
//
//	magic generation slot seq serial session request nonce hash    8 bytes each
//	payload
//	checksum                                                       8 bytes
//
// Everything is big endian. Every sector of the payload begins with the magic, so
// that a part of a record is told from other data.
type Record struct {
	Generation uint64 // of the workload that wrote it, see BootID.Generation
	Slot       uint64 // where it belongs
	Seq        uint64 // place among all writes to the disk in this generation, from 1

	// Of the acceptance service's answer whose record this is; all zero for any
	// other. Request is the request's seq in its session.
	Serial, Session, Request, Nonce, Hash uint64
}

const (
	recordMagic    = 0x7666742d64726331 // "vft-drc1"
	recordHead     = 9 * 8
	recordChecksum = RecordBytes - 8
	sectorBytes    = 512
)

// Generation names the workload of one boot on the guest's disks. It is not zero.
func (b BootID) Generation() uint64 { return binary.BigEndian.Uint64(b[:8]) | 1 }

// Put writes r over b, which has RecordBytes.
func (r Record) Put(b []byte) {
	b = b[:RecordBytes]
	for i, v := range [...]uint64{recordMagic, r.Generation, r.Slot, r.Seq, r.Serial, r.Session, r.Request, r.Nonce, r.Hash} {
		binary.BigEndian.PutUint64(b[8*i:], v)
	}
	x := Chain(r.Generation, r.Slot, r.Seq) | 1
	for at := recordHead; at < recordChecksum; at += 8 {
		binary.BigEndian.PutUint64(b[at:], x)
		if at%sectorBytes == 0 {
			binary.BigEndian.PutUint64(b[at:], recordMagic)
		}
		x ^= x << 13 // xorshift64
		x ^= x >> 7
		x ^= x << 17
	}
	binary.BigEndian.PutUint64(b[recordChecksum:], checksum(b))
}

func checksum(b []byte) uint64 {
	return uint64(crc32.Checksum(b[:recordChecksum], crc32.MakeTable(crc32.Castagnoli)))
}

// ParseRecord decodes one slot's content. What is not a record, or not a whole
// one, is an ErrFormat.
func ParseRecord(b []byte) (Record, error) {
	if len(b) != RecordBytes || binary.BigEndian.Uint64(b) != recordMagic {
		return Record{}, fmt.Errorf("%w: no record in %d bytes", ErrFormat, len(b))
	}
	if got, want := binary.BigEndian.Uint64(b[recordChecksum:]), checksum(b); got != want {
		return Record{}, fmt.Errorf("%w: record with checksum %#x, its content has %#x", ErrFormat, got, want)
	}
	at := func(word int) uint64 { return binary.BigEndian.Uint64(b[8*word:]) }
	return Record{Generation: at(1), Slot: at(2), Seq: at(3), Serial: at(4), Session: at(5), Request: at(6), Nonce: at(7), Hash: at(8)}, nil
}

// PartOfRecord tells whether any sector of a slot is from a record.
func PartOfRecord(b []byte) bool {
	for ; len(b) >= sectorBytes; b = b[sectorBytes:] {
		if binary.BigEndian.Uint64(b) == recordMagic {
			return true
		}
	}
	return false
}

// DiskLayout is how the guest divides a disk without a file system: slots for
// the acceptance service's records, slots for the load's, and the rest, which
// is for benchmarks and keeps nothing. Both numbers are powers of two.
type DiskLayout struct {
	Accept, Load uint64 // slots; those of the load begin behind the others
}

// Limits of a disk of records. However large the disk is, no more than
// recordSlotsMax slots are in use for each purpose, so that it can be checked
// in seconds.
const (
	DiskBytesMin   = 4 << 20
	recordSlotsMax = 1 << 15
)

// LayoutOf divides a disk: half of it is for acceptance, a quarter for the load,
// or less.
func LayoutOf(diskBytes int64) (DiskLayout, error) {
	if diskBytes < DiskBytesMin {
		return DiskLayout{}, fmt.Errorf("%w: a disk of %d bytes has no room for records", ErrFormat, diskBytes)
	}
	slots := uint64(diskBytes / RecordBytes)
	powerOfTwo := func(n uint64) uint64 { return min(uint64(1)<<(bits.Len64(n)-1), recordSlotsMax) }
	return DiskLayout{Accept: powerOfTwo(slots / 2), Load: powerOfTwo(slots / 4)}, nil
}

// SlotOf is where the record of a serial belongs. It hops about the disk, and
// serials share a slot only if they lie a multiple of Accept apart.
func (l DiskLayout) SlotOf(serial uint64) uint64 { return serial * 0x9e3779b97f4a7c15 & (l.Accept - 1) }

// Slots is how many slots are in use; what lies behind keeps nothing.
func (l DiskLayout) Slots() uint64 { return l.Accept + l.Load }
