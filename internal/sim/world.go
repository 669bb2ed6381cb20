package sim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	stepsMax = 200_000 // of one run; more is a livelock
	traceMax = 400     // lines kept for the report of a failed run
)

// graces are the bounds of Limits.Grace, by seed. 0 waits for an operator.
var graces = [...]time.Duration{5 * time.Second, 700 * time.Millisecond, 1500 * time.Millisecond, 2 * time.Second, 0}

// Config names a run.
type Config struct {
	Seed   uint64
	Manual bool    // arbiter: manual instead of file
	SlowA  bool    // A is late to notice a silence: B claims first
	Faults []Fault // by step or by time
}

// World is one run. It is not safe for concurrent use.
type World struct {
	cfg    Config
	rng    *rand.Rand
	limits ftengine.Limits

	now   time.Duration
	queue events
	seq   uint64
	steps int

	a    *hostA
	b    *hostB
	link link
	arb  arbiter

	faults   []Fault
	open     int // faults that are not healed yet
	healed   time.Duration
	good     time.Duration // since when the world is at rest
	operator bool          // an operator looked at the orphan
	mustRun  bool          // on B, at the end: it held the last copy
	must     must          // come of the only fault, beside that
	person   person        // whom a person let go on, under manual
	wentOn   bool          // the guest went on on B
	dupSince time.Duration // since when two copies run with A's daemon up, or -1

	trace  []string
	broken error
}

// person is the host that a person decided for. Nobody decides for both.
type person uint8

const (
	nobody person = iota
	forA
	forB
)

// must is what a wish comes to when nothing goes wrong.
type must uint8

const (
	mustNothing must = iota
	mustEnd          // a final epoch, of a guest that was shut down in order
	mustSwitch       // the guest on B, nothing of it lost
)

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

// Run runs c to its end and returns how many steps it took, and what was
// broken, if anything.
func Run(c Config) (steps int, err error) {
	w, err := run(c)
	return w.steps, err
}

func run(c Config) (w *World, err error) {
	w = &World{cfg: c, rng: rand.New(rand.NewPCG(c.Seed, 7)), limits: ftengine.DefaultLimits(), faults: append([]Fault(nil), c.Faults...), dupSince: -1}
	w.limits.Grace = graces[c.Seed%uint64(len(graces))]
	w.arb = newArbiter(w, c.Manual)
	w.link.w = w
	w.a, w.b = newHostA(w), newHostB(w)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, w.report())
		}
	}()
	for _, f := range w.faults {
		if f.Step == 0 {
			w.open++
			w.after(f.At, func() { w.strike(f) })
		}
	}
	w.after(0, w.a.protect)
	for w.queue.Len() > 0 && w.broken == nil {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
		w.check()
		if w.atRest() {
			break
		}
	}
	if w.broken == nil {
		w.outcome()
	}
	if w.broken != nil {
		return w, fmt.Errorf("%w\n%s", w.broken, w.report())
	}
	return w, nil
}

func (w *World) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, event{w.now + d, w.seq, do})
}

// between returns a random duration of lo up to hi milliseconds.
func (w *World) between(lo, hi int) time.Duration {
	return time.Duration(lo)*time.Millisecond + time.Duration(w.rng.Int64N(int64(hi-lo)*1000+1))*time.Microsecond
}

func (w *World) chance(percent int) bool { return w.rng.IntN(100) < percent }

// step counts one event or action and lets the faults of that step strike.
func (w *World) step(format string, args ...any) {
	w.steps++
	w.logf(format, args...)
	if w.steps > stepsMax {
		w.fail("no end after %d steps", stepsMax)
	}
	for _, f := range w.faults {
		if f.Step == w.steps {
			w.open++
			w.strike(f)
		}
	}
}

func (w *World) logf(format string, args ...any) {
	if len(w.trace) == traceMax {
		copy(w.trace, w.trace[traceMax/2:])
		w.trace = w.trace[:traceMax/2]
	}
	w.trace = append(w.trace, fmt.Sprintf("%6d %9.3f  ", w.steps, w.now.Seconds()*1000)+fmt.Sprintf(format, args...))
}

func (w *World) fail(format string, args ...any) {
	if w.broken == nil {
		w.broken = fmt.Errorf(format, args...)
	}
}

func (w *World) report() string {
	return fmt.Sprintf("seed %d, manual %v, slow A %v, faults %v\n%s", w.cfg.Seed, w.cfg.Manual, w.cfg.SlowA, w.cfg.Faults, strings.Join(w.trace, "\n"))
}
