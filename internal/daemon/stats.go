package daemon

import (
	"slices"
	"sync"
	"time"
)

// statWindow is how many epochs the percentiles look back.
const statWindow = 512

// epochStats keeps the figures of the last epochs. Safe for concurrent use;
// add does not allocate.
type epochStats struct {
	mu    sync.Mutex
	pause [statWindow]int64 // ns
	n     int               // epochs ever added
	dirty int               // pages of the last epoch
	bytes uint64            // sent since the beginning
	last  time.Time         // of the last acknowledgement

	rateAt    time.Time // when the rate was last worked out
	rateBytes uint64
	rateBps   float64
}

// rate is how many bytes a second were sent recently. mu must be held.
func (s *epochStats) rate() float64 {
	now := time.Now()
	if age := now.Sub(s.rateAt); age >= rateWindow {
		if !s.rateAt.IsZero() {
			s.rateBps = float64(s.bytes-s.rateBytes) / age.Seconds()
		}
		s.rateAt, s.rateBytes = now, s.bytes
	}
	return s.rateBps
}

// rateWindow is the shortest time a rate is averaged over.
const rateWindow = 500 * time.Millisecond

func (s *epochStats) add(pauseNs int64, pages int) {
	s.mu.Lock()
	s.pause[s.n%statWindow] = pauseNs
	s.n++
	s.dirty = pages
	s.mu.Unlock()
}

func (s *epochStats) sent(n int) {
	s.mu.Lock()
	s.bytes += uint64(n)
	s.mu.Unlock()
}

func (s *epochStats) acked() {
	s.mu.Lock()
	s.last = time.Now()
	s.mu.Unlock()
}

// percentiles returns p50, p90, p99 and the last pause in nanoseconds.
func (s *epochStats) percentiles() (p50, p90, p99, last int64) {
	s.mu.Lock()
	n := min(s.n, statWindow)
	v := slices.Clone(s.pause[:n])
	if n > 0 {
		last = s.pause[(s.n-1)%statWindow]
	}
	s.mu.Unlock()
	if n == 0 {
		return
	}
	slices.Sort(v)
	return v[n/2], v[n*9/10], v[n*99/100], last
}
