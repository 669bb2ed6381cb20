package diskrep

import (
	"encoding/binary"
	"hash/crc32"
)

// resealSlot makes the checksum of a slot right.
func resealSlot(b []byte) {
	binary.BigEndian.PutUint32(b[slotBytes-4:], crc32.Checksum(b[:slotBytes-4], castagnoli()))
}

// resealJournal makes the checksums of a segment right, as far as its lengths
// make sense, so that a fuzzer gets behind them.
func resealJournal(b []byte) []byte {
	if len(b) < segmentHeader {
		return b
	}
	copy(b, segmentMagic)
	binary.BigEndian.PutUint32(b[8:], journalVersion)
	chain := crc32.Checksum(b[:segmentHeader-4], castagnoli())
	binary.BigEndian.PutUint32(b[segmentHeader-4:], chain)
	for rest := b[segmentHeader:]; len(rest) >= recordHeader; {
		r := parseRecord(rest)
		n := r.dataBytes()
		if r.check() != nil || n > int64(len(rest)-recordHeader) {
			break
		}
		data := rest[recordHeader:][:n]
		chain = r.put(rest, chain, data)
		rest = rest[recordHeader+n:]
	}
	return b
}
