package kvmclock

import (
	"fmt"
	"math"
	"time"
)

const (
	// toleranceNs is what two readings may differ by from what RAW says before
	// somebody is suspected: readings are good to a microsecond, and the
	// shortest pause of a guest is longer than this.
	toleranceNs = 50_000
	// tolerancePPM allows for the rates of the guest's clock and of RAW, which
	// come from one crystal but are rounded apart: KVM counts in kHz.
	tolerancePPM = 2
	// restoreNsMax is how much of a deficit is taken for our own pauses without
	// our having missed any: larger than what a slow flush at a stop takes, shorter
	// than what a person can do between two commands.
	restoreNsMax = int64(time.Second)
	// missesFree is how many pauses may be missed in a row before arming waits.
	missesFree = 3
	// backoffMin and backoffMax bound that wait. A suspended guest has no resume
	// to be caught, and each try costs its QEMU a little.
	backoffMin, backoffMax = 10 * time.Millisecond, time.Second
)

// instant is one moment of the host's clocks, in ns.
type instant struct {
	realNs, rawNs int64 // CLOCK_REALTIME, CLOCK_MONOTONIC_RAW
}

// sample is a guest's clock at an instant of CLOCK_MONOTONIC_RAW.
type sample struct {
	clockNs, rawNs int64
	unsureNs       int64 // by how much rawNs may be wrong
}

// at is the clock at another instant if nobody sets it.
func (s sample) at(rawNs int64) int64 { return s.clockNs + (rawNs - s.rawNs) }

// ledger is what a [Keeper] knows, and what it does next. It does no I/O.
//
//	          ┌─ every pause: keep ──▶ reading: as expected ─┐
//	          ▼                              │               │
//	       even ◀────────────────────────────┼───────────────┘
//	          ▲                    deficit   │   surplus, or a deficit that is not ours
//	set done  │                              ▼               └─▶ accepted: even
//	          └── next pause: set ◀──────── debt
//	                                 └─ missed: keep first, to measure it anew
type ledger struct {
	Report
	first, last sample // readings; first is moved by nothing
	known       bool   // there is a reading
	canSet      bool   // this kernel takes FlagRealtime; without it a SET at the pause would lose the pause again
	fresh       bool   // last is of the pause before this one
	epochNs     int64  // between last and the one before
	missedNs    int64  // how long the pauses were that were missed since last
	missesInRow int    // that were tried
	armAtRawNs  int64  // arming waits until then
	strange     bool   // the reading before this one was accepted
}

// mayArm tells whether this pause is to be caught at all.
func (l *ledger) mayArm(rawNs int64) bool {
	return l.missesInRow < missesFree || rawNs >= l.armAtRawNs
}

// toSet is the clock that the next resume is to be given; false if it is to be
// kept. A debt that was measured before other pauses were missed, or long ago as
// epochs go, is measured anew first: an administrator may have paused the guest
// since, and what is set here puts everything back.
func (l *ledger) toSet(rawNs int64) (sample, bool) {
	s := sample{clockNs: l.last.at(rawNs) + l.DebtNs, rawNs: rawNs, unsureNs: l.last.unsureNs}
	recent := rawNs-l.last.rawNs <= max(restoreNsMax, 2*l.epochNs)
	return s, l.known && l.fresh && recent && l.DebtNs > 0 && s.clockNs > 0
}

// entry is what became of a reading, to be logged.
type entry struct {
	what  string // "" if nothing is worth a line
	errNs int64  // how much it is about
	why   string // of a pause that was missed
}

// kept books a resume that was kept, and what it read.
func (l *ledger) kept(s sample) entry {
	l.Kept++
	l.missesInRow = 0
	missedNs := l.missedNs
	l.missedNs = 0
	before := l.last
	l.last, l.fresh = s, true
	if !l.known {
		l.first, l.known = s, true
		return entry{}
	}
	elapsedNs := s.rawNs - before.rawNs
	l.epochNs = elapsedNs
	errNs := s.clockNs - before.at(s.rawNs)
	allowedNs := toleranceNs + max(elapsedNs, 0)/1_000_000*tolerancePPM + before.unsureNs + s.unsureNs
	switch {
	case errNs < -allowedNs && -errNs <= restoreNsMax+missedNs && l.canSet:
		l.DebtNs -= errNs
		l.strange = false
	case errNs > allowedNs && errNs <= l.DebtNs+allowedNs:
		// It was put back by a resume of which we do not know: the tracer died
		// before it could say so. To put it back again would be too much.
		l.DebtNs = max(l.DebtNs-errNs, 0)
		l.strange = false
	case errNs < -allowedNs || errNs > allowedNs:
		return l.accept(errNs)
	default:
		l.strange = false
	}
	l.LastErrNs = errNs
	l.MaxErrNs = max(l.MaxErrNs, errNs, -errNs)
	l.drift()
	return entry{}
}

