package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// MonitorOptions configure a Monitor. Period and Limit are those of the Welcome.
type MonitorOptions struct {
	Period time.Duration // between heartbeats
	Limit  time.Duration // of silence, and of the lease; more than Period
	// Stamp returns the stamp of heartbeats and answers; nil: the zero stamp.
	Stamp func() Stamp
	// Now is the clock: monotonic, nil meaning time.Now. Outside tests use
	// Boottime, which counts while the host is suspended. Every instant a
	// Monitor returns is of this clock, and is to be compared with it only.
	Now func() time.Time
	// Wall is CLOCK_REALTIME in Unix nanoseconds; nil: time.Now's.
	Wall func() int64
	// Exchanged, if not nil, is told of each heartbeat that was answered what the
	// clocks on the walls showed: here when it was sent, there when it came and when
	// the answer was sent, and here when that came, in Unix nanoseconds. It is called
	// with a lock held and must not block.
	Exchanged func(sent, came, answered, back int64)
}

// Monitor sends heartbeats on a control connection and keeps its Pulse. Run
// sends and watches; the goroutine that receives hands every frame to Observe,
// which never blocks: two receivers that wait for each other to read an answer
// would wait for ever.
type Monitor struct {
	send func(context.Context, Stamp, Message) error
	o    MonitorOptions
	wake chan struct{} // capacity 1: there is an answer to send

	mu    sync.Mutex
	pulse *Pulse
	reply *HeartbeatAck // to be sent by Run; a newer one replaces an older one
	sent  wallTimes     // of our heartbeats
}

// wallTimes are when the last heartbeats were sent, by number.
type wallTimes [pulseWindow]struct {
	seq    uint64
	unixNs int64
}

func (w *wallTimes) set(seq uint64, unixNs int64) {
	w[seq%pulseWindow].seq, w[seq%pulseWindow].unixNs = seq, unixNs
}

// take returns the time of a heartbeat, once.
func (w *wallTimes) take(seq uint64) (unixNs int64, ok bool) {
	e := &w[seq%pulseWindow]
	ok = seq > 0 && e.seq == seq
	unixNs = e.unixNs
	if ok {
		e.seq = 0
	}
	return unixNs, ok
}

// NewMonitor returns a Monitor for control; silence counts from now.
func NewMonitor(control *Conn, o MonitorOptions) (*Monitor, error) {
	return newMonitor(control.Send, o)
}

func newMonitor(send func(context.Context, Stamp, Message) error, o MonitorOptions) (*Monitor, error) {
	if o.Period <= 0 || o.Limit <= o.Period {
		return nil, fmt.Errorf("heartbeat period %v and silence limit %v: the limit must be above the period", o.Period, o.Limit)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wall == nil {
		o.Wall = func() int64 { return time.Now().UnixNano() }
	}
	if o.Stamp == nil {
		o.Stamp = func() Stamp { return Stamp{} }
	}
	return &Monitor{send: send, o: o, wake: make(chan struct{}, 1), pulse: NewPulse(o.Now(), o.Limit)}, nil
}

// Run sends a heartbeat at once and then each period, and the answers to the
// peer's, until ctx ends (it returns ctx.Err()), a send fails, or the peer was
// silent for the limit: then the error matches ErrPeerSilent. A send that
// blocks, which a full socket makes it do, does not delay this. Call it once.
func (m *Monitor) Run(ctx context.Context) error {
	next := m.o.Now()
	for {
		now := m.o.Now()
		due := !now.Before(next)
		silentAt, outbox := m.collect(due)
		if !now.Before(silentAt) {
			return fmt.Errorf("nothing heard for %v: %w", m.o.Limit, ErrPeerSilent)
		}
		if due { // from now on, not from next: after a stall one heartbeat says all
			next = now.Add(m.o.Period)
		}
		for _, msg := range outbox {
			if err := m.sendWithin(ctx, silentAt.Sub(m.o.Now()), msg); err != nil {
				return err
			}
		}
		if len(outbox) > 0 {
			continue
		}
		timer := time.NewTimer(min(next.Sub(now), silentAt.Sub(now)))
		select {
		case <-timer.C:
		case <-m.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// collect returns what is to be sent: an answer, if one waits, and a heartbeat,
// if one is due, dated before it is sent.
func (m *Monitor) collect(due bool) (silentAt time.Time, outbox []Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reply != nil {
		m.reply.UnixNs = m.o.Wall()
		outbox = append(outbox, m.reply)
		m.reply = nil
	}
	if due {
		beat := m.pulse.Beat(m.o.Now())
		m.sent.set(beat.Seq, m.o.Wall())
		outbox = append(outbox, beat)
	}
	return m.pulse.SilentAt(), outbox
}

func (m *Monitor) sendWithin(ctx context.Context, patience time.Duration, msg Message) error {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := m.send(bounded, m.o.Stamp(), msg)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s could not be sent for %v: %w", msg.Type(), patience, ErrPeerSilent)
	}
	return err
}

// Observe takes note of a received frame and has Run answer a Heartbeat. handled
// means that the frame was a Heartbeat or HeartbeatAck and needs no further
// treatment. err is a *FormatError. Call it as soon as the frame came.
func (m *Monitor) Observe(f Frame) (handled bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.o.Now()
	switch msg := f.Msg.(type) {
	case *Heartbeat:
		m.reply = m.pulse.Reply(now, msg)
		m.reply.CameUnixNs = m.o.Wall()
		select {
		case m.wake <- struct{}{}:
		default:
		}
		return true, nil
	case *HeartbeatAck:
		back := m.o.Wall()
		err := m.pulse.Answer(now, msg)
		if sent, ok := m.sent.take(msg.Seq); ok && err == nil && m.o.Exchanged != nil {
			m.o.Exchanged(sent, msg.CameUnixNs, msg.UnixNs, back)
		}
		return true, err
	}
	m.pulse.Heard(now)
	return false, nil
}

// What follows may be called from any goroutine; see [Pulse].

// LeaseUntil returns when this side's lease ends; zero: there never was one.
func (m *Monitor) LeaseUntil() time.Time { return read(m, (*Pulse).LeaseUntil) }

// PeerLeaseEnds returns when a lease of the peer's is surely over.
func (m *Monitor) PeerLeaseEnds() time.Time { return read(m, (*Pulse).PeerLeaseEnds) }

// SilentAt returns when the peer counts as silent.
func (m *Monitor) SilentAt() time.Time { return read(m, (*Pulse).SilentAt) }

// LastHeard returns when the last message came.
func (m *Monitor) LastHeard() time.Time { return read(m, (*Pulse).LastHeard) }

// RoundTripNs returns the last round trip of a heartbeat; 0 before the first.
func (m *Monitor) RoundTripNs() int64 { return read(m, (*Pulse).RoundTripNs) }

// Holds reports whether this side's lease holds now.
func (m *Monitor) Holds() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.o.Now().Before(m.pulse.LeaseUntil())
}

func read[T any](m *Monitor, get func(*Pulse) T) T {
	m.mu.Lock()
	defer m.mu.Unlock()
	return get(m.pulse)
}
