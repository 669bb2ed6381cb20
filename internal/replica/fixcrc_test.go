package replica

import (
	"encoding/binary"
	"hash/crc32"
)

// fixHeaderCRC puts magic and header checksum of b right.
func fixHeaderCRC(b []byte) []byte {
	binary.BigEndian.PutUint32(b, magic)
	binary.BigEndian.PutUint32(b[headerCRCOffset:], crc32.Checksum(b[:headerCRCOffset], castagnoli()))
	return b
}

// fixPayloadCRC puts the payload checksum right, for as much payload as there is.
func fixPayloadCRC(b []byte) []byte {
	n := min(int(binary.BigEndian.Uint32(b[8:])), len(b)-HeaderBytes)
	binary.BigEndian.PutUint32(b[12:], crc32.Checksum(b[HeaderBytes:HeaderBytes+n], castagnoli()))
	return fixHeaderCRC(b)
}
