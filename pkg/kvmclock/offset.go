package kvmclock

// Offset estimates the difference between the CLOCK_REALTIME of two hosts, there
// minus here, from requests and their answers. It does not guess how a delay is
// shared between both ways, but keeps bounds that hold however it is:
//
//	here   t1 ─┐               ┌─▶ t4      a request arrives after it was sent:  offset <= t2 - t1
//	           └──▶ t2    t3 ──┘           so does an answer:                    offset >= t3 - t4
//	there
//
// What one exchange says is not forgotten but widened by what the clocks may
// have drifted since, so that the tightest recent one counts: the widening is
// the same for all, and one pair of bounds is all there is to remember. If a new
// exchange contradicts them, one of the clocks was set, and they begin anew with
// it. A step that is smaller than the bounds are wide is not seen; the bounds
// then are wrong by less than the newest exchange took.
//
// The idea is that of Marzullo's algorithm and of NTP (RFC 5905, clock filter),
// without their statistics. The zero Offset knows nothing. It is not safe for
// concurrent use.
type Offset struct {
	lo, hi int64 // at the instant atNs of here
	atNs   int64
	known  bool
}

// offsetDriftPPM is how fast two hosts' clocks are taken to drift apart: crystals
// do 20 to 50, and daemons correct them by about as much.
const offsetDriftPPM = 100

// offsetMaxNs bounds times and differences, so that none overflows: 146 years.
const offsetMaxNs = 1 << 62

// Observe takes an exchange: t1 sent here, t2 received there, t3 answered there,
// t4 received here, in ns. One that cannot be is left aside: it says that a clock
// was set meanwhile, and what was known is forgotten.
func (o *Offset) Observe(t1, t2, t3, t4 int64) {
	for _, t := range []int64{t1, t2, t3, t4} {
		if t < 0 || t > offsetMaxNs {
			return
		}
	}
	drift := widening(t4 - t1)
	lo, hi := t3-t4, t2-t1+drift
	switch {
	case t4 < t1 || t3 < t2 || lo > hi:
		*o = Offset{}
		return
	case o.known && t4 >= o.atNs:
		wide := widening(t4 - o.atNs)
		lo, hi = max(lo, o.lo-wide), min(hi, o.hi+wide)
	}
	if lo > hi {
		lo, hi = t3-t4, t2-t1+drift
	}
	*o = Offset{lo: lo, hi: hi, atNs: t4, known: true}
}

// Bounds returns what the offset is between, at the instant nowNs of here; false
// if nothing is known.
func (o *Offset) Bounds(nowNs int64) (lo, hi int64, ok bool) {
	if !o.known || nowNs < 0 || nowNs > offsetMaxNs {
		return 0, 0, false
	}
	age := nowNs - o.atNs
	wide := widening(max(age, -age))
	return o.lo - wide, o.hi + wide, true
}

// Best returns the offset and how wrong it may be. If the bounds contain 0 it is
// 0: both hosts claim to say the same time, and nothing contradicts. Otherwise
// it is their middle.
func (o *Offset) Best(nowNs int64) (offsetNs, errNs int64, ok bool) {
	lo, hi, ok := o.Bounds(nowNs)
	if lo <= 0 && hi >= 0 {
		return 0, max(-lo, hi), ok
	}
	return lo + (hi-lo)/2, (hi - lo + 1) / 2, ok
}

// widening is by how much two clocks drift apart in ageNs at most, rounded up.
func widening(ageNs int64) int64 {
	return ageNs/(1_000_000/offsetDriftPPM) + 1
}
