package daemon

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// statWindow is how many epochs are kept to be looked at.
	statWindow = 512
	// epochReaderMax bounds the epochs that a reader has not taken yet; a slower
	// one is cut off.
	epochReaderMax = statWindow
	// rateWindow is the shortest time a rate is averaged over.
	rateWindow = 500 * time.Millisecond
	// intervalWindow is how many epochs the interval is averaged over.
	intervalWindow = 32
)

// epochLog keeps what is known of the last epochs. An epoch is complete when it
// was captured, shipped and acknowledged, of which this side hears in any order.
// Safe for concurrent use.
type epochLog struct {
	mu   sync.Mutex
	done [statWindow]control.Epoch // the last at (n-1)%statWindow
	n    int                       // epochs ever completed
	open map[ftengine.Epoch]*openEpoch
	of   *link // whose open are

	last  time.Time // end of the last checkpoint of the session
	bytes uint64    // sent since the beginning
	acked time.Time // the last acknowledgement

	rateAt    time.Time // when the rate was last worked out
	rateBytes uint64
	rateBps   float64

	readers map[chan control.Epoch]struct{}
}

// openEpoch is an epoch that is not complete.
type openEpoch struct {
	control.Epoch
	taken     bool
	pausedAt  time.Time
	shippedAt time.Time
	ackedAt   time.Time
}

// epochOf returns the open epoch k of l; mu is held. It is nil for a session
// that is over.
func (s *epochLog) epochOf(l *link, k ftengine.Epoch) *openEpoch {
	if l.ctx.Err() != nil {
		return nil
	}
	if s.of != l {
		s.of, s.open, s.last = l, map[ftengine.Epoch]*openEpoch{}, time.Time{}
	}
	e := s.open[k]
	if e == nil {
		e = &openEpoch{Epoch: control.Epoch{Epoch: uint64(k)}}
		s.open[k] = e
	}
	return e
}

// taken is what a checkpoint was.
type taken struct {
	generation uint64
	pausedAt   time.Time
	endedAt    time.Time
	phases     capture.Phases
	livePages  int
	clockErrNs int64
}

// captured notes a checkpoint.
func (s *epochLog) captured(l *link, k ftengine.Epoch, t taken) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.epochOf(l, k)
	if e == nil {
		return
	}
	e.taken, e.pausedAt = true, t.pausedAt
	e.Generation, e.At, e.LivePages, e.ClockErrUs = t.generation, t.endedAt, t.livePages, micros(t.clockErrNs)
	if !s.last.IsZero() {
		e.IntervalMs = ms(t.endedAt.Sub(s.last))
	}
	s.last = t.endedAt
	ph := t.phases
	e.PausedMs, e.PausePages, e.DeviceBytes = nanosMs(ph.PausedNs), ph.Pages, ph.DeviceBytes
	e.Phases = control.Phases{StopMs: nanosMs(ph.StopNs), GateMs: nanosMs(ph.AtPauseNs), ScanMs: nanosMs(ph.ScanNs),
		CopyMs: nanosMs(ph.CopyNs), HoldMs: nanosMs(ph.HoldNs), ClockMs: nanosMs(ph.ClockNs), DeviceMs: nanosMs(ph.DeviceNs)}
	s.complete(k, e)
}

func nanosMs(ns int64) float64 { return ms(time.Duration(ns)) }

// pausedAt is when the pause of epoch k of l began; zero if that is not known yet.
func (s *epochLog) pausedAt(l *link, k ftengine.Epoch) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.open[k]; e != nil && s.of == l {
		return e.pausedAt
	}
	return time.Time{}
}

// shipped notes that all of an epoch was handed to the kernel.
func (s *epochLog) shipped(l *link, k ftengine.Epoch, x shipped) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += x.bytes
	e := s.epochOf(l, k)
	if e == nil {
		return
	}
	e.shippedAt = x.at
	e.SentPages, e.ZeroPages, e.SamePages, e.SentBytes, e.Packed = x.pages, x.zero, x.same, x.bytes, x.packed
	s.complete(k, e)
}

