package zcstream

import "time"

// Mode says when a [Sender] lends memory to the kernel instead of having it
// copied.
type Mode uint8

const (
	// ModeAuto tries zero-copy, keeps to it while it really saves the copy, and
	// tries again later when it did not.
	ModeAuto Mode = iota
	// ModeOff never tries.
	ModeOff
	// ModeForce uses zero-copy also where the kernel says that it copied after
	// all, which costs more than a plain send: for tests and measurements.
	ModeForce
)

const (
	// minZeroCopyBytes is the default of Options.MinZeroCopyBytes. The kernel's
	// documentation says that lending pays above about 10 KB.
	minZeroCopyBytes = 16 << 10
	// reprobeAfter is the default of Options.ReprobeAfter: a probe costs some ten
	// microseconds, and routes change rarely.
	reprobeAfter = 10 * time.Second
	// pendingMaxBytes is the default of Options.PendingMaxBytes. The socket's
	// send buffer, 4 MiB unless configured, is usually the tighter bound.
	pendingMaxBytes = 64 << 20
	// lingerMax is the default of Options.LingerMax.
	lingerMax = time.Second
)

// Options tune a [Sender]. The zero value is what [NewSender] uses.
type Options struct {
	// ZeroCopy says when memory is lent to the kernel.
	ZeroCopy Mode
	// MinZeroCopyBytes is the least that is worth lending in one system call;
	// what is smaller is copied. 0 means 16 KiB.
	MinZeroCopyBytes int
	// ReprobeAfter is for how long ModeAuto sends plainly before it tries
	// zero-copy again. 0 means 10 s.
	ReprobeAfter time.Duration
	// PendingMaxBytes bounds what is lent to the kernel at any time; what would
	// exceed it is copied, so that Send does not wait for it. 0 means 64 MiB.
	PendingMaxBytes int
	// LingerMax is for how long, after Close, memory that is still lent may go on
	// being sent before the connection is reset to get it back. 0 means 1 s;
	// below 0, the reset comes at once.
	LingerMax time.Duration
}

func (o Options) withDefaults() Options {
	if o.MinZeroCopyBytes <= 0 {
		o.MinZeroCopyBytes = minZeroCopyBytes
	}
	if o.ReprobeAfter <= 0 {
		o.ReprobeAfter = reprobeAfter
	}
	if o.PendingMaxBytes <= 0 {
		o.PendingMaxBytes = pendingMaxBytes
	}
	if o.LingerMax == 0 {
		o.LingerMax = lingerMax
	}
	return o
}

// Stats is what a [Sender] did so far. Counters only grow, PendingBytes apart.
type Stats struct {
	// Sends counts calls of Send that handed at least one byte to the kernel.
	Sends uint64
	// Bytes counts what the kernel took, ZeroCopyBytes what it borrowed of that.
	Bytes, ZeroCopyBytes uint64
	// Completions counts system calls whose memory the kernel gave back, and
	// CopiedCompletions those of them for which it said that it had copied after
	// all.
	Completions, CopiedCompletions uint64
	// NoBuffers counts refusals for want of option memory (net.core.optmem_max)
	// or of RLIMIT_MEMLOCK; those pieces were copied.
	NoBuffers uint64
	// PendingBytes is what the kernel has borrowed and not given back.
	PendingBytes uint64
	// Mode is "zero-copy", or "plain: " and why, or "probing".
	Mode string
}
