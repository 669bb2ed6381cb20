// Package pace decides when a guest's next checkpoint is taken, and how hard a
// guest is slowed down that dirties memory faster than the link carries it.
//
//	Begin ─▶ Hold ─▶ (the pause) ─▶ Captured ─▶ Next     in this order, for each checkpoint
//	Shipped, Acked                                       when they happen, in the order of the epochs
//
// Three things put a checkpoint off, whatever the guest sends: the shortest
// interval; the guest's share of its own time (see budget); and a link that has
// still to carry what was captured before, because a later checkpoint then has
// more in it and arrives no later. Without output it comes when the interval is
// over, which follows the guest:
//
//   - The pause is a fixed cost and a cost for each page that is copied in it. The
//     interval is sought at which the two are equal. Shorter, and the guest stops
//     more often for little; longer, and the pause is mostly the pages'.
//   - Checkpoints without output take half of the guest's share of pauses at most:
//     the other half is left for those that answer somebody.
//   - It is long enough for the link to carry an epoch in it with room to spare,
//     because a page that is written again and again travels once for each epoch.
//
// A guest for which that is not enough is held: its pauses are stretched, in
// proportion to the time that it ran. The share of its time is what the rates of
// guest and link say is missing, as soon as an epoch is expected to arrive too
// late, and more in small steps for as long as that does not help; it returns to
// nothing when there is room. Steps cannot all be small: epochs of a guest that
// dirties four times what the link carries are each four times as large as the one
// before. It is the idea of QEMU's auto-converge, with the whole guest standing still
// instead of its vCPUs being put to sleep, and with a bound for each time.
//
// Holding happens in pauses, so it works as long as pauses come. A guest that runs
// while the number of epochs in flight is used up, or while a live pass waits for the
// link, is not held meanwhile: with few of them, or with live passes while LinkBound
// says that they are in the way, no share bounds a large overload. In simulations 2 in
// flight are enough for a guest that dirties twice what the link carries, 4 for four
// times, and 16 for a link that drops to a tenth; beyond that what is late may grow
// to all that the guest writes to.
//
// All is arithmetic: nothing here does I/O, starts a goroutine or reads a clock.
package pace

import "time"

// Limits are what an operator allows. What makes no sense is taken for the
// nearest that does.
type Limits struct {
	Min, Idle     time.Duration // between the beginnings of two checkpoints; Idle without output
	PauseShareMax float64       // of the guest's time, above 0 to 1; holding is not in it
	AckMax        time.Duration // from cut to acknowledgement; later, a guest that is the cause is held
	ThrottleMax   float64       // of the guest's time that it may be held; 0: never
	HoldMax       time.Duration // at once, when epochs are late already; less than twice AckMax counts as that
}

// The bounds of what limits may be.
const (
	pauseShareMin  = 0.001
	throttleMaxMax = 0.95
	ackMaxMin      = time.Millisecond
	timeMax        = time.Hour
	// pauseCounts is what of a pause the guest is paid back at most: a longer one
	// is a host that stood still, or a monitor that was late with its word.
	pauseCounts = time.Second
)

func (l Limits) sane() Limits {
	l.Min = clamp(l.Min, 0, timeMax)
	l.Idle = clamp(l.Idle, max(l.Min, time.Microsecond), timeMax)
	l.PauseShareMax = clamp(l.PauseShareMax, pauseShareMin, 1)
	l.AckMax = clamp(l.AckMax, ackMaxMin, timeMax)
	l.ThrottleMax = clamp(l.ThrottleMax, 0, throttleMaxMax)
	l.HoldMax = clamp(l.HoldMax, holdFactor*l.AckMax, timeMax)
	return l
}

// Epoch is what a checkpoint was.
type Epoch struct {
	Pause        time.Duration // the guest stood still, Hold included
	Hold         time.Duration // of it, because Hold asked for it
	Pages        int           // of 4 KiB, copied before the pause and in it
	InPausePages int           // of them, in it
}