// acknowledged notes the backup's word.
func (s *epochLog) acknowledged(l *link, k ftengine.Epoch, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = at
	e := s.epochOf(l, k)
	if e == nil {
		return
	}
	e.ackedAt = s.acked
	s.complete(k, e)
}

// complete shows e to all who want to see it, if all is known of it; mu is held.
func (s *epochLog) complete(k ftengine.Epoch, e *openEpoch) {
	if !e.taken || e.shippedAt.IsZero() || e.ackedAt.IsZero() {
		return
	}
	delete(s.open, k)
	e.ShipMs = ms(e.shippedAt.Sub(e.pausedAt))
	e.AckMs = ms(e.ackedAt.Sub(e.pausedAt))
	s.done[s.n%statWindow] = e.Epoch
	s.n++
	for c := range s.readers {
		select {
		case c <- e.Epoch:
		default:
			delete(s.readers, c)
			close(c)
		}
	}
}

// recent returns the last n epochs, the oldest first; mu is held.
func (s *epochLog) recent(n int) []control.Epoch {
	n = min(n, s.n, statWindow)
	es := make([]control.Epoch, 0, n)
	for i := s.n - n; i < s.n; i++ {
		es = append(es, s.done[i%statWindow])
	}
	return es
}

// follow returns a channel that brings the last epochs, all if last is negative,
// and those to come until ctx ends if more is set. The channel is closed at the end.
func (s *epochLog) follow(ctx context.Context, last int, more bool) <-chan control.Epoch {
	if last < 0 {
		last = statWindow
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	es := s.recent(last)
	c := make(chan control.Epoch, len(es)+epochReaderMax)
	for _, e := range es {
		c <- e
	}
	if !more {
		close(c)
		return c
	}
	if s.readers == nil {
		s.readers = map[chan control.Epoch]struct{}{}
	}
	s.readers[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, ok := s.readers[c]; ok {
			delete(s.readers, c)
			close(c)
		}
	})
	return c
}

// rate is how many bytes a second were sent recently; mu is held.
func (s *epochLog) rate() float64 {
	now := time.Now()
	if age := now.Sub(s.rateAt); age >= rateWindow {
		if !s.rateAt.IsZero() {
			s.rateBps = float64(s.bytes-s.rateBytes) / age.Seconds()
		}
		s.rateAt, s.rateBytes = now, s.bytes
	}
	return s.rateBps
}

// report fills in what is known of the epochs.
func (s *epochLog) report(st *control.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.BytesSent, st.RateBps = s.bytes, s.rate()
	if !s.acked.IsZero() {
		st.LastCommitAgeMs = ms(time.Since(s.acked))
	}
	es := s.recent(statWindow)
	if len(es) == 0 {
		return
	}
	last := es[len(es)-1]
	st.DirtyPages = last.LivePages + last.PausePages
	if n := min(len(es)-1, intervalWindow); n > 0 {
		st.EpochMs = ms(last.At.Sub(es[len(es)-1-n].At)) / float64(n)
	}
	column := make([]float64, len(es))
	sorted := func(of func(*control.Epoch) float64) []float64 {
		for i := range es {
			column[i] = of(&es[i])
		}
		slices.Sort(column)
		return column
	}
	median := func(of func(*control.Epoch) float64) float64 { return sorted(of)[len(column)/2] }
	paused := sorted(func(e *control.Epoch) float64 { return e.PausedMs })
	st.Pause = control.PauseStatus{P50Ms: paused[len(paused)/2], P99Ms: paused[len(paused)*99/100], LastMs: last.PausedMs}
	st.Pause.Phases = control.Phases{
		StopMs:   median(func(e *control.Epoch) float64 { return e.StopMs }),
		GateMs:   median(func(e *control.Epoch) float64 { return e.GateMs }),
		ScanMs:   median(func(e *control.Epoch) float64 { return e.ScanMs }),
		CopyMs:   median(func(e *control.Epoch) float64 { return e.CopyMs }),
		HoldMs:   median(func(e *control.Epoch) float64 { return e.HoldMs }),
		DeviceMs: median(func(e *control.Epoch) float64 { return e.DeviceMs }),
	}
}
