package zcstream

import "time"

// copiedWindow is how many answers of the kernel are judged together once
// zero-copy had worked: now and then a copy is made for a retransmission or a
// packet capture, and that is no reason to stop.
const copiedWindow = 32

// verdict is what a policy says about the next system call.
type verdict uint8

const (
	plain verdict = iota
	probe         // lend a little, and wait for the kernel's word about it
	lend
)

// policy decides, for one connection, when lending is worth it.
//
//	      probed            not copied
//	probing ──▶ asked ───────────────▶ lending
//	   ▲          │ copied                │ half of a window was copied
//	   └──────── resting ◀────────────────┘
//	 ReprobeAfter           off: never again
//
// It is not safe for concurrent use: the Sender has a lock. The zero value is
// ModeAuto that probes without a rest.
type policy struct {
	mode         Mode
	reprobeAfter time.Duration

	state        policyState
	reason       string    // of resting and off
	until        time.Time // of resting
	question     uint32    // of asked: the number of the system call
	seen, copied uint64    // of lending: answers in this window
}

type policyState uint8

const (
	probing policyState = iota
	asked
	lending
	resting
	off
)

// want says what to do with the next piece.
func (p *policy) want(now time.Time) verdict {
	if p.state == resting && !now.Before(p.until) {
		p.state = probing
	}
	switch {
	case p.state == off || p.state == resting:
		return plain
	case p.mode == ModeForce || p.state == lending:
		return lend
	case p.state == probing:
		return probe
	default: // asked: the answer is on its way, and plain is right until then
		return plain
	}
}

// probed notes that system call id is the probe.
func (p *policy) probed(id uint32) { p.state, p.question = asked, id }

// answered notes what the kernel said about the calls lo to hi.
func (p *policy) answered(lo, hi uint32, copied bool, now time.Time) {
	if p.mode == ModeForce {
		return
	}
	switch p.state {
	case asked:
		if p.question-lo > hi-lo {
			return // about an earlier time
		}
		if copied {
			p.rest("the kernel copies on this path (loopback, veth, a device without scatter-gather)", now)
			return
		}
		p.state, p.seen, p.copied = lending, 0, 0
	case lending:
		n := uint64(hi-lo) + 1
		p.seen += n
		if copied {
			p.copied += n
		}
		if p.seen < copiedWindow {
			return
		}
		if 2*p.copied >= p.seen {
			p.rest("the kernel has begun to copy on this path", now)
			return
		}
		p.seen, p.copied = 0, 0
	}
}

// rest stops lending until the next probe. Not after off.
func (p *policy) rest(reason string, now time.Time) {
	if p.state != off {
		p.state, p.reason, p.until = resting, reason, now.Add(p.reprobeAfter)
	}
}

// stop ends lending for good.
func (p *policy) stop(reason string) { p.state, p.reason = off, reason }

func (p *policy) String() string {
	switch {
	case p.state == off || p.state == resting:
		return "plain: " + p.reason
	case p.mode == ModeForce || p.state == lending:
		return "zero-copy"
	default:
		return "probing"
	}
}
