package explore

import (
	"fmt"
	"hash/maphash"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// Config bounds an exploration.
type Config struct {
	// Faults and Operations are how many may strike, and be asked for by a
	// person, in one run.
	Faults, Operations int
	// Sessions is how many sessions a run may have, at most 3; Epochs how many
	// checkpoints each takes by itself, at most 2.
	Sessions, Epochs int
	// Manual: the arbiter is a person, whose word and nothing else decides.
	Manual bool
	// Late: what was asked of an arbiter that did not answer may be taken later,
	// before the next step of the same daemon, or at any time if that died.
	Late bool
	// StatesMax ends the exploration before it is complete; 0 is never.
	StatesMax int

	plant bug
}

func (c Config) String() string {
	s := fmt.Sprintf("%d faults, %d operations, %d sessions of %d epochs", c.Faults, c.Operations, c.Sessions, c.Epochs)
	if c.Manual {
		s += ", manual"
	}
	if c.Late {
		s += ", late"
	}
	return s
}

func (c Config) limits() ftengine.Limits {
	l := ftengine.DefaultLimits()
	l.InFlight = 2
	return l
}

func (c Config) check() {
	if c.Sessions < 1 || c.Sessions > sessionsMax || c.Epochs < 1 || c.Epochs >= epochsMax {
		panic(fmt.Sprintf("explore: %d sessions of %d epochs; at most %d and %d", c.Sessions, c.Epochs, sessionsMax, epochsMax-1))
	}
}

// Result is what an exploration found.
type Result struct {
	States, Transitions int
	// Depth is the length of the longest shortest way to a state.
	Depth int
	// Machines are the different states of Primary and Backup that were seen.
	Primaries, Backups int
	// Complete: every state within the bounds was looked at.
	Complete bool
	// Reached names the states that machines were in, and what happened to the
	// guest, in alphabetical order.
	Reached []string
	// Bounded counts what was not followed because it needs more than a bound.
	Bounded map[string]int
	// Broken says which promise was broken, or is empty; Trace is a shortest
	// way there.
	Broken string
	Trace  []string
}

func (r Result) String() string {
	s := fmt.Sprintf("%d states, %d transitions, depth %d; %d states of Primary, %d of Backup", r.States, r.Transitions, r.Depth, r.Primaries, r.Backups)
	if !r.Complete {
		s += "; not complete"
	}
	if len(r.Bounded) > 0 {
		s += fmt.Sprintf("; bounded %v", r.Bounded)
	}
	return s
}

// Run explores all that c allows. It is deterministic, and stops at the first
// promise that is broken.
func Run(c Config) Result {
	c.check()
	x := newExplorer(c)
	x.search()
	if x.broken == "" {
		x.liveness()
	}
	r := Result{States: len(x.from), Transitions: x.transitions, Depth: x.depth, Complete: x.complete && x.broken == "", Bounded: x.bounds, Broken: x.broken,
		Primaries: len(x.primaries.all) - 1, Backups: len(x.backups.all) - 1, Reached: x.reached()}
	if x.broken != "" {
		r.Trace = x.trace()
	}
	return r
}

// digest names a world: 128 bits, so that two worlds never share one.
type digest [2]uint64

// way is how a state was reached first: the state before, and which of its
// steps it was.
type way struct{ state, step uint32 }

// wholeState in place of a step: not a step is wrong, but the state.
const wholeState = ^uint32(0)

// found is a state that is to be looked at.
type found struct {
	world world
	state uint32
}

type explorer struct {
	cfg       Config
	primaries *table[ftengine.Primary]
	backups   *table[ftengine.Backup]
	words     []string // phases by number
	seeds     [2]maphash.Seed

	seen        map[digest]uint32
	from        []way
	next        []found
	rest        []comfort
	first       []uint32 // where a state's ways on without a fault begin in onward
	onward      []uint32 // where they lead; repaired is set in those that need a repair
	transitions int
	depth       int
	complete    bool
	bounds      map[string]int
	reach       map[string]bool

	at     uint32 // the state whose steps are taken
	nth    uint32 // how many of them were
	skip   bool   // the step under way was bounded
	broken string
	last   way // the step that broke it

	tracing bool
	want    uint32 // the step to be followed while tracing
	lines   []string
	chosen  *world
}

func newExplorer(c Config) *explorer {
	return &explorer{cfg: c, primaries: newTable((*ftengine.Primary).Step), backups: newTable((*ftengine.Backup).Step),
		words: phases(), seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		seen: map[digest]uint32{}, bounds: map[string]int{}, reach: map[string]bool{}}
}

// start is the moment in which a user protects a guest.
func (x *explorer) start() world {
	w := world{a: hostA{power: true, up: true, guest: running}, b: hostB{power: true, up: true}}
	p := ftengine.NewPrimary(1, false, x.cfg.limits())
	acts := p.Start()
	w.a.m, w.a.retry = x.primaries.add(p), arms(acts, token(p))
	x.performA(&w, acts, 0, -1)
	return w
}

func (x *explorer) search() {
	w := x.start()
	x.add(&w)
	for len(x.next) > 0 {
		level := x.next
		x.next = nil
		for i := range level {
			if x.cfg.StatesMax > 0 && len(x.from) >= x.cfg.StatesMax {
				return
			}
			f := &level[i]
			x.at, x.nth = f.state, 0
			x.first = append(x.first, uint32(len(x.onward)))
			x.steps(&f.world)
			if x.broken != "" {
				return
			}
		}
		x.depth++
	}
	x.complete = true
}

// begin is called before a step is made.
func (x *explorer) begin(s step) {
	x.skip = false
	if x.followed() {
		x.say("-> " + s.String())
	}
}

// followed tells whether the step under way is to be seen in the trace.
func (x *explorer) followed() bool { return x.tracing && x.want == x.nth }

func (x *explorer) say(line string) { x.lines = append(x.lines, line) }

// fail says that a promise is broken by the step under way.
func (x *explorer) fail(format string, args ...any) {
	if x.broken == "" && !x.tracing {
		x.broken, x.last = fmt.Sprintf(format, args...), way{x.at, x.nth}
	}
}

// bounded counts that the step under way needs more than a bound. Nobody can
// tell what comes of the state that it is a step of.
func (x *explorer) bounded(what string) {
	x.skip = true
	if !x.tracing {
		x.bounds[what]++
		x.rest[x.at] |= atRest | atRestAlone
	}
}

// emit is the end of a step: w is where it leads.
func (x *explorer) emit(w *world, s step) {
	nth := x.nth
	x.nth++
	if x.tracing {
		if nth == x.want {
			x.tidy(w)
			n := *w
			x.chosen = &n
		}
		return
	}
	if x.broken != "" || x.skip {
		x.skip = false
		return
	}
	x.transitions++
	x.tidy(w)
	w.hear(x)
	id := x.addFrom(w, way{x.at, nth})
	switch {
	case s.repair:
		x.onward = append(x.onward, id|repaired)
	case !s.fault:
		x.onward = append(x.onward, id)
	}
}

func (x *explorer) tidy(w *world) {
	x.idle(w)
	w.tidy()
}

func (x *explorer) add(w *world) { x.addFrom(w, way{}) }

func (x *explorer) addFrom(w *world, from way) uint32 {
	d := digest{maphash.Comparable(x.seeds[0], *w), maphash.Comparable(x.seeds[1], *w)}
	if id, known := x.seen[d]; known {
		return id
	}
	id := uint32(len(x.from))
	if id >= repaired {
		panic("explore: more states than numbers")
	}
	x.seen[d] = id
	x.from = append(x.from, from)
	x.rest = append(x.rest, x.comfort(w))
	x.note(w)
	x.next = append(x.next, found{*w, id})
	return id
}

// note remembers what happened to the guest in w.
func (x *explorer) note(w *world) {
	if w.wentOn {
		x.reach["the guest went on on B"] = true
	}
	if w.onPurpose {
		x.reach["the guest was shut down"] = true
	}
	if w.finished {
		x.reach["the last epoch was acknowledged"] = true
	}
}

func (x *explorer) reached() []string {
	for i := range x.primaries.all[1:] {
		x.reach["primary "+x.primaries.all[i+1].State().String()] = true
	}
	for i := range x.backups.all[1:] {
		x.reach["backup "+x.backups.all[i+1].State().String()] = true
	}
	return slices.Sorted(maps.Keys(x.reach))
}

// trace is the shortest way to what is broken.
func (x *explorer) trace() []string {
	var ways []way
	if x.last.step != wholeState {
		ways = append(ways, x.last)
	}
	for s := x.last.state; s != 0; s = x.from[s].state {
		ways = append(ways, x.from[s])
	}
	x.tracing = true
	w := x.start()
	x.tidy(&w)
	x.lines = []string{x.sketch(&w)}
	for i := len(ways) - 1; i >= 0; i-- {
		x.nth, x.want, x.chosen = 0, ways[i].step, nil
		x.steps(&w)
		if x.chosen == nil {
			x.lines = append(x.lines, "(the step is not found again)")
			break
		}
		w = *x.chosen
		x.lines = append(x.lines, x.sketch(&w))
	}
	return append(x.lines, "BROKEN: "+x.broken)
}

// phase numbers the words of markers.
func (x *explorer) phase(word string) phase {
	for i, w := range x.words {
		if w == word {
			return phase(i)
		}
	}
	x.words = append(x.words, word)
	return phase(len(x.words) - 1)
}

// text is an event or an action as people read it.
func text(v any) string {
	t := reflect.TypeOf(v)
	s := fmt.Sprintf("%s%+v", t.Name(), v)
	return strings.TrimSuffix(strings.ReplaceAll(s, " Reason:}", "}"), "{}")
}
