package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// hubQueueMax bounds the events a reader has not taken yet; a slower one
	// is cut off.
	hubQueueMax = 256
)

// hub spreads events to those who listen. The zero value is ready; safe for
// concurrent use.
type hub struct {
	mu   sync.Mutex
	subs map[chan control.Event]struct{}
}

func (h *hub) subscribe(ctx context.Context) <-chan control.Event {
	c := make(chan control.Event, hubQueueMax)
	h.mu.Lock()
	if h.subs == nil {
		h.subs = map[chan control.Event]struct{}{}
	}
	h.subs[c] = struct{}{}
	h.mu.Unlock()
	context.AfterFunc(ctx, func() { h.drop(c) })
	return c
}

func (h *hub) drop(c chan control.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[c]; ok {
		delete(h.subs, c)
		close(c)
	}
}

func (h *hub) emit(domain, kind, text string) {
	e := control.Event{At: time.Now(), Domain: domain, Kind: kind, Text: text}
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.subs {
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
		b.log.Info("state", "now", state, "generation", gen, "reason", reason)
		b.d.hub.emit(b.name, "state", text)
	}
	b.changed()
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
