package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"time"
)

// SectionKVMClock is the name of the section that holds the guest's kvmclock
// (u64 nanoseconds first, instance 0). It exists under KVM only.
const SectionKVMClock = "kvmclock"

// SectionTimer is the name of the section that holds QEMU's own clocks: the
// ticks and the nanoseconds for which the guest has run.
const SectionTimer = "timer"

// Versions, sizes and offsets of the two sections (QEMU: hw/i386/kvm/clock.c,
// softmmu/cpu-timers.c). They have been the same since QEMU 1.0; a section that
// differs is neither read nor written.
const (
	kvmclockVersion = 1
	kvmclockBytes   = 8 // u64 ns; subsections may follow
	timerVersion    = 2
	timerBytes      = 24 // i64 ticks, 8 unused, i64 ns; subsections may follow
	timerNsAt       = 16
)

// markSubsection begins a subsection: u8 n, n bytes of name, u32 version, fields.
const markSubsection = 0x05

// KVMClock returns the guest's kvmclock in nanoseconds, as QEMU would set it at
// the next start; false if there is no such section, as under TCG, or more than
// one, or an unknown version or size. QEMU takes it while it writes the section,
// not when the guest stopped: it is later than the TSC of CPUClocks by the time
// that the writing was held up.
func (d Devices) KVMClock(blob []byte) (ns uint64, ok bool) {
	p, err := d.payload(blob, SectionKVMClock, 0, kvmclockVersion, kvmclockBytes)
	if err != nil {
		return 0, false
	}
	return binary.BigEndian.Uint64(p), true
}

// SetKVMClock changes the kvmclock in blob to ns. Its subsections stay as they
// are. An error is ErrSection, or ErrBounds for a time beyond 2^63 ns; then
// nothing was changed.
func (d Devices) SetKVMClock(blob []byte, ns uint64) error {
	if ns > math.MaxInt64 {
		return fmt.Errorf("device state: kvmclock of %d ns: %w", ns, ErrBounds)
	}
	p, err := d.payload(blob, SectionKVMClock, 0, kvmclockVersion, kvmclockBytes)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint64(p, ns)
	return nil
}

// VirtualClock returns QEMU_CLOCK_VIRTUAL at the guest's stop, in nanoseconds:
// the time for which the guest has run. All emulated timers count by it, under
// KVM those outside the kernel. False as of KVMClock.
func (d Devices) VirtualClock(blob []byte) (ns int64, ok bool) {
	p, err := d.payload(blob, SectionTimer, 0, timerVersion, timerBytes)
	if err != nil {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(p[timerNsAt:])), true
}

// AdvanceVirtualClock lets the guest in blob have run for longer by that time:
// what its timers waited for in it is due at once when the guest starts. A periodic
// timer is taken through that time period by period, before the guest's next
// instruction: some 35 ms for each hour (QEMU 7.2, the interval timer as the firmware leaves it).
// hostTSCkHz is the rate of the TSC of the host that loads blob, in kHz; under
// TCG the guest's TSC counts at that rate, and is advanced by the ticks of that
// time. 0 leaves it, which is right under KVM, where nobody reads it. An error is
// ErrSection, or ErrBounds for a negative time or one that does not fit; then
// nothing was changed.
func (d Devices) AdvanceVirtualClock(blob []byte, by time.Duration, hostTSCkHz uint32) error {
	p, err := d.payload(blob, SectionTimer, 0, timerVersion, timerBytes)
	if err != nil {
		return err
	}
	ticks := int64(binary.BigEndian.Uint64(p))
	ns := int64(binary.BigEndian.Uint64(p[timerNsAt:]))
	more, fits := ticksOf(by, hostTSCkHz)
	if !fits || ns > math.MaxInt64-int64(by) || ticks > math.MaxInt64-more {
		return fmt.Errorf("device state: virtual clock of %d ns and %d ticks, advanced by %v at %d kHz: %w", ns, ticks, by, hostTSCkHz, ErrBounds)
	}
	binary.BigEndian.PutUint64(p, uint64(ticks+more))
	binary.BigEndian.PutUint64(p[timerNsAt:], uint64(ns+int64(by)))
	return nil
}

// ticksOf returns the ticks of a counter of that rate; false if by is negative
// or they do not fit.
func ticksOf(by time.Duration, kHz uint32) (ticks int64, ok bool) {
	if by < 0 {
		return 0, false
	}
	const nsPerMs = 1e6
	hi, lo := bits.Mul64(uint64(by), uint64(kHz))
	if hi >= nsPerMs {
		return 0, false
	}
	n, _ := bits.Div64(hi, lo, nsPerMs)
	return int64(n), n <= math.MaxInt64
}

// payload returns the payload of the one section of that name and instance, to be
// read or edited, if its version is the expected one, and it is of that many
// bytes or goes on with a subsection of its own. Two of them mean that a guest
// has forged one (see the package comment): none is taken then.
func (d Devices) payload(blob []byte, name string, instance, version uint32, size int) ([]byte, error) {
	var found *Section
	for i := range d {
		s := &d[i]
		switch {
		case s.Name != name || s.Instance != instance:
		case found != nil:
			return nil, fmt.Errorf("device state: two sections %q of instance %d: %w", name, instance, ErrSection)
		default:
			found = s
		}
	}
	if found == nil {
		return nil, fmt.Errorf("device state: no section %q of instance %d: %w", name, instance, ErrSection)
	}
	return found.expected(blob, version, size)
}

// expected returns s's payload if it has that version, and that size but for subsections.
func (s Section) expected(blob []byte, version uint32, size int) ([]byte, error) {
	if s.Offset < 0 || s.Len < 0 || s.Offset > len(blob) || s.Len > len(blob)-s.Offset {
		return nil, fmt.Errorf("device state: section %q of another blob: %w", s.Name, ErrSection)
	}
	p := s.Payload(blob)
	if s.Version != version || len(p) < size || len(p) > size && !beginsSubsection(p[size:], s.Name) {
		return nil, fmt.Errorf("device state: section %q of version %d and %d bytes instead of version %d and %d bytes: %w",
			s.Name, s.Version, s.Len, version, size, ErrSection)
	}
	return p, nil
}

// beginsSubsection says whether b starts with a subsection of that section: its
// name begins with the section's and a slash.
func beginsSubsection(b []byte, section string) bool {
	const head = 2
	if len(b) < head || b[0] != markSubsection {
		return false
	}
	n := int(b[1])
	prefix := section + "/"
	return len(b) >= head+n+4 && n > len(prefix) && bytes.HasPrefix(b[head:head+n], []byte(prefix)) && isName(b[head:head+n])
}
