// Package guest is a guest without an operating system that looks at its clock.
// Every processor registers a pvclock page of its own with KVM and reads it as
// fast as it can; it counts reads that went back, against its own last one and
// against what any other processor had read before, and notes each read at which
// the clock went on by more, or less, than the TSC. The first processor also
// writes to pages, so that checkpoints have work.
//
// What the guest finds lies in its memory. A View reads it from outside, while
// the guest runs, from a mapping of that memory; nothing is ever written there.
// testdata/guest.c has the same layout in C; testdata/build.sh makes guest.bin of it.
package guest

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"
)

//go:generate testdata/build.sh
//go:embed testdata/guest.bin
var image []byte // never written

// Limits of the guest.
const (
	CPUsMax  = 8
	RAMBytes = 32 << 20
	pagesMax = (RAMBytes - pagesAt) / 4096
)

// Payload says what the guest does beside reading its clock.
type Payload struct {
	Pages uint32 // that the first processor writes to, in turn; 0: none
	Every uint32 // reads between two such writes
	GapNs uint32 // between two reads of the first processor that are noted as an Event; 0: none are
}

// Firmware is what -bios takes: the guest needs no other, and no time to boot.
func (p Payload) Firmware() []byte {
	b := make([]byte, romBytes)
	copy(b, image)
	copy(b[resetAt:], []byte{0xe9, 0x0d, 0x00}) // jump to the image's first byte, in 16 bits
	for i, v := range []uint32{min(p.Pages, pagesMax), max(p.Every, 1), p.GapNs} {
		binary.LittleEndian.PutUint32(b[payloadAt+4*i:], v)
	}
	return b
}

// Where things lie; see testdata/guest.c.
const (
	payloadAt = 0x10 // of the image
	sharedAt  = 0x200000
	cpuAt     = 0x210000
	cpuBytes  = 0x10000
	pageAt    = 0x2a0000
	pagesAt   = 0x400000

	romBytes = 64 << 10
	resetAt  = romBytes - 16 // where the first processor begins

	magic, layout = 0x4b434c43, 1

	ringAt, ringEvents, eventBytes = 128, 1024, 32
)

// PageBytes is the size of a pvclock page's contents.
const PageBytes = 32

// State of a processor.
type State uint32

// States of a processor.
const (
	Starting State = iota
	NoClock        // there is no kvmclock: the guest does not run under KVM
	Running
)

// CPU is what a processor has counted since it started.
type CPU struct {
	State   State
	Reads   uint64
	Back    uint64 // reads below its own one before
	Behind  uint64 // reads below one that another processor had finished before
	Skew    uint64 // such reads, by less than 100 ns, for which a TSC that was behind as well is to blame
	TSCBack uint64 // reads with a TSC below the one before
	Events  uint64
	// The largest of the steps back, in ns.
	BackMaxNs, BehindMaxNs, SkewMaxNs uint64
}

// Event is a read at which clock and TSC went on by different times, by more than
// 1 µs; or one before which nothing was read for Payload.GapNs.
type Event struct {
	TSC     uint64
	ClockNs uint64
	JumpNs  int64 // by which the clock went on more than the TSC
	PrevTSC uint64
}

// View is the guest's memory, from address 0. Its methods may be called while the
// guest runs, from any goroutine.
type View []byte

func (v View) u32(at int) uint32 { return atomic.LoadUint32((*uint32)(unsafe.Pointer(&v[at]))) }
func (v View) u64(at int) uint64 { return atomic.LoadUint64((*uint64)(unsafe.Pointer(&v[at]))) }

// CPUs is how many processors are up.
func (v View) CPUs() int {
	if v.u32(sharedAt) != magic || v.u32(sharedAt+4) != layout {
		return 0
	}
	return int(min(v.u32(sharedAt+8), CPUsMax))
}

// CPU returns what processor n has counted.
func (v View) CPU(n int) CPU {
	at := cpuAt + n*cpuBytes
	return CPU{
		State: State(v.u32(at)), Reads: v.u64(at + 32), Back: v.u64(at + 40), BackMaxNs: v.u64(at + 48),
		Behind: v.u64(at + 56), BehindMaxNs: v.u64(at + 64), TSCBack: v.u64(at + 72), Events: v.u64(at + 80),
		Skew: v.u64(at + 88), SkewMaxNs: v.u64(at + 96),
	}
}

// Seq changes twice with each sample, every 16 reads, of processor n. It is odd while the sample is
// written.
func (v View) Seq(n int) uint32 { return v.u32(cpuAt + n*cpuBytes + 8) }

// Sample returns a recent read of processor n; false if it was being written.
func (v View) Sample(n int) (tsc, clockNs uint64, ok bool) {
	at := cpuAt + n*cpuBytes
	seq := v.u32(at + 8)
	tsc, clockNs = v.u64(at+16), v.u64(at+24)
	return tsc, clockNs, seq%2 == 0 && seq == v.u32(at+8)
}

// Page returns the pvclock page of processor n; false if it was being written.
func (v View) Page(n int) (b [PageBytes]byte, ok bool) {
	at := pageAt + n*4096
	version := v.u32(at)
	for i := 0; i < PageBytes; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], v.u64(at+i))
	}
	return b, version%2 == 0 && version == v.u32(at)
}

// EventsSince returns the events of processor n from number from on, and the
// number of the next one. Events that were overwritten before they were read are
// an error.
func (v View) EventsSince(n int, from uint64) (events []Event, next uint64, err error) {
	at := cpuAt + n*cpuBytes
	next = v.u64(at + 80)
	for k := from; k < next; k++ {
		e := at + ringAt + int(k%ringEvents)*eventBytes
		events = append(events, Event{v.u64(e), v.u64(e + 8), int64(v.u64(e + 16)), v.u64(e + 24)})
		if len(events) > ringEvents {
			break
		}
	}
	if now := v.u64(at + 80); now-from > ringEvents {
		return nil, now, fmt.Errorf("guest's processor %d: %d events, of which %d are kept", n, now-from, ringEvents)
	}
	return events, next, nil
}
