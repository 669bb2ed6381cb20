package pace

import "time"

const (
	pageBytes = 4096
	// flightsMax bounds the epochs between capture and acknowledgement that are
	// remembered; the configuration allows half as many.
	flightsMax = 128
	// rateBytes is the least that a rate is learned from, and groupMin the least
	// time between acknowledgements: after a stall some come at once.
	rateBytes = 64 << 10
	groupMin  = time.Millisecond
	// sentWeight is what an earlier epoch counts in the rate of sending.
	sentWeight = 0.75
	// spareShare of the link is left free by the interval.
	spareShare = 0.3
	// boundPart: sends block on the link if they are not faster than this
	// part's inverse times what arrives.
	boundPart = 0.5
	// trustLags times the last arrival is what the next may be expected to take.
	trustLags = 2
	// usualPart and offeredPart are how fast averages for each epoch follow.
	usualPart   = 0.2
	offeredPart = 0.5
	// runSpread is by how many seconds epochs must differ before they tell
	// whether longer ones have more in them.
	runSpread = 0.02
)

// flight is an epoch on its way. What happens to it is told by different
// goroutines, so in no certain order.
type flight struct {
	began   time.Time // its checkpoint, with the live passes: from then on it may be sent
	cut     time.Time
	hold    time.Duration
	bytes   int // expected, then as shipped
	shipped bool
}

// link is what is on its way, and how fast it goes.
type link struct {
	flights                   [flightsMax]flight // by number, modulo
	captured, shipments, acks uint64             // epochs of the session
	shippedAt, ackedAt        time.Time          // the last one
	grouped                   int                // bytes that arrived at ackedAt, of which no rate was learned
	lag                       time.Duration      // of the last epoch that arrived, from the beginning of its checkpoint, holding left aside

	carriedBps         float64 // from capture to acknowledgement: what the backup does is in it
	sentBytes, sentSec float64 // recently
	dirtyBps           float64 // pages captured, in all of the guest's time
	offeredBps         float64 // bytes to be sent, in the time that the guest ran
	growth             line    // bytes of an epoch over seconds that the guest ran
	leanness           float64 // bytes sent for each byte captured; 0: unknown
	usualBytes         float64 // of an epoch
}

func (l *link) at(n uint64) *flight { return &l.flights[n%flightsMax] }

// known reports whether the session's first epoch, which is the whole guest, has
// arrived: before, nothing can be judged.
func (l *link) known() bool { return l.acks > 0 }

// cut takes an epoch that was captured after the guest ran for so long.
func (l *link) cut(began, at time.Time, e Epoch, run time.Duration) {
	n := l.captured
	if n >= l.acks+flightsMax {
		return // nobody has that many in flight
	}
	l.captured++
	f := l.at(n)
	if n < l.acks {
		return // it has arrived already
	}
	f.began, f.cut, f.hold = began, at, e.Hold
	raw := float64(e.Pages) * pageBytes
	if !f.shipped {
		f.bytes = int(raw * l.lean())
	} else {
		l.leaner(float64(f.bytes), raw)
	}
	if n == 0 || run <= 0 {
		return
	}
	l.dirtyBps += (raw/(run+e.Pause).Seconds() - l.dirtyBps) * usualPart
	l.usualBytes += (float64(f.bytes) - l.usualBytes) * usualPart
	l.offeredBps += (float64(f.bytes)/run.Seconds() - l.offeredBps) * offeredPart
	l.growth.add(run.Seconds(), float64(f.bytes))
}

func (l *link) shipped(now time.Time, bytes int, busy time.Duration) {
	n := l.shipments
	if n >= l.acks+flightsMax {
		return
	}
	l.shipments++
	l.shippedAt = now
	if n < l.acks {
		return
	}
	f := l.at(n)
	if n < l.captured {
		l.leaner(float64(bytes), float64(f.bytes)/l.lean())
	}
	f.bytes, f.shipped = bytes, true
	l.sentBytes = l.sentBytes*sentWeight + float64(bytes)
	l.sentSec = l.sentSec*sentWeight + busy.Seconds()
}

// lean is how many bytes are sent for each that was captured.
func (l *link) lean() float64 {
	if l.leanness == 0 {
		return 1
	}
	return l.leanness
}

func (l *link) leaner(sent, raw float64) {
	if raw < rateBytes {
		return
	}
	part := clamp(sent/raw, 0.001, 2)
	if l.leanness == 0 {
		l.leanness = part
	}
	l.leanness += (part - l.leanness) * usualPart
}

// acked takes the oldest epoch out, if there is one.
func (l *link) acked(now time.Time, lag time.Duration) {
	n := l.acks
	if n >= l.captured && n >= l.shipments {
		return
	}
	f := *l.at(n)
	*l.at(n) = flight{}
	l.acks++
	if f.cut.IsZero() { // it arrived before Captured was called
		f.cut = now.Add(-lag)
		f.began = f.cut
	}
	if n > 0 { // of the first most was sent long before
		l.arrived(now, f.began, f.bytes)
		l.lag = max(lag+f.cut.Sub(f.began)-f.hold, 0)
	}
	l.ackedAt = now
}

