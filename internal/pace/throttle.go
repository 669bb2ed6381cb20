package pace

import "time"

const (
	// raiseStep is the least step up. What the rates say is missing is made up at
	// once: an overload grows with each epoch that it lasts.
	raiseStep = 0.02
	// easePart is one step down, towards what the link needs, and probePart one
	// below that: needs are estimates. Below shareMin there is no holding.
	easePart, probePart = 1.0 / 4, 1.0 / 128
	shareMin            = 0.005
	// fallingPart of the lag before is so much less that nothing needs be done.
	fallingPart = 0.95
	// roomPart of AckMax leaves room to hold the guest less.
	roomPart = 0.5
	// catchUp is what the guest is held beyond its need, to catch up.
	catchUp = 0.06
	// holdFactor times AckMax is the longest that a guest is held at once.
	holdFactor = 2
	// recentNs is over what time holding is reported, about.
	recentNs = float64(time.Second)
)

// throttle finds the share of its time for which the guest is held.
type throttle struct {
	share float64
	lag   time.Duration // that was expected of the epoch before
	// What was done, for Report: ns held, and ns in all, the recent ones.
	heldNs, allNs float64
}

// hold is how long a guest is held that ran for so long.
func (t *throttle) hold(run, most time.Duration) time.Duration {
	if t.share <= 0 || run <= 0 {
		return 0
	}
	return min(heldFor(t.share, run), most)
}

// heldFor is for how long a guest that ran for so long is held, so that this is
// share of its time. share is below 1.
func heldFor(share float64, run time.Duration) time.Duration {
	return time.Duration(min(share/(1-share)*float64(run), float64(timeMax)))
}

// held is told what became of it, in so much of the guest's time.
func (t *throttle) held(hold, all time.Duration) {
	t.heldNs += float64(hold)
	t.allNs += float64(all)
	if over := t.allNs / recentNs; over > 1 {
		t.heldNs, t.allNs = t.heldNs/over, t.allNs/over
	}
}

func (t *throttle) recently() float64 {
	if t.allNs == 0 || t.heldNs/t.allNs < shareMin && t.share == 0 {
		return 0
	}
	return t.heldNs / t.allNs
}

func (t *throttle) limit(most float64) { t.share = min(t.share, most) }

// judge takes a step, for an epoch that is expected to be so late, of a guest that
// would have to be held for a share of need.
func (t *throttle) judge(late time.Duration, need float64, l Limits) {
	falling := float64(late) < fallingPart*float64(t.lag)
	t.lag = late
	switch {
	case late > l.AckMax && !falling:
		t.share = min(max(need+catchUp, t.share+raiseStep), l.ThrottleMax)
	case float64(late) < roomPart*float64(l.AckMax):
		t.share -= max((t.share-need)*easePart, t.share*probePart)
		if t.share < shareMin {
			t.share = 0
		}
	}
}

// runMost is how long the guest may run between pauses so that it is not held for
// longer than AckMax at once.
func (t *throttle) runMost(ackMax time.Duration) time.Duration {
	return time.Duration(float64(ackMax) * (1 - t.share) / t.share)
}