// Report is what Status shows. Rates are in bytes a second, 0 if unknown.
type Report struct {
	LinkBps  float64       // that the link was seen to carry, the backup's work included
	DirtyBps float64       // of pages that were captured
	Interval time.Duration // from one checkpoint to the next, without output
	Throttle float64       // share of its time that the guest was held, recently
	Reason   string        // what decided the pace of the last checkpoint
}

// The reasons in a Report.
const (
	ReasonIdle      = "little is dirtied: the longest interval"
	ReasonMin       = "the shortest interval"
	ReasonPauses    = "pauses grow with what is dirtied: short intervals"
	ReasonBudget    = "the guest's own time: pauses have used their share"
	ReasonLink      = "the link: it still carries earlier epochs"
	ReasonThrottled = "the guest dirties faster than the link carries: it is held"
)

// Controller keeps the pace of one guest. Not safe for concurrent use. The times
// that it is given must have a monotonic reading (time.Now's do), and none lies
// before an earlier one by more than goroutines differ.
type Controller struct {
	limits   Limits
	budget   budget
	interval interval
	link     link
	throttle throttle

	began   time.Time // the last checkpoint
	resumed time.Time // the guest, after its last pause
	reason  string
}

// New returns a Controller for a guest of which nothing is known.
func New(l Limits) *Controller {
	l = l.sane()
	c := &Controller{limits: l, interval: newInterval(l.Idle), reason: ReasonIdle}
	c.NewSession()
	return c
}

// SetLimits changes the limits, from the next answer on.
func (c *Controller) SetLimits(l Limits) {
	c.limits = l.sane()
	c.interval.set(c.limits.Min, c.limits.Idle)
	c.throttle.limit(c.limits.ThrottleMax)
}

// NewSession forgets what is in flight and what the link carried: another
// backup, or another connection to it. The session's first epoch is as large as
// the guest, and says nothing of its pace.
func (c *Controller) NewSession() {
	c.link = link{}
	c.throttle.lag = timeMax // what is judged first came behind the whole guest
}

// Begin tells that a checkpoint begins, its live passes included.
func (c *Controller) Begin(now time.Time) { c.began = now }

// Hold is how long the guest is to be held in the pause that is about to begin,
// because it dirties faster than the link carries: 0 for a guest that keeps up, and
// at most twice AckMax. When what is on its way is late already, the guest is held
// until it has arrived, but not longer than HoldMax: if it ran on, all epochs that
// may be in flight would be, no other could be cut, and it would dirty all that it
// uses before the next one.
func (c *Controller) Hold(now time.Time) time.Duration {
	if c.resumed.IsZero() || c.throttle.share <= 0 {
		return 0
	}
	run := now.Sub(c.resumed)
	hold := c.throttle.hold(run, holdFactor*c.limits.AckMax)
	late := min(c.link.backlog(now)-c.limits.AckMax/2, c.limits.HoldMax, heldFor(c.limits.ThrottleMax, run))
	return max(hold, late)
}

// LinkBound tells that the link is what the guest is waiting for: pages that are
// copied while it runs would be in the way of those that count.
func (c *Controller) LinkBound(now time.Time) bool {
	return c.throttle.share > 0 || c.link.queued(now) > c.limits.AckMax
}

// Captured tells of a checkpoint; now is when the guest went on.
func (c *Controller) Captured(now time.Time, e Epoch) {
	e.Pause = clamp(e.Pause, 0, timeMax)
	e.Hold = clamp(e.Hold, 0, e.Pause)
	e.Pages, e.InPausePages = max(e.Pages, 0), max(e.InPausePages, 0)
	paused := e.Pause - e.Hold
	c.budget.spend(now, min(paused, pauseCounts), c.limits.PauseShareMax)
	if c.began.IsZero() {
		c.began = now.Add(-e.Pause)
	}
	first := c.link.captured == 0
	run := time.Duration(0)
	if !c.resumed.IsZero() {
		run = clamp(now.Sub(c.resumed)-e.Pause, 0, timeMax)
		c.throttle.held(e.Hold, run+e.Pause)
	}
	c.resumed = now
	c.link.cut(c.began, now.Add(-e.Pause), e, run)
	if first {
		return // the whole guest: another order of size
	}
	c.interval.captured(paused, e.InPausePages, run)
	if c.link.known() {
		c.throttle.judge(c.link.late(now), c.link.need(now), c.limits)
	}
	c.interval.aim(c.limits, c.link.epochTime())
}

