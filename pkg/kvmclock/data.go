package kvmclock

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Data is struct kvm_clock_data of KVM_GET_CLOCK and KVM_SET_CLOCK
// (Documentation/virt/kvm/api.rst), 48 bytes in the machine's order:
//
//	u64 clock | u32 flags | u32 pad | u64 realtime | u64 host_tsc | u32 pad[4]
type Data struct {
	ClockNs    uint64 // the guest's clock
	Flags      uint32 // Flag values
	RealtimeNs uint64 // CLOCK_REALTIME at the same instant; only with FlagRealtime
	HostTSC    uint64 // of the host, at the same instant; only with FlagHostTSC
}

// Flags of [Data].
const (
	FlagTSCStable = 1 << 1 // all of the guest's processors see one clock
	FlagRealtime  = 1 << 2 // Linux 5.16: RealtimeNs holds; in a SET: add what has passed since
	FlagHostTSC   = 1 << 3 // Linux 5.16: HostTSC holds
)

const (
	// DataBytes is the size of struct kvm_clock_data.
	DataBytes = 48
	// setBytes is how much of it a SET has to say: up to realtime.
	setBytes = 24
)

// ParseData decodes a struct kvm_clock_data.
func ParseData(b []byte) (Data, error) {
	if len(b) < DataBytes {
		return Data{}, fmt.Errorf("kvm_clock_data of %d bytes, want %d", len(b), DataBytes)
	}
	return Data{
		ClockNs:    binary.LittleEndian.Uint64(b),
		Flags:      binary.LittleEndian.Uint32(b[8:]),
		RealtimeNs: binary.LittleEndian.Uint64(b[16:]),
		HostTSC:    binary.LittleEndian.Uint64(b[24:]),
	}, nil
}

// Append appends the DataBytes bytes of d.
func (d Data) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, d.ClockNs)
	b = binary.LittleEndian.AppendUint32(b, d.Flags)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, d.RealtimeNs)
	b = binary.LittleEndian.AppendUint64(b, d.HostTSC)
	return append(b, make([]byte, 16)...)
}

// setTo is the beginning of a struct that sets the clock to clockNs as of
// realtimeNs. Without realtime, on a kernel that does not know the flag and
// would refuse it, which QEMU does not survive, what passes until the call is
// lost.
func setTo(clockNs, realtimeNs uint64, realtime bool) []byte {
	d := Data{ClockNs: clockNs}
	if realtime {
		d.Flags, d.RealtimeNs = FlagRealtime, realtimeNs
	}
	return d.Append(nil)[:setBytes]
}

// at is the clock when CLOCK_REALTIME is realtimeNs. It is false if that does
// not fit: a clock before zero, or of more than 292 years.
func (r Reading) at(realtimeNs uint64) (clockNs uint64, ok bool) {
	if realtimeNs < r.RealtimeNs {
		back := r.RealtimeNs - realtimeNs
		return r.ClockNs - back, back <= r.ClockNs && r.ClockNs <= math.MaxInt64
	}
	clockNs = r.ClockNs + (realtimeNs - r.RealtimeNs)
	return clockNs, clockNs >= r.ClockNs && clockNs <= math.MaxInt64
}
