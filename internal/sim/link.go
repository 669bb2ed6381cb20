package sim

import (
	"time"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// link is the network between the hosts. What is sent while it is cut arrives
// after it heals, in order, as with TCP, unless an end gave up before.
type link struct {
	w        *World
	cuts     int // how many faults hold it cut
	cutID    int
	sessions []*session
	lastID   int
}

// session is one connection with its two directions.
type session struct {
	id       int
	w        *World
	gen      ftengine.Generation // the primary's
	toA, toB pipe
	aUp, bUp bool // that end is open
	begun    bool // the backup's machine knows of it
	staged   ftengine.Epoch
	acked    ftengine.Epoch // by the backup's machine
	released ftengine.Epoch // by the primary's machine
}

// pipe is one direction: first in, first out.
type pipe struct {
	w       *World
	queue   []func()
	pumping bool
	last    time.Duration
}

// send has do happen at the other end.
func (p *pipe) send(do func()) {
	p.queue = append(p.queue, do)
	p.pump()
}

func (p *pipe) pump() {
	if p.pumping || len(p.queue) == 0 || p.w.link.cuts > 0 {
		return
	}
	p.pumping = true
	p.w.after(p.w.between(0, 2), func() {
		p.pumping = false
		if p.w.link.cuts > 0 || len(p.queue) == 0 {
			return
		}
		do := p.queue[0]
		p.queue = p.queue[1:]
		do()
		p.pump()
	})
}

func (l *link) open(gen ftengine.Generation) *session {
	l.lastID++
	s := &session{id: l.lastID, w: l.w, gen: gen, toA: pipe{w: l.w}, toB: pipe{w: l.w}, aUp: true, bUp: true}
	l.sessions = append(l.sessions, s)
	if len(l.sessions) > 8 {
		l.sessions = l.sessions[1:]
	}
	return s
}

// closeA ends the primary's end. lost: what is on its way is lost as well.
func (s *session) closeA(lost bool) {
	if !s.aUp {
		return
	}
	s.aUp = false
	if lost {
		s.toB.queue = nil
	}
	s.toB.send(func() { s.downB(ftengine.Closed) })
}

func (s *session) closeB(lost bool) {
	if !s.bUp {
		return
	}
	s.bUp = false
	if lost {
		s.toA.queue = nil
	}
	s.toA.send(func() { s.downA(ftengine.Closed) })
}

// downA tells the primary's machine that its session ended.
func (s *session) downA(how ftengine.Loss) {
	s.w.a.run(func() {
		if s.aUp {
			s.closeA(false)
			s.w.a.post(ftengine.SessionDown{How: how})
		}
	})
}

func (s *session) downB(how ftengine.Loss) {
	if s.bUp {
		s.closeB(false)
		if s.begun {
			s.w.b.loss = how
			s.w.b.post(ftengine.SessionDown{How: how})
		}
	}
}

// slowA is by how much A is later than it should be to notice a silence, so
// that B claims first as often as A.
func (w *World) slowA() time.Duration {
	if w.cfg.SlowA || w.chance(50) {
		return w.between(300, 400)
	}
	return 0
}

// cut stops all traffic; each end gives up after the detection limit.
func (l *link) cut() {
	l.cuts++
	l.cutID++
	id := l.cutID
	for _, s := range l.sessions {
		l.w.after(l.w.limits.Detect+l.w.slowA()+l.w.between(0, 60), func() {
			if l.cuts > 0 && l.cutID == id {
				s.downA(ftengine.Silent)
			}
		})
		l.w.after(l.w.limits.Detect+l.w.between(0, 60), func() {
			if l.cuts > 0 && l.cutID == id {
				s.downB(ftengine.Silent)
			}
		})
	}
}

func (l *link) heal() {
	l.cuts--
	if l.cuts > 0 {
		return
	}
	for _, s := range l.sessions {
		s.toA.pump()
		s.toB.pump()
	}
}

// reset breaks every connection at once, at both ends.
func (l *link) reset() {
	for _, s := range l.sessions {
		s.downA(ftengine.Closed)
		s.downB(ftengine.Closed)
	}
}
