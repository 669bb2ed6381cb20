package ptracer

import "encoding/binary"

// leaveRseq returns where a thread stopped at rip has to go on with regard to
// restartable sequences (rseq(2)): inside one, at its abort handler, as after any
// preemption. The kernel does that when it resumes a thread, but it would look at
// our chain's rip, find it outside of the sequence and forget about it; then
// rt_sigreturn would go back into the middle of a sequence that was preempted.
func leaveRseq(pid int, rip uint64) uint64 {
	const (
		criticalSectionOffset = 8 // rseq.rseq_cs
		userAddressMax        = 1 << 56
	)
	config, err := getRseqConfig(pid)
	if err != nil || config.Pointer == 0 {
		return rip // none registered, or a kernel without
	}
	var pointer [8]byte
	if readMemory(pid, config.Pointer+criticalSectionOffset, pointer[:]) != nil {
		return rip
	}
	descriptor := binary.LittleEndian.Uint64(pointer[:])
	if descriptor == 0 || descriptor >= userAddressMax {
		return rip
	}
	var cs [32]byte // version, flags, start_ip, post_commit_offset, abort_ip
	if readMemory(pid, descriptor, cs[:]) != nil {
		return rip
	}
	start, length, abort := binary.LittleEndian.Uint64(cs[8:]), binary.LittleEndian.Uint64(cs[16:]), binary.LittleEndian.Uint64(cs[24:])
	if rip-start < length { // also false for rip < start, which wraps
		return abort
	}
	return rip
}
