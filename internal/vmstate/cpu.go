package vmstate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
)

// SectionCPU is the name of the sections that hold the virtual CPUs, one instance each.
const SectionCPU = "cpu"

// kvmclockEnabled is the bit of a CPU's system_time_msr (MSR_KVM_SYSTEM_TIME)
// that says that the guest has registered a page for it.
const kvmclockEnabled = 1

// CPUClock is what one section "cpu" says of clocks.
type CPUClock struct {
	Instance   uint32 // QEMU's number of the CPU
	TSC        uint64 // under KVM the guest's time stamp counter at the stop; 0 under TCG, where it is in section "timer"
	TSCkHz     uint32 // the counter's rate; 0 if the section does not say, or the layout does not know where
	KVMClockOn bool   // the guest has registered a kvmclock page
}

// CPUClocks returns the clocks of all CPUs in blob's order. An error is
// ErrSection: there is none, or one is not as of the layout.
func (d Devices) CPUClocks(blob []byte, l CPULayout) ([]CPUClock, error) {
	var out []CPUClock
	seen := make(map[uint32]bool, 16)
	for _, s := range d {
		if s.Name != SectionCPU {
			continue
		}
		if seen[s.Instance] {
			return nil, fmt.Errorf("device state: two sections %q of instance %d: %w", SectionCPU, s.Instance, ErrSection)
		}
		seen[s.Instance] = true
		p, err := l.cpu(blob, s)
		if err != nil {
			return nil, err
		}
		c := CPUClock{Instance: s.Instance, TSC: binary.BigEndian.Uint64(p[l.tscAt:])}
		if c.TSCkHz, err = l.tscKHz(p); err != nil {
			return nil, fmt.Errorf("device state: cpu %d: %w", s.Instance, err)
		}
		if l.systemTimeAt > 0 {
			c.KVMClockOn = binary.BigEndian.Uint64(p[l.systemTimeAt:])&kvmclockEnabled != 0
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("device state: no section %q: %w", SectionCPU, ErrSection)
	}
	return out, nil
}

// SetTSC changes the time stamp counter of one CPU in blob. Only KVM looks at
// it. An error is ErrSection; then nothing was changed.
func (d Devices) SetTSC(blob []byte, l CPULayout, instance uint32, tsc uint64) error {
	if l.bytes == 0 {
		return fmt.Errorf("device state: no layout of section %q: %w", SectionCPU, ErrSection)
	}
	p, err := d.payload(blob, SectionCPU, instance, l.version, l.bytes)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint64(p[l.tscAt:], tsc)
	return nil
}

// cpu returns the payload of a section "cpu" that is as of the layout.
func (l CPULayout) cpu(blob []byte, s Section) ([]byte, error) {
	if l.bytes == 0 {
		return nil, fmt.Errorf("device state: no layout of section %q: %w", SectionCPU, ErrSection)
	}
	return s.expected(blob, l.version, l.bytes)
}

// tscKHz looks for the subsection with the TSC's rate in the payload p. Which
// subsections there are, and how long, depends on the guest; so it is searched
// by its header, of 17 bytes. A guest that has forged another one, in a
// register that is saved, gets an error.
func (l CPULayout) tscKHz(p []byte) (uint32, error) {
	if l.khzBytes == 0 {
		return 0, nil
	}
	header := subsectionHeader(subsectionTSC, l.khzVersion)
	var at []byte
	for b := p[l.bytes:]; ; {
		i := bytes.Index(b, header)
		if i < 0 {
			break
		}
		b = b[i+len(header):]
		if len(b) < l.khzBytes || len(b) > l.khzBytes && !beginsSubsection(b[l.khzBytes:], SectionCPU) {
			continue
		}
		if at != nil {
			return 0, fmt.Errorf("two subsections %q: %w", subsectionTSC, ErrSection)
		}
		at = b
	}
	if at == nil {
		return 0, nil
	}
	kHz := binary.BigEndian.Uint64(at[l.khzAt:])
	if kHz > math.MaxUint32 {
		return 0, fmt.Errorf("TSC of %d kHz: %w", kHz, ErrSection)
	}
	return uint32(kHz), nil
}

// subsectionHeader is how a subsection begins.
func subsectionHeader(name string, version uint32) []byte {
	b := append([]byte{markSubsection, byte(len(name))}, name...)
	return binary.BigEndian.AppendUint32(b, version)
}
