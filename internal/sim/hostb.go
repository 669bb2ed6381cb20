package sim

import (
	"time"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// checkpoint names a state of the guest: the epochs of one session.
type checkpoint struct {
	session int
	epoch   ftengine.Epoch
}

func (c checkpoint) before(d checkpoint) bool {
	return c.session < d.session || c.session == d.session && c.epoch < d.epoch
}

// parcel is what an epoch brings.
type parcel struct {
	c     checkpoint
	last  int   // output that it knows of
	with  []int // outputs that were held, of this epoch
	wrote int   // to the guest's disks, all in all
	final bool
}

// qemu is a standby, and the guest once it runs.
type qemu struct {
	loaded, runs, dead bool
	holds              checkpoint
}

// hostB is the host that stands by.
type hostB struct {
	w     *World
	alive bool
	up    bool
	life  int
	inbox []ftengine.Event
	busy  bool

	m      *ftengine.Backup // nil: nobody protects to this host
	marker struct {
		gen   ftengine.Generation
		phase string
		ran   bool
	}
	sess  *session
	queue []func(done func()) // work on the standby, one after the other
	at    bool

	standby   *qemu
	memory    bool // we hold a standby's memory
	committed checkpoint
	acked     checkpoint
	rehearsal int           // that goes on; another is not answered any more
	leaseEnds time.Duration // when the primary's lease is surely over
	disk      int           // writes that the images hold
	parcels   map[checkpoint]parcel
	outputs   map[checkpoint][]int // shipped with each; in the daemon's memory
	forgot    bool                 // a daemon goes on from what an older one had loaded
	withdraws int                  // not yet taken by the arbiter
	final     checkpoint           // acknowledged, of a guest that was shut down in order; or zero
	torn      bool                 // an epoch could not be committed: its journal is left
	loss      ftengine.Loss        // how the last session ended
	cause     ftengine.Cause       // of the last claim

	makeFails, loadFails, commitFails, rehearseFails int
}

func newHostB(w *World) *hostB {
	return &hostB{w: w, alive: true, up: true, parcels: map[checkpoint]parcel{}, outputs: map[checkpoint][]int{}}
}

func (b *hostB) runs() bool { return b.standby != nil && b.standby.runs && !b.standby.dead }

// restart is the daemon coming back and finding its marker.
func (b *hostB) restart() {
	if b.up || !b.alive {
		return
	}
	b.up = true
	b.life++
	b.inbox, b.busy, b.queue, b.at, b.m, b.sess, b.memory, b.withdraws = nil, false, nil, false, nil, nil, false, 0
	clear(b.outputs)
	b.forgot = true
	b.rehearsal++
	if p, ok := b.parcels[b.acked]; ok && !b.runs() {
		b.disk = p.wrote // what was acknowledged is in the journal
	}
	found := ftengine.StandbyGone
	if q := b.standby; q != nil && !q.dead {
		switch {
		case q.runs:
			found = ftengine.StandbyRuns
		case q.loaded:
			found = ftengine.StandbyLoaded
		}
	}
	if b.marker.phase == "claimed" && found == ftengine.StandbyGone {
		// See RestoreBackup: what ran here for a moment is known to nobody.
		b.w.wentOn = false
	}
	b.w.logf("B: daemon starts, marker %v, standby %v", b.marker, found)
	if b.marker.phase == "" || b.marker.phase == "ended" {
		if !b.runs() { // that one is unprotected
			b.destroy()
		}
		return
	}
	m, acts := ftengine.RestoreBackup(b.marker.gen, b.marker.phase, found, b.w.limits)
	b.m = m
	b.perform(acts)
}

// leave is an operator ending the protection of a guest that runs here, which goes on.
func (b *hostB) leave() {
	if b.up && b.m != nil && b.sess == nil && b.m.State() == ftengine.BackupActive {
		b.m, b.inbox = nil, nil
		b.marker.phase, b.marker.ran = "ended", true
	}
}

func (b *hostB) kill(silently bool) {
	if !b.up {
		return
	}
	b.up = false
	b.life++
	b.inbox = nil
	if s := b.sess; s != nil {
		if silently {
			s.bUp, s.toA.queue = false, nil
		} else {
			s.closeB(b.w.chance(50))
		}
	}
	b.sess = nil
}

func (b *hostB) post(e ftengine.Event) {
	if !b.up || b.m == nil {
		return
	}
	b.inbox = append(b.inbox, e)
	b.pump()
}

func (b *hostB) pump() {
	if b.busy || len(b.inbox) == 0 {
		return
	}
	b.busy = true
	life := b.life
	b.w.after(b.w.between(0, 1)/4, func() {
		if life != b.life {
			return
		}
		b.busy = false
		if len(b.inbox) == 0 {
			return
		}
		e := b.inbox[0]
		b.inbox = b.inbox[1:]
		b.w.step("B <- %T%v", e, e)
		if life == b.life && b.m != nil {
			b.perform(b.m.Step(e))
		}
		b.pump()
	})
}

func (b *hostB) perform(acts []ftengine.Action) {
	life := b.life
	for _, act := range acts {
		b.w.step("B    %T%v  [%v]", act, act, b.m.State())
		if life != b.life || b.m == nil {
			return
		}
		b.do(act)
		b.w.check()
		if b.m == nil {
			return
		}
	}
}

func (b *hostB) answer(d time.Duration, e ftengine.Event) {
	life := b.life
	b.w.after(d, func() {
		if life == b.life {
			b.post(e)
		}
	})
}

// admit answers a primary that dials: a session, or the generation under
// which the guest ran here, or that it may ask again.
func (b *hostB) admit(gen ftengine.Generation) (s *session, holds ftengine.Generation, again bool) {
	if (b.m == nil || b.m.State() == ftengine.BackupWaiting) && b.marker.ran && b.marker.gen > gen {
		return nil, b.marker.gen, false // nobody watches over it here any more, but that copy is of the past
	}
	if b.m != nil {
		held, ran := b.m.Holds()
		if ran {
			return nil, held, false
		}
		if !b.m.Accepts(gen) {
			return nil, 0, true
		}
	} else if b.withdraws > 0 {
		return nil, 0, true // the right has to be back first
	}
	return b.w.link.open(gen), 0, false
}

// setup asks for a standby: the machine hears of the session now.
func (b *hostB) setup(s *session) {
	if !b.adopt(s) {
		return
	}
	s.begun = true
	b.post(ftengine.SessionUp{Generation: s.gen})
}

// adopt makes s, of which the first message came, the session of this host. An
// older one ends.
func (b *hostB) adopt(s *session) bool {
	if !s.bUp || !b.up {
		s.closeB(true)
		return false
	}
	if old := b.sess; old != nil && old != s {
		if old.id > s.id {
			return false
		}
		old.downB(ftengine.Closed)
	}
	b.sess = s
	if b.m == nil {
		b.m = ftengine.NewBackup(b.w.limits)
		b.inbox = nil
	}
	return true
}

// beaten is a heartbeat of the primary arriving; it tells whether it is answered.
func (b *hostB) beaten(s *session) bool {
	if !s.bUp || !b.up {
		return false
	}
	b.leaseEnds = b.w.now + b.w.limits.Detect
	return true
}

func (b *hostB) hear(s *session, e ftengine.Event) {
	if b.sess != s && !b.adopt(s) {
		return
	}
	if s.bUp && b.sess == s {
		b.post(e)
	}
}

// stage is a whole epoch arriving, with the outputs that were held.
func (b *hostB) stage(s *session, p parcel) {
	if s.bUp && b.sess == s {
		s.staged = p.c.epoch
		b.parcels[p.c], b.outputs[p.c] = p, p.with
		b.post(ftengine.Staged{Epoch: p.c.epoch, Final: p.final})
	}
}

// work queues slow work on the standby: effect happens whatever becomes of
// the daemon, report only if it lives.
func (b *hostB) work(lo, hi int, effect, report func()) {
	b.queue = append(b.queue, func(done func()) {
		life := b.life
		d := b.w.between(lo, hi)
		b.w.after(d/2, func() {
			if b.alive {
				effect()
			}
		})
		b.w.after(d, func() {
			if life == b.life {
				report()
				done()
			}
		})
	})
	b.next()
}

func (b *hostB) next() {
	if b.at || len(b.queue) == 0 {
		return
	}
	b.at = true
	f := b.queue[0]
	b.queue = b.queue[1:]
	f(func() {
		b.at = false
		b.next()
	})
}
