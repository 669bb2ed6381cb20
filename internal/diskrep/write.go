package diskrep

import (
	"crypto/sha256"
	"fmt"
)

// Disk is one replicated disk, as the guest sees it.
type Disk struct {
	Name      string // its target in the domain's XML, such as "vda"
	SizeBytes int64
}

// Write is one change of a disk. Writes of one disk are applied in the order in
// which they were made.
type Write struct {
	Disk     int   // index in the list of disks that both sides agreed on
	Off, Len int64 // bytes
	// Data has Len bytes; nil means zeros.
	Data []byte
	// Release hands Data back to whoever lent it; nil when nobody waits for it.
	Release func()
}

// Free hands the data of w back. It may be called once.
func (w *Write) Free() {
	if w.Release != nil {
		w.Release()
	}
	w.Data, w.Release = nil, nil
}

// check refuses a write that does not fit into its disk.
func (w *Write) check(disks []Disk) error {
	switch {
	case w.Disk < 0 || w.Disk >= len(disks):
		return fmt.Errorf("disk %d of %d", w.Disk, len(disks))
	case w.Off < 0 || w.Len <= 0 || w.Off > disks[w.Disk].SizeBytes-w.Len:
		return fmt.Errorf("disk %s: %d bytes at %d do not fit into its %d bytes", disks[w.Disk].Name, w.Len, w.Off, disks[w.Disk].SizeBytes)
	case w.Data != nil && int64(len(w.Data)) != w.Len:
		return fmt.Errorf("disk %s: %d bytes of data for %d", disks[w.Disk].Name, len(w.Data), w.Len)
	}
	return nil
}

// BlockBytes is the unit in which two copies of a disk are compared. The last
// block of a disk may be shorter.
const BlockBytes = 64 << 10

// SumBytes is the size of a Sum.
const SumBytes = 16

// Sum tells whether two blocks are equal: the first half of their SHA-256. A
// guest chooses the contents, so nothing weaker will do.
type Sum [SumBytes]byte

// SumOf returns the sum of a block.
func SumOf(block []byte) (s Sum) {
	full := sha256.Sum256(block)
	copy(s[:], full[:])
	return s
}