// accept books a change of the clock as the guest's own time. Of a series only
// the first is worth a line.
func (l *ledger) accept(errNs int64) entry {
	l.Accepted++
	l.AcceptedNs += errNs
	l.LastErrNs = 0
	l.drift()
	e := entry{errNs: errNs, what: "somebody set the guest's clock forward, or the host was suspended"}
	if errNs < 0 {
		e.what = "the guest was paused by somebody else"
	}
	if l.strange {
		e.what = ""
	}
	l.strange = true
	return e
}

// drift books the sum of all that is not accepted.
func (l *ledger) drift() {
	l.DriftNs = l.last.clockNs - l.first.at(l.last.rawNs) - l.AcceptedNs
}

// restored books a resume at which the clock was set to s. The one before it was
// kept, or toSet would not have said so: there are no misses to forget.
func (l *ledger) restored(s sample) {
	l.Restored++
	l.epochNs = s.rawNs - l.last.rawNs
	l.last, l.fresh, l.DebtNs = s, true, 0
	l.LastErrNs = 0
	l.drift()
}

// missed books a pause that was lost, or that did not end. Without a reason it
// was one that mayArm advised against.
func (l *ledger) missed(rawNs, pauseNs int64, why string) entry {
	l.Missed++
	l.fresh = false
	l.missedNs += min(max(pauseNs, 0), math.MaxInt64/2-l.missedNs)
	if why == "" {
		return entry{}
	}
	l.LastMiss = why
	l.missesInRow++
	if l.missesInRow >= missesFree {
		l.armAtRawNs = rawNs + int64(min(backoffMin<<min(l.missesInRow-missesFree, 16), backoffMax))
	}
	if l.missesInRow > 1 {
		return entry{}
	}
	return entry{what: "a pause of the guest was not caught", errNs: pauseNs, why: why}
}

// reading is the guest's clock now, with what is still to be put back.
func (l *ledger) reading(now instant) (Reading, bool) {
	clockNs := l.last.at(now.rawNs) + l.DebtNs
	if !l.known || clockNs < 0 || now.realNs < 0 {
		return Reading{}, false
	}
	return Reading{ClockNs: uint64(clockNs), RealtimeNs: uint64(now.realNs)}, true
}

// sampleOf places a reading of KVM's on CLOCK_MONOTONIC_RAW. The call was made
// between two instants; KVM says when by CLOCK_REALTIME, and how that and RAW go
// together the instants say. If it does not say, or if CLOCK_REALTIME was set
// meanwhile, the reading is anywhere between them: exact is false.
func sampleOf(d Data, from, to instant) (s sample, exact bool, err error) {
	if d.ClockNs > math.MaxInt64 || d.RealtimeNs > math.MaxInt64 {
		return s, false, fmt.Errorf("KVM read a clock of %d ns at %d ns: no time that could be", d.ClockNs, d.RealtimeNs)
	}
	rawNs, realNs := to.rawNs-from.rawNs, to.realNs-from.realNs
	s = sample{clockNs: int64(d.ClockNs), rawNs: from.rawNs + rawNs/2, unsureNs: rawNs/2 + 1}
	atNs := int64(d.RealtimeNs) - from.realNs
	if d.Flags&FlagRealtime == 0 || rawNs <= 0 || realNs <= 0 ||
		atNs < -slackNs || atNs > realNs+slackNs || max(rawNs-realNs, realNs-rawNs) > slackNs+rawNs/slewShare {
		return s, false, nil
	}
	s.rawNs = from.rawNs + int64(float64(atNs)*float64(rawNs)/float64(realNs))
	s.unsureNs = 0
	return s, true, nil
}

const (
	// slackNs is how exactly two clocks can be read at one instant.
	slackNs = 20_000
	// slewShare bounds how fast CLOCK_REALTIME may go against RAW: a thousandth;
	// the kernel allows half of that to NTP (and ten times that to tick changes
	// of adjtimex, which nobody makes while a guest is resumed).
	slewShare = 1000
)
