package pace

import "time"

const (
	// priorPageNs is what a page costs in a pause before anything was measured,
	// and priorSpread how many pages checkpoints must differ by to outweigh it.
	priorPageNs = 1000
	priorSpread = 64
	pageNsMin   = 50
	pageNsMax   = 50_000
	// fixedNsMin is less than any pause.
	fixedNsMin = 100_000
	// strayFactor times the usual pause is more than pages explain: the host
	// stood still.
	strayFactor = 4
	// quietShare is the part of the pauses' share that checkpoints without output
	// may use.
	quietShare = 0.5
	// stepMax bounds how far the interval moves at once, as a factor.
	stepMax = 1.25
)

// interval finds the time between checkpoints of a guest that sends nothing.
type interval struct {
	now    time.Duration
	reason string

	cost    line // of pauses: ns over pages
	dirtied line // pages in the pause over ns that the guest ran before
}

func newInterval(idle time.Duration) interval { return interval{now: idle, reason: ReasonPauses} }

func (i *interval) set(lo, hi time.Duration) { i.now = clamp(i.now, lo, hi) }

// captured learns from a pause, holding left aside, after the guest ran for so long.
func (i *interval) captured(pause time.Duration, pages int, run time.Duration) {
	x, y := float64(pages), float64(pause)
	if i.cost.n > 4 {
		fixed, page := i.costs()
		y = min(y, strayFactor*(fixed+page*x))
	}
	i.cost.add(x, y)
	i.dirtied.add(float64(run), x)
}

// costs is what a pause costs in any case, and for each page, in ns.
func (i *interval) costs() (fixed, page float64) {
	page = clamp(i.cost.slope(priorPageNs, priorSpread), pageNsMin, pageNsMax)
	x, y := i.cost.mean()
	return max(y-page*x, fixedNsMin), page
}

// pause is the usual one.
func (i *interval) pause() time.Duration {
	_, y := i.cost.mean()
	return time.Duration(y)
}

// aim moves the interval to where it should be. epochTime is how long the link takes
// to carry an epoch, with room to spare.
func (i *interval) aim(l Limits, epochTime time.Duration) {
	fixed, page := i.costs()
	want, reason := float64(l.Idle), ReasonPauses
	ran, pages := i.dirtied.mean()
	if perNs := page * pages / max(ran, 1); perNs > 0 {
		want = min(want, fixed/perNs)
	}
	if least := float64(i.pause()) / (quietShare * l.PauseShareMax); want < least {
		want, reason = least, ReasonBudget
	}
	// More than half of AckMax would be late by itself.
	if least := float64(min(epochTime, l.AckMax/2)); want < least {
		want, reason = least, ReasonLink
	}
	was := float64(max(i.now, time.Microsecond))
	i.now = clamp(time.Duration(clamp(want, was/stepMax, was*stepMax)), l.Min, l.Idle)
	i.reason = reason
}
