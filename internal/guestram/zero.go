package guestram

import (
	"bytes"
	"encoding/binary"
)

// IsZero reports whether all bytes of page are zero. It reads the page once:
// a page equals itself shifted by one word, and starts with a zero word, only
// if every word is zero.
func IsZero(page []byte) bool {
	if len(page) < 8 {
		return bytes.Count(page, []byte{0}) == len(page)
	}
	return binary.LittleEndian.Uint64(page) == 0 && bytes.Equal(page[8:], page[:len(page)-8])
}
