// Package guestapi is what the lab's guest and the world around it agree on:
// the tick datagram, the beacon page, requests and answers of the acceptance
// service, records on disks, and the line that announces the guest on its console. It does no I/O, so both sides can import it.
package guestapi

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Fixed numbers of the lab guest.
const (
	// CommandPort takes line commands over TCP and UDP.
	CommandPort = 7
	// TickBytes is the exact size of an encoded Tick.
	TickBytes = 96
	// BeaconBytes is how much of the beacon page is in use.
	BeaconBytes = 104
)

// BeaconMagic opens the beacon page; it finds the page in a memory image.
const BeaconMagic = "virt-ft beacon 1"

// Byte offsets in the beacon page. All integers are 8 bytes, little endian.
// SeqOffset is odd while the fields behind it are being changed; the spin
// counter is written without it.
const (
	BootIDOffset      = 16
	SeqOffset         = 32
	CounterOffset     = 40
	MonotonicNsOffset = 48
	UptimeNsOffset    = 56
	PidOffset         = 64
	MemErrorsOffset   = 72
	PassesOffset      = 80
	WritesOffset      = 88
	SpinsOffset       = 96
)

// ErrFormat says that bytes are not what they should be.
var ErrFormat = errors.New("guestapi: malformed")

// BootID is the kernel's random identity of one boot.
type BootID [16]byte

// String returns the form the kernel prints.
func (b BootID) String() string {
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// ParseBootID reads /proc/sys/kernel/random/boot_id.
func ParseBootID(s string) (BootID, error) {
	var id BootID
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), "-", ""))
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("%w: boot id %q", ErrFormat, s)
	}
	copy(id[:], raw)
	return id, nil
}

// Tick is what the guest tells the outside every few milliseconds.
type Tick struct {
	BootID      BootID
	Counter     uint64 // ticks since boot
	MonotonicNs uint64 // guest's CLOCK_MONOTONIC
	UptimeNs    uint64 // guest's CLOCK_BOOTTIME
	Pid         uint64 // of the process that ticks
	MemErrors   uint64 // pages found wrong since boot
	Passes      uint64 // complete verifications of the working set
	Writes      uint64 // pages rewritten since boot
	BeaconGPA   uint64 // guest-physical address of the beacon page
	Told        uint64 // ticks sent before this one: a hole means that one was lost
}

var tickMagic = [8]byte{'v', 'f', 't', 't', 'i', 'c', 'k', '2'}

// Append encodes t behind dst, TickBytes in all.
func (t Tick) Append(dst []byte) []byte {
	dst = append(dst, tickMagic[:]...)
	dst = append(dst, t.BootID[:]...)
	for _, v := range [...]uint64{t.Counter, t.MonotonicNs, t.UptimeNs, t.Pid,
		t.MemErrors, t.Passes, t.Writes, t.BeaconGPA, t.Told} {
		dst = binary.BigEndian.AppendUint64(dst, v)
	}
	return dst
}

// ParseTick decodes one datagram. A datagram of another size or magic is an
// ErrFormat.
func ParseTick(b []byte) (Tick, error) {
	var t Tick
	if len(b) != TickBytes || [8]byte(b[:8]) != tickMagic {
		return t, fmt.Errorf("%w: tick of %d bytes", ErrFormat, len(b))
	}
	copy(t.BootID[:], b[8:24])
	for i, p := range [...]*uint64{&t.Counter, &t.MonotonicNs, &t.UptimeNs, &t.Pid,
		&t.MemErrors, &t.Passes, &t.Writes, &t.BeaconGPA, &t.Told} {
		*p = binary.BigEndian.Uint64(b[24+8*i:])
	}
	return t, nil
}

// Beacon is the beacon page, decoded.
type Beacon struct {
	BootID      BootID
	Counter     uint64
	MonotonicNs uint64
	UptimeNs    uint64
	Pid         uint64
	MemErrors   uint64
	Passes      uint64
	Writes      uint64
	Spins       uint64
}

// ParseBeacon decodes the beginning of the beacon page. Whether the page was
// being changed meanwhile is for the caller to find out (SeqOffset).
func ParseBeacon(b []byte) (Beacon, error) {
	if len(b) < BeaconBytes || string(b[:16]) != BeaconMagic {
		return Beacon{}, fmt.Errorf("%w: no beacon here", ErrFormat)
	}
	at := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	return Beacon{
		BootID: BootID(b[BootIDOffset : BootIDOffset+16]), Counter: at(CounterOffset),
		MonotonicNs: at(MonotonicNsOffset), UptimeNs: at(UptimeNsOffset), Pid: at(PidOffset),
		MemErrors: at(MemErrorsOffset), Passes: at(PassesOffset), Writes: at(WritesOffset),
		Spins: at(SpinsOffset),
	}, nil
}

// Ready is what the guest prints on its console when all of it runs.
type Ready struct {
	BeaconGPA uint64
	BootID    BootID
	Pid       int
	Disks     int // that have their workload
}

const readyPrefix = "VIRTFT-GUEST ready "

// Line is the console line of r, without a newline.
func (r Ready) Line() string {
	return fmt.Sprintf("%sbeacon_gpa=%#x boot_id=%s pid=%d disks=%d", readyPrefix, r.BeaconGPA, r.BootID, r.Pid, r.Disks)
}

// FindReady looks for a whole announcement in what the console printed so far.
func FindReady(console string) (Ready, bool) {
	_, rest, found := strings.Cut(console, readyPrefix)
	line, _, whole := strings.Cut(rest, "\n")
	if !found || !whole {
		return Ready{}, false
	}
	var r Ready
	var err error
	for _, f := range strings.Fields(line) {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "beacon_gpa":
			r.BeaconGPA, err = strconv.ParseUint(value, 0, 64)
		case "boot_id":
			r.BootID, err = ParseBootID(value)
		case "pid":
			r.Pid, err = strconv.Atoi(value)
		case "disks":
			r.Disks, err = strconv.Atoi(value)
		}
		if err != nil {
			return Ready{}, false
		}
	}
	return r, r.BeaconGPA != 0
}
