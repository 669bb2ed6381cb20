package replica

import (
	"fmt"
	"time"
)

// pulseWindow bounds how many heartbeats may be on their way; with the default
// period that is seconds, far beyond any silence limit.
const pulseWindow = 64

// Pulse is what heartbeats tell, as a pure state machine: it takes instants and
// holds no clock. All instants must come from one monotonic clock. It is not
// safe for concurrent use. See [Monitor] for the runner.
//
// It answers two questions. For the primary: until when may it release
// outputs? Until the limit after it *sent* the last heartbeat that was
// answered. For the backup: from when on is that surely over at the peer? The
// limit after it *received* the last heartbeat it answered, since that was
// later than its sending. So the two intervals cannot overlap, up to the drift
// of two clocks over one limit, whatever the network delays.
type Pulse struct {
	limit       time.Duration
	origin      time.Time
	seq         uint64                 // last sent
	sent        [pulseWindow]time.Time // when seq was sent, at seq % pulseWindow
	answered    uint64                 // highest answered
	leaseFrom   time.Time              // when answered was sent; zero before the first answer
	lastHeard   time.Time
	lastAnswer  time.Time // when the last heartbeat we answered came
	roundTripNs int64
}

// NewPulse starts at now with the given silence limit. No lease is held before
// the first answer; silence counts from now.
func NewPulse(now time.Time, limit time.Duration) *Pulse {
	return &Pulse{limit: limit, origin: now, lastHeard: now, lastAnswer: now}
}

// Beat returns the heartbeat to send at now. now must be taken before sending.
func (p *Pulse) Beat(now time.Time) *Heartbeat {
	p.seq++
	p.sent[p.seq%pulseWindow] = now
	return &Heartbeat{Seq: p.seq, SentNs: int64(now.Sub(p.origin))}
}

// Heard notes that a message of any type came.
func (p *Pulse) Heard(now time.Time) {
	if now.After(p.lastHeard) {
		p.lastHeard = now
	}
}

// Answer notes an answer to one of our heartbeats. One that was never sent, or
// with a time that is not ours, is an error: the peer is confused, and a lease
// must not rest on it. Answers that come too late to matter are ignored.
func (p *Pulse) Answer(now time.Time, a *HeartbeatAck) error {
	p.Heard(now)
	if a.Seq == 0 || a.Seq > p.seq {
		return &FormatError{Type: TypeHeartbeatAck, Field: "seq", Reason: fmt.Sprintf("%d was never sent, the last was %d", a.Seq, p.seq)}
	}
	if a.Seq <= p.answered || p.seq-a.Seq >= pulseWindow {
		return nil
	}
	sent := p.sent[a.Seq%pulseWindow]
	if a.EchoedNs != int64(sent.Sub(p.origin)) {
		return &FormatError{Type: TypeHeartbeatAck, Field: "echoedNs", Offset: 8, Reason: fmt.Sprintf("%d is not what heartbeat %d said", a.EchoedNs, a.Seq)}
	}
	p.answered, p.leaseFrom, p.roundTripNs = a.Seq, sent, int64(now.Sub(sent))
	return nil
}

// Reply notes a heartbeat of the peer's and returns the answer. now must be
// after its arrival and before the answer is sent.
func (p *Pulse) Reply(now time.Time, h *Heartbeat) *HeartbeatAck {
	p.Heard(now)
	if now.After(p.lastAnswer) {
		p.lastAnswer = now
	}
	return &HeartbeatAck{Seq: h.Seq, EchoedNs: h.SentNs}
}

// LeaseUntil returns when this side's lease ends: outputs may be released
// strictly before. The zero time means that there never was one.
func (p *Pulse) LeaseUntil() time.Time {
	if p.leaseFrom.IsZero() {
		return time.Time{}
	}
	return p.leaseFrom.Add(p.limit)
}

// PeerLeaseEnds returns when a lease the peer may hold is surely over: not
// before may this side claim the right to run.
func (p *Pulse) PeerLeaseEnds() time.Time { return p.lastAnswer.Add(p.limit) }

// SilentAt returns when the peer counts as silent if nothing comes until then.
func (p *Pulse) SilentAt() time.Time { return p.lastHeard.Add(p.limit) }

// LastHeard returns when the last message came.
func (p *Pulse) LastHeard() time.Time { return p.lastHeard }

// RoundTripNs returns the last heartbeat's time to its answer; 0 before the first.
func (p *Pulse) RoundTripNs() int64 { return p.roundTripNs }
