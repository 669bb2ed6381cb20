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
	origin time.Time // of at

	mu    sync.Mutex
	pause [statWindow]int64 // ns
	at    [statWindow]int64 // ns, monotonic, of the end of each
	n     int               // epochs ever added
	spent int64             // ns of pauses that no budget has paid for yet
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
	s.at[s.n%statWindow] = int64(time.Since(s.origin))
	s.n++
	s.spent += pauseNs
	s.dirty = pages
	s.mu.Unlock()
}

// bill returns the pauses since it was called last, in nanoseconds.
func (s *epochStats) bill() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.spent
	s.spent = 0
	return n
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

// intervalWindow is how many epochs the interval is averaged over.
const intervalWindow = 32

// interval is the time from one checkpoint to the next, recently.
func (s *epochStats) interval() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(s.n-1, intervalWindow)
	if n <= 0 {
		return 0
	}
	first, last := s.at[(s.n-1-n)%statWindow], s.at[(s.n-1)%statWindow]
	return time.Duration(last-first) / time.Duration(n)
}

// percentiles returns p50, p99 and the last pause in nanoseconds.
func (s *epochStats) percentiles() (p50, p99, last int64) {
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
	return v[n/2], v[n*99/100], last
}

// pauseBurstNs is how much of a guest's time checkpoints may take at once after
// a quiet time, beyond their share.
const pauseBurstNs = int64(50 * time.Millisecond)

// pauseBudget bounds the share of a guest's time that checkpoints take: a bucket
// that fills with the share of the time that passes, and from which each pause
// is taken. So a guest that seldom sends is answered for at once, and one that
// always sends keeps its time in the long run. Not safe for concurrent use.
type pauseBudget struct {
	at     time.Time
	leftNs float64
}

// spend takes a pause that ended now, and returns how long the guest is to run
// before the next one.
func (b *pauseBudget) spend(now time.Time, pauseNs int64, share float64) time.Duration {
	if b.at.IsZero() {
		b.at, b.leftNs = now, float64(pauseBurstNs)
	}
	b.leftNs += share*float64(now.Sub(b.at)) - float64(pauseNs)
	b.leftNs, b.at = min(b.leftNs, float64(pauseBurstNs)), now
	if b.leftNs >= 0 {
		return 0
	}
	return time.Duration(-b.leftNs / share)
}
