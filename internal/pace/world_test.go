package pace

import (
	"math"
	"math/rand/v2"
	"time"
)

const mib = 1 << 20

// guest dirties memory while it runs.
type guest struct {
	pagesPerSec float64 // of guest time
	hotPages    float64 // written at random; 0: one after the other, never the same
	allPages    float64
	outputs     float64 // frames a second, each asks for a checkpoint
}

// dirty is how many pages are written in run seconds.
func (g guest) dirty(run float64) float64 {
	writes := g.pagesPerSec * run
	if g.hotPages > 0 {
		return g.hotPages * (1 - math.Exp(-writes/g.hotPages))
	}
	return min(writes, g.allPages)
}

// wire is a link and a backup behind it: at most inFlight epochs between pause
// and acknowledgement, and so many bytes between shipper and link.
type wire struct {
	bps      float64
	latency  float64
	backup   float64 // seconds that the backup takes for an epoch, one after the other
	inFlight int
	hidden   float64 // bytes that the kernel takes at once, so that sends do not block
}

const queueBytes = 64 * mib

// step is what one checkpoint was, in seconds, bytes and shares.
type step struct {
	at, interval, pause, hold, lag float64
	pages, inPause                 int
	staged                         float64 // bytes captured and not acknowledged, at the end of its pause
	share                          float64 // of time that was held, as reported
	throttle                       float64 // that is aimed at
}

// world runs a Controller against a guest and a link, in virtual time.
type world struct {
	g    guest
	w    wire
	c    *Controller
	rnd  *rand.Rand
	base time.Time

	now, resumed float64
	linkFree     float64
	gone         float64 // when the shipper was through
	backupFree   float64
	events       []event
	flights      []inflight
	steps        []step
	fixed, page  float64 // what a pause costs
	few          float64 // pages that are left to the pause
	passes       int     // before it, at most
	stalls       func(at float64) float64
}

type event struct {
	at  float64
	run func()
}

type inflight struct {
	acked float64
	bytes float64
}

func newWorld(l Limits, g guest, w wire) *world {
	if g.allPages == 0 {
		g.allPages = 1 << 20
	}
	if w.inFlight == 0 {
		w.inFlight = 2
	}
	return &world{g: g, w: w, c: New(l), rnd: rand.New(rand.NewPCG(1, 2)), base: time.Now(), fixed: 2e-3, page: 1e-6, few: 512, passes: 1}
}

func (x *world) time(at float64) time.Time { return x.base.Add(time.Duration(at * 1e9)) }

func dur(s float64) time.Duration { return time.Duration(s * 1e9) }

// tell lets the Controller know what happened up to at, in order.
func (x *world) tell(at float64) {
	for len(x.events) > 0 && x.events[0].at <= at {
		x.events[0].run()
		x.events = x.events[1:]
	}
	for len(x.flights) > 0 && x.flights[0].acked <= at {
		x.flights = x.flights[1:]
	}
}

func (x *world) later(at float64, run func()) {
	i := len(x.events)
	for i > 0 && x.events[i-1].at > at {
		i--
	}
	x.events = append(x.events[:i], append([]event{{at, run}}, x.events[i:]...)...)
}

// run takes checkpoints for a time.
func (x *world) run(forSeconds float64) []step {
	from := len(x.steps)
	for end := x.now + forSeconds; x.now < end; {
		x.checkpoint()
	}
	return x.steps[from:]
}

func (x *world) checkpoint() {
	x.tell(x.now)
	earliest, idle := x.c.Next(x.time(x.now))
	begin := x.now + idle.Seconds()
	if x.g.outputs > 0 {
		begin = min(begin, x.now+x.rnd.ExpFloat64()/x.g.outputs)
	}
	begin = max(begin, x.now+earliest.Seconds())
	if n := len(x.flights) - x.w.inFlight; n >= 0 {
		begin = max(begin, x.flights[n].acked)
	}
	if x.stalls != nil {
		begin += x.stalls(begin)
	}
	x.now = begin
	x.tell(x.now)
	x.c.Begin(x.time(x.now))

	// Live passes, while there is much to do, and the link is not what is waited
	// for; they wait for room in the queue.
	pages := x.g.dirty(x.now - x.resumed)
	inPause, free := pages, max(x.linkFree, x.now)
	for pass := 0; pass < x.passes && inPause > x.few && !x.c.LinkBound(x.time(x.now)); pass++ {
		since := x.now
		x.now = max(x.now+inPause*4096/2e9, free+(pages*4096-queueBytes)/x.w.bps)
		inPause = x.g.dirty(x.now - since)
		pages += inPause
	}
	x.pause(begin, pages, inPause)
}

func (x *world) pause(begin, pages, inPause float64) {
	x.tell(x.now)
	cut, before := x.now, x.resumed
	hold := x.c.Hold(x.time(x.now)).Seconds()
	pause := (x.fixed+inPause*x.page)*(1+x.rnd.Float64()/4) + hold
	x.now += pause
	x.resumed = x.now
	bytes := pages*4096 + 64<<10

	began := max(x.linkFree, begin)
	x.linkFree = max(began+bytes/x.w.bps, x.now)
	x.backupFree = max(x.backupFree, x.linkFree+x.w.latency) + x.w.backup
	acked := x.backupFree
	x.tell(x.now)
	x.c.Captured(x.time(x.now), Epoch{Pause: dur(pause), Hold: dur(hold), Pages: int(pages), InPausePages: int(inPause)})
	// The kernel takes what it has room for at once.
	gone := max(x.now, x.linkFree-x.w.hidden/x.w.bps)
	busy := max(bytes/4e9, gone-max(x.gone, x.now))
	if x.w.hidden == 0 {
		busy = bytes / x.w.bps
	}
	x.gone = gone
	x.later(gone, func() { x.c.Shipped(x.time(gone), int(bytes), dur(busy)) })
	x.later(acked, func() { x.c.Acked(x.time(acked), dur(acked-cut)) })
	x.flights = append(x.flights, inflight{acked, bytes})
	s := step{at: x.now, pause: pause, hold: hold, lag: acked - cut, pages: int(pages), inPause: int(inPause),
		interval: x.now - before, share: x.c.Report().Throttle, throttle: x.c.throttle.share}
	for _, f := range x.flights {
		s.staged += f.bytes
	}
	x.steps = append(x.steps, s)
}

// mean, most and least of what f takes from steps.
func mean(steps []step, f func(step) float64) float64 {
	sum := 0.0
	for _, s := range steps {
		sum += f(s)
	}
	return sum / float64(len(steps))
}

func most(steps []step, f func(step) float64) float64 {
	m := math.Inf(-1)
	for _, s := range steps {
		m = max(m, f(s))
	}
	return m
}

func least(steps []step, f func(step) float64) float64 {
	return -most(steps, func(s step) float64 { return -f(s) })
}

func share(steps []step, f func(step) float64) float64 {
	return mean(steps, f) / mean(steps, func(s step) float64 { return s.interval })
}

func lagOf(s step) float64      { return s.lag }
func holdOf(s step) float64     { return s.hold }
func pauseOf(s step) float64    { return s.pause - s.hold }
func stagedOf(s step) float64   { return s.staged }
func intervalOf(s step) float64 { return s.interval }
func throttleOf(s step) float64 { return s.throttle }
