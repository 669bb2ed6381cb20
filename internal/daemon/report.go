package daemon

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// hubQueueMax bounds the events a reader has not taken yet; a slower one
	// is cut off.
	hubQueueMax = 256
	// eventsKept is how many events are kept for those who come later.
	eventsKept = 1024
)

// hub spreads events to those who listen, and keeps the last ones for those who
// come later. The zero value is ready; safe for concurrent use.
type hub struct {
	mu   sync.Mutex
	subs map[chan control.Event]control.EventQuery
	kept [eventsKept]control.Event
	n    int // so far
}

// subscribe returns what q asks for; the channel is closed at the end, with
// ctx, or when its reader is too slow.
func (h *hub) subscribe(ctx context.Context, q control.EventQuery) <-chan control.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	past := h.past(q)
	c := make(chan control.Event, len(past)+hubQueueMax)
	for _, e := range past {
		c <- e
	}
	if !q.Follow {
		close(c)
		return c
	}
	if h.subs == nil {
		h.subs = map[chan control.Event]control.EventQuery{}
	}
	h.subs[c] = q
	context.AfterFunc(ctx, func() { h.drop(c) })
	return c
}

// past returns the last q.Last events, the oldest first; mu is held.
func (h *hub) past(q control.EventQuery) []control.Event {
	var es []control.Event
	for i := h.n - 1; i >= max(0, h.n-eventsKept) && (q.Last < 0 || len(es) < q.Last); i-- {
		if e := h.kept[i%eventsKept]; q.Wants(e) && !e.At.Before(q.Since) {
			es = append(es, e)
		}
	}
	slices.Reverse(es)
	return es
}

func (h *hub) drop(c chan control.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[c]; ok {
		delete(h.subs, c)
		close(c)
	}
}

// emit tells everybody of e, at this moment.
func (h *hub) emit(e control.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.At = time.Now()
	h.kept[h.n%eventsKept] = e
	h.n++
	for c, q := range h.subs {
		if !q.Wants(e) {
			continue
		}
		select {
		case c <- e:
		default:
			delete(h.subs, c)
			close(c)
		}
	}
}

// setState publishes the machine's state and tells listeners when it changed.
func (b *base) setState(role, state, reason string, gen uint64) {
	b.mu.Lock()
	s := &b.status
	changed := s.State != state
	s.Domain, s.UUID, s.Role, s.State, s.Generation = b.name, b.uuid, role, state, gen
	s.Peer, s.Arbiter = b.mark.PeerName, b.mark.Arbiter
	b.reason = reason
	if changed {
		s.Since = time.Now()
	}
	b.mu.Unlock()
	if changed {
		text := role + " " + state
		if reason != "" {
			text += ": " + reason
		}
		b.log.Info("state", "now", state, "generation", gen, "peer", b.peerName(), "reason", reason)
		b.tell(control.EventState, text)
	}
	b.changed()
}

// tell tells listeners what happened to the domain.
func (b *base) tell(kind, text string) {
	b.mu.Lock()
	e := control.Event{Domain: b.name, UUID: b.uuid, Kind: kind, Role: b.status.Role, Generation: b.status.Generation, Peer: b.status.Peer, Text: text}
	if kind == control.EventState {
		e.State = b.status.State
	}
	b.mu.Unlock()
	b.d.hub.emit(e)
}

func (b *base) setError(err error) {
	b.mu.Lock()
	b.status.Error = text(err)
	b.mu.Unlock()
	b.changed()
}

func (b *base) lastReason() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status.Error != "" && b.reason == "" {
		return b.status.Error
	}
	return b.reason
}

// generation is the last one the machine published.
func (b *base) generation() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(b.status.Generation, b.mark.Generation)
}

func (b *base) peerName() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mark.PeerName
}

// report is what status shows of the primary.
func (p *primary) report() control.Status {
	p.mu.Lock()
	s := p.status
	s.Warnings = append([]string(nil), s.Warnings...)
	p.mu.Unlock()
	p.withLink(func(l *link) {
		s.Epoch.Committed = l.committed.Load()
		s.Ship = l.report()
	})
	p.stats.report(&s)
	s.Throttle = p.pacer.report()
	s.Pacing = *p.pacing.Load()
	p.out.report(&s)
	p.reportDisks(&s)
	s.Clock = p.clock.report()
	s.Clock.Peer = p.peerClock.report()
	s.MemoryBytes = p.sync.memory.Load()
	if s.State == control.StateSyncing {
		s.Sync = p.sync.report(time.Now())
	}
	return s
}

// report is nil until there is something to say.
// Its rate is that of what is done, whether it had to be sent or not.
func (y *syncProgress) report(now time.Time) *control.SyncStatus {
	s := &control.SyncStatus{DoneBytes: min(y.done.Load()+y.disks.Load(), y.total.Load()), TotalBytes: y.total.Load()}
	if s.TotalBytes == 0 {
		return nil
	}
	if took := now.Sub(time.Unix(0, y.startNs.Load())).Seconds(); took > 0 {
		s.RateBps = float64(s.DoneBytes) / took
	}
	if s.RateBps > 0 {
		s.EtaS = float64(s.TotalBytes-s.DoneBytes) / s.RateBps
	}
	return s
}

// report is what status shows of the backup.
func (b *backup) report() control.Status {
	age, any := b.committed.age()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Warnings = append([]string(nil), s.Warnings...)
	switch s.State {
	case ftengine.BackupOrphaned.String(), ftengine.BackupClaiming.String(), ftengine.BackupFailed.String():
		if s.Error == "" {
			s.Error = b.reason
		}
	case ftengine.BackupActive.String():
		s.Error = "" // of the way here
	}
	if any {
		s.LastCommitAgeMs = ms(age)
	}
	s.Clock.Peer = b.peerClock.report()
	b.disks.Load().report(&s)
	b.runsOn.Load().report(&s)
	return s
}