// Shipped tells that the bytes of the next epoch were sent, and how long that took
// of the link: until the last was handed to the kernel or, better, was seen to have
// left, without the times in which there was nothing to send.
func (c *Controller) Shipped(now time.Time, bytes int, busy time.Duration) {
	c.link.shipped(now, max(bytes, 0), clamp(busy, 0, timeMax))
}

// Acked tells that the backup has the next epoch; lag is the time from its cut, the
// beginning of its pause.
func (c *Controller) Acked(now time.Time, lag time.Duration) {
	c.link.acked(now, clamp(lag, 0, timeMax))
}

// Next tells, from now on, how long to wait at least before the next checkpoint,
// and how long at most when the guest sends nothing: 0 <= earliest <= idle.
func (c *Controller) Next(now time.Time) (earliest, idle time.Duration) {
	since := time.Duration(0)
	if !c.began.IsZero() {
		since = max(now.Sub(c.began), 0)
	}
	earliest, c.reason = max(c.limits.Min-since, 0), c.intervalReason()
	if wait := c.linkWait(now, since); wait > earliest {
		earliest, c.reason = wait, ReasonLink
	}
	if wait := c.runLeast(now); wait > earliest {
		earliest, c.reason = wait, ReasonThrottled
	}
	if wait := c.budget.wait(now, c.limits.PauseShareMax); wait > earliest {
		earliest, c.reason = wait, ReasonBudget
	}
	if c.throttle.share > 0 {
		c.reason = ReasonThrottled
	}
	interval := c.interval.now
	if c.heldForNew() {
		interval = max(min(interval, c.throttle.runMost(c.limits.AckMax)), c.limits.Min)
	}
	return earliest, max(earliest, interval-since)
}

// linkWait is how long the next checkpoint is put off because of those before it:
// within the longest interval until they are sent, and within twice AckMax until what
// has not arrived is half of AckMax's. What is expected may be wrong, so not for longer.
// A guest that is held, and does not write to the same pages again and again, would
// only dirty more meanwhile.
func (c *Controller) linkWait(now time.Time, since time.Duration) time.Duration {
	if c.heldForNew() {
		return 0
	}
	send := min(c.link.queued(now)-c.interval.pause(), c.limits.Idle-since)
	most := 2 * c.limits.AckMax
	if c.throttle.share > 0 {
		most = c.limits.AckMax / 2 // it is held for that, too
	}
	arrive := min(c.link.expected(now)-c.limits.AckMax/2, most-since)
	return max(send, arrive, 0)
}

// runLeast is how long a guest that is held may still run before its next
// checkpoint: one that follows at once has little in it, and takes the place of one
// that has.
func (c *Controller) runLeast(now time.Time) time.Duration {
	if c.throttle.share <= 0 || c.resumed.IsZero() {
		return 0
	}
	return min(c.limits.AckMax/16, c.limits.Idle) - max(now.Sub(c.resumed), 0)
}

func (c *Controller) heldForNew() bool { return c.throttle.share > 0 && c.link.anew() >= 0.5 }

func (c *Controller) intervalReason() string {
	switch c.interval.now {
	case c.limits.Idle:
		return ReasonIdle
	case c.limits.Min:
		return ReasonMin
	}
	return c.interval.reason
}

// Report tells what was measured and decided.
func (c *Controller) Report() Report {
	return Report{LinkBps: c.link.carriedBps, DirtyBps: c.link.dirtyBps, Interval: c.interval.now,
		Throttle: c.throttle.recently(), Reason: c.reason}
}

func clamp[T ~int64 | ~float64](x, lo, hi T) T { return max(lo, min(x, hi)) }