// arrived learns from bytes that were on their way since began, and alone since
// those before them had arrived. Bytes that found the link free tell a rate that
// their latency is in: it counts only if that is more than was known.
func (l *link) arrived(now, began time.Time, bytes int) {
	waited := l.ackedAt.After(began)
	if waited {
		began, bytes = l.ackedAt, bytes+l.grouped
	}
	l.grouped = 0
	took := now.Sub(began)
	if waited && took < groupMin {
		l.grouped = bytes
		return
	}
	if took <= 0 || bytes < rateBytes {
		return
	}
	if bps := float64(bytes) / took.Seconds(); l.carriedBps == 0 {
		l.carriedBps = bps
	} else if waited || bps > l.carriedBps {
		l.carriedBps += (bps - l.carriedBps) * offeredPart
	}
}

// rate is how fast bytes leave, as was seen until now: not faster than the epoch
// that is being sent, which has been under way for some time.
func (l *link) rate(now time.Time) float64 {
	bps := 0.0
	if l.sentSec > 0 {
		bps = l.sentBytes / l.sentSec
	}
	if f, since := l.sending(now); f != nil && since > groupMin {
		bps = min(bps, float64(f.bytes)/since.Seconds())
	}
	return bps
}

// sending is the epoch that is being sent, and for how long; nil if all were.
func (l *link) sending(now time.Time) (*flight, time.Duration) {
	n := max(l.shipments, l.acks)
	if n >= l.captured {
		return nil, 0
	}
	f := l.at(n)
	began := f.began
	if l.shippedAt.After(began) {
		began = l.shippedAt
	}
	return f, max(now.Sub(began), 0)
}

// queued is how long it takes from now on until what was captured is sent.
func (l *link) queued(now time.Time) time.Duration {
	f, since := l.sending(now)
	bps := l.rate(now)
	if f == nil || bps == 0 {
		return 0
	}
	bytes := -min(bps*since.Seconds(), float64(f.bytes))
	for n := max(l.shipments, l.acks); n < l.captured; n++ {
		bytes += float64(l.at(n).bytes)
	}
	return seconds(bytes / bps)
}

// backlog is how long it takes from now on until what is in flight has arrived, as
// fast as epochs arrived before.
func (l *link) backlog(now time.Time) time.Duration {
	if l.acks >= l.captured || l.carriedBps == 0 {
		return 0
	}
	began := l.at(l.acks).began
	if l.ackedAt.After(began) {
		began = l.ackedAt
	}
	bytes := -min(l.carriedBps*max(now.Sub(began), 0).Seconds(), float64(l.at(l.acks).bytes))
	for n := l.acks; n < l.captured; n++ {
		bytes += float64(l.at(n).bytes)
	}
	return seconds(bytes / l.carriedBps)
}

// expected is the backlog as far as there is reason to believe in it. As long as
// sends do not block, what epochs carried was as much their size as the link: then
// none is expected to take much longer than the last one that arrived.
func (l *link) expected(now time.Time) time.Duration {
	if l.bound() {
		return l.backlog(now)
	}
	return min(l.backlog(now), trustLags*l.lag)
}

// bound tells that sends block on the link, or on the backup behind it.
func (l *link) bound() bool {
	return l.sentSec > 0 && l.carriedBps > boundPart*l.sentBytes/l.sentSec
}

// late is how late what was just captured is expected to arrive because of the
// bytes before it and its own: for as long as it takes to send them or, if sends
// block on the link, as the last arrival took.
func (l *link) late(now time.Time) time.Duration {
	late := l.queued(now)
	if l.bound() {
		late = max(late, l.lag)
	}
	return late
}

// epochTime is how long the link takes for an epoch, with room to spare.
func (l *link) epochTime() time.Duration {
	if l.carriedBps == 0 {
		return 0
	}
	return seconds(l.usualBytes / l.carriedBps / (1 - spareShare))
}

// need is the share of its time for which the guest would have to be held, so that
// the link keeps up. Only what it dirties anew counts.
func (l *link) need(now time.Time) float64 {
	if l.offeredBps == 0 {
		return 0
	}
	return clamp(1-l.rate(now)/l.offeredBps, 0, 1) * l.anew()
}

// anew is 1 for a guest whose epochs have more to be sent the longer they are, and
// 0 for one that writes to the same pages again and again, so that longer epochs
// have less to be sent in all.
func (l *link) anew() float64 {
	run, bytes := l.growth.mean()
	if run == 0 || bytes == 0 {
		return 1
	}
	return clamp(l.growth.slope(bytes/run, runSpread)*run/bytes, 0, 1)
}

// seconds is a duration, also of what is too long for one.
func seconds(s float64) time.Duration { return time.Duration(clamp(s, 0, 1e9) * 1e9) }
