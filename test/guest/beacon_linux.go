package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// beacon is the page that tells, from inside the guest's memory, how far the
// guest is. One goroutine publishes; spin may run beside it.
type beacon struct {
	page []byte
}

func newBeacon(id guestapi.BootID) (*beacon, error) {
	page, err := anonymous(pageBytes)
	if err != nil {
		return nil, fmt.Errorf("beacon page: %w", err)
	}
	copy(page[guestapi.BootIDOffset:], id[:])
	copy(page, guestapi.BeaconMagic)
	// Locked pages may still be moved by compaction unless this is off; the
	// page must keep its physical address.
	_ = os.WriteFile("/proc/sys/vm/compact_unevictable_allowed", []byte("0"), 0)
	if err := unix.Mlock(page); err != nil {
		return nil, fmt.Errorf("locking the beacon page: %w", err)
	}
	return &beacon{page: page}, nil
}

func (b *beacon) word(off int) *uint64 { return (*uint64)(unsafe.Pointer(&b.page[off])) }

// publish writes what t says; the sequence number is odd meanwhile.
func (b *beacon) publish(t guestapi.Tick) {
	seq := b.word(guestapi.SeqOffset)
	atomic.AddUint64(seq, 1)
	for _, f := range [...]struct {
		off int
		v   uint64
	}{
		{guestapi.CounterOffset, t.Counter}, {guestapi.MonotonicNsOffset, t.MonotonicNs},
		{guestapi.UptimeNsOffset, t.UptimeNs}, {guestapi.PidOffset, t.Pid},
		{guestapi.MemErrorsOffset, t.MemErrors}, {guestapi.PassesOffset, t.Passes},
		{guestapi.WritesOffset, t.Writes},
	} {
		atomic.StoreUint64(b.word(f.off), f.v)
	}
	atomic.AddUint64(seq, 1)
}

// gpa asks the kernel where the page is in the guest's physical memory. Zero
// means that the kernel would not tell.
func (b *beacon) gpa() uint64 {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0
	}
	defer f.Close()
	var entry [8]byte
	virtual := uint64(uintptr(unsafe.Pointer(&b.page[0])))
	if _, err := f.ReadAt(entry[:], int64(virtual/pageBytes*8)); err != nil {
		return 0
	}
	const present, frameMask = 1 << 63, 1<<55 - 1
	v := binary.LittleEndian.Uint64(entry[:])
	if v&present == 0 {
		return 0
	}
	return v & frameMask * pageBytes
}
