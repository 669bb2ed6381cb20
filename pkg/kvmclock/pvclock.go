package kvmclock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"time"
)

// pageBytes is the size of struct pvclock_vcpu_time_info.
const pageBytes = 32

// ErrPageTorn says that a page was read while the hypervisor wrote it: read it
// again.
var ErrPageTorn = errors.New("pvclock page is being written")

// Page is what KVM tells a processor of the guest about its clock, struct
// pvclock_vcpu_time_info (Documentation/virt/kvm/x86/msr.rst):
//
//	u32 version | u32 pad | u64 tsc_timestamp | u64 system_time | u32 mul | s8 shift | u8 flags | u8 pad[2]
type Page struct {
	Version      uint32 // even; changes with each update
	TSCTimestamp uint64 // the guest's TSC at the update
	SystemTimeNs uint64 // the guest's clock then
	Mul          uint32 // of (tsc << Shift) * Mul >> 32, which is ns
	Shift        int8   // to the right if negative; -32 to 31
	Flags        uint8  // bit 0: all processors see one clock; bit 1: the guest was stopped
}

// ParsePage decodes a page. Bytes that no hypervisor writes are an error, and a
// version that is odd is ErrPageTorn.
func ParsePage(b []byte) (Page, error) {
	if len(b) < pageBytes {
		return Page{}, fmt.Errorf("pvclock page of %d bytes, want %d", len(b), pageBytes)
	}
	p := Page{
		Version:      binary.LittleEndian.Uint32(b),
		TSCTimestamp: binary.LittleEndian.Uint64(b[8:]),
		SystemTimeNs: binary.LittleEndian.Uint64(b[16:]),
		Mul:          binary.LittleEndian.Uint32(b[24:]),
		Shift:        int8(b[28]),
		Flags:        b[29],
	}
	switch {
	case p.Version%2 != 0:
		return Page{}, ErrPageTorn
	case p.Shift < -32 || p.Shift > 31:
		return Page{}, fmt.Errorf("pvclock page with a shift of %d bits", p.Shift)
	}
	return p, nil
}

// At is the guest's clock, in ns, when its TSC is tsc. A TSC slightly before the
// update, as another processor may have read it, is a clock slightly before.
func (p Page) At(tsc uint64) uint64 {
	ticks := tsc - p.TSCTimestamp
	if int64(ticks) < 0 {
		return p.SystemTimeNs - p.scale(-ticks)
	}
	return p.SystemTimeNs + p.scale(ticks)
}

// scale is how many ns ticks are.
func (p Page) scale(ticks uint64) uint64 {
	if p.Shift < 0 {
		ticks >>= -p.Shift
	} else {
		ticks <<= p.Shift
	}
	hi, lo := bits.Mul64(ticks, uint64(p.Mul))
	return hi<<32 | lo>>32
}

// AdvanceTSC is what a TSC of tscKHz that says tsc will say after by, or said
// before, if by is negative. It wraps as the register does. A guest that takes
// its time from the TSC is set forward so at activation, on every processor by
// the same.
func AdvanceTSC(tsc uint64, tscKHz uint32, by time.Duration) uint64 {
	const kHzNs = 1_000_000 // ns in a tick of 1 kHz
	ns := uint64(by)
	if by < 0 {
		ns = -ns
	}
	hi, lo := bits.Mul64(ns, uint64(tscKHz))
	ticks, _ := bits.Div64(hi%kHzNs, lo, kHzNs) // of a larger quotient the register has the low half
	if by < 0 {
		return tsc - ticks
	}
	return tsc + ticks
}
