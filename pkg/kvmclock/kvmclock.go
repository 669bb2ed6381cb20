// Package kvmclock keeps the clock of a KVM guest true while QEMU stops and
// starts it, with an unchanged QEMU and nothing in the guest.
//
// # What goes wrong without it
//
// On x86 a guest's kvmclock, the clocksource of nearly every Linux guest, is a
// number that KVM counts, and KVM counts on while the processors stand still.
// It is QEMU that makes pauses vanish: when it stops a guest it reads the clock
// (KVM_GET_CLOCK), and when it starts the guest it writes back what it read
// (KVM_SET_CLOCK, with no flags; hw/i386/kvm/clock.c). That is meant for
// migration. A guest that is stopped 5 ms for a checkpoint, fifty times a
// second, so loses a quarter of its time.
//
// # Keep
//
// So the best correction corrects nothing. A [Keeper] waits with ptrace for that
// one system call of QEMU's main thread, and turns it into the other one: a
// single register, the request of the ioctl, becomes KVM_GET_CLOCK.
//
//	QEMU:    stop            start
//	         GET_CLOCK ─┐    SET_CLOCK(what GET said)   the guest loses the pause
//	                    └──▶ GET_CLOCK                  what it becomes: KVM's clock is as it was
//	                         clock, realtime, host_tsc  what we learn by the way
//
// The kernel changes nothing, fills in the struct, which QEMU does not look at
// again, and returns 0. The guest sees no jump, not of a nanosecond, and there
// is no arithmetic that could be wrong. A register is changed in one step: who
// is killed before it loses one pause, who is killed after it none.
//
// # Set
//
// Writing a clock of our own into QEMU's call is left for two cases. One is a
// debt: a pause whose trap was missed, because the machine was too busy or the
// tracer dead, and which the next resume puts back. The other is activation, see
// [SetAtResume]: a guest goes on in another QEMU, from a checkpoint, and its
// clock is to be what it would have been. The flag KVM_CLOCK_REALTIME then makes
// the kernel add what has passed since the bytes were computed. A clock below
// QEMU's own is never written, so that no guest sees time go back.
//
// # Whose pause it was
//
// Each kept resume is a reading of the guest's clock. It is held against
// CLOCK_MONOTONIC_RAW, the host clock that nobody adjusts: between two readings
// both have gone on by the same, but for parts in 10^7, or somebody else has set
// the guest's clock. A deficit of up to a second, and of all pauses that we know
// to have missed, is taken for ours and put back. A larger one is an
// administrator's pause, and a surplus a suspended host (KVM counts that time,
// RAW does not): both are accepted as the guest's time from then on. Steps and
// slews of the host's time of day play no part.
//
// # Limits
//
// x86-64 and Linux. Guests without KVM have no such clock: [ErrNoKVM]. Guests
// on the TSC clocksource lose nothing in pauses, because the TSC runs on; at
// activation see [AdvanceTSC]. A debt is measured at one resume and put back at
// the next: until then the guest is behind. Two pauses in a row that are missed
// cost more than one in turn, but no more than they lasted. An administrator's
// pause between the measuring of a debt and its putting back is put back as well,
// if it is no longer than a second or two epochs. A guest that nobody stops any
// more keeps the debt it has. Should the host's date be set forward within the
// milliseconds of a Set, the kernel adds the step to the guest's clock, and there
// it stays, because no clock goes back.
package kvmclock

import (
	"errors"
	"time"
)

// ErrNoKVM says that a process has no KVM virtual machine: it is not QEMU, or it
// emulates (TCG), and there is no clock to be kept.
var ErrNoKVM = errors.New("process has no KVM virtual machine")

// Reading is what a guest's clock said at an instant of the host's
// CLOCK_REALTIME; both in ns. It is what a backup needs of its primary, see
// [SetAtResume].
type Reading struct{ ClockNs, RealtimeNs uint64 }

// Report is what a [Keeper] did so far. Every pause is counted in exactly one of
// Kept, Restored and Missed.
type Report struct {
	Kept     uint64 // resumes at which the guest's clock ran on untouched
	Restored uint64 // resumes at which a debt was put back
	Missed   uint64 // resumes at which QEMU did as it likes: a pause was lost, or the guest was not resumed
	Accepted uint64 // changes by others, or too large to be ours, which stand

	LastErrNs  int64 // what the guest's clock gained (+) or lost (-) against CLOCK_MONOTONIC_RAW in the last epoch, unless accepted
	MaxErrNs   int64 // the largest |LastErrNs|
	DriftNs    int64 // the same since the first reading, in sum; without what is in AcceptedNs
	DebtNs     int64 // how much of it waits to be put back
	AcceptedNs int64 // the sum of what was accepted: negative for pauses, positive for a host's suspend

	LastAttached time.Duration // how long QEMU's main thread was traced at the last caught resume
	LastMiss     string        // why the last pause was missed; stays after later successes
	// Coarse says that this host's KVM does not say at which instant a clock was
	// read (its TSC is not fit to be the guest's clock): errors are known to the
	// length of a resume only, some milliseconds.
	Coarse bool
}
