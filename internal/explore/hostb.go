package explore

import (
	"fmt"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// hostB is the host that stands by.
type hostB struct {
	m         machine // 0: nobody protects to this host
	power, up bool
	gen       uint8 // of the marker
	phase     phase
	ran       bool // the marker says that the guest ran here
	sess      uint8

	standby   guest
	memory    bool     // we hold a standby's memory
	memSess   uint8    // of the session that it was made for
	holds     position // what the standby loaded
	acked     position
	committed position
	died      bool // the standby did, and the machine is still to hear it
	performed bool // what the primary may not have sent was
	forgot    bool // this daemon goes on from what an older one had loaded

	rehearsing bool
	resumed    answer // of a Resume that is still to be heard
	retry      bool
	claim      request
	confirm    request
	withdraws  uint8 // generations that are handed back, a bit for each

	n    uint8
	work [workMax]work
}

// work is one thing to be done on the standby, in the order asked: a kind and
// an epoch.
type work uint8

const (
	workMake work = iota<<4 + 16
	workRemake
	workCommit
	workRehearse
	workLoad
	workResume
	workDestroy
	workStoodDown
)

func (k work) kind() work { return k &^ 15 }
func (k work) arg() uint8 { return uint8(k & 15) }

func (k work) String() string {
	names := [...]string{"", "make", "remake", "commit", "rehearse", "load", "resume", "destroy", "say stood down"}
	return names[k>>4]
}

func (x *explorer) stepB(w *world, e ftengine.Event) []ftengine.Action {
	if w.b.m == 0 {
		return nil
	}
	s := x.backups.take(w.b.m, e)
	if s.panics != "" {
		x.fail("B: %s", s.panics)
		return nil
	}
	w.b.m = s.next
	w.b.retry = s.armed || w.b.retry && !s.disarms
	return s.acts
}

// doB performs one action of B.
func (x *explorer) doB(w *world, act ftengine.Action) {
	b := &w.b
	if x.followed() {
		x.say("      B: " + text(act))
	}
	switch act := act.(type) {
	case ftengine.Persist:
		b.gen, b.phase = uint8(act.Generation), x.phase(act.Phase)
		_, b.ran = x.backups.get(b.m).Holds()
	case ftengine.MakeStandby:
		x.queueWork(w, workMake|work(b.sess))
	case ftengine.RemakeStandby:
		x.queueWork(w, workRemake)
	case ftengine.DestroyStandby:
		x.queueWork(w, workDestroy)
	case ftengine.Commit:
		x.queueWork(w, workCommit|work(act.Epoch))
	case ftengine.Rehearse:
		x.queueWork(w, workRehearse)
	case ftengine.Load:
		x.queueWork(w, workLoad)
	case ftengine.Resume:
		x.queueWork(w, workResume)
	case ftengine.SendStoodDown:
		x.queueWork(w, workStoodDown)
	case ftengine.DropUncommitted, ftengine.RetryAfter, ftengine.Refuse:
	case ftengine.PerformOutputs:
		s := &w.sessions[b.acked.session()]
		if uint8(act.From) > s.released+1 && !b.forgot {
			x.fail("B performs the outputs from epoch %d on, and those behind %d never left A", act.From, s.released)
		}
		b.performed = true
	case ftengine.Claim:
		if b.claim.gen != 0 {
			x.fail("B claims while its last claim is not answered")
		}
		b.claim = request{gen: uint8(act.Generation), cause: act.Because}
	case ftengine.Withdraw:
		b.withdraws |= 1 << act.Generation
	case ftengine.Confirm:
		b.confirm = request{gen: uint8(act.Generation)}
		if x.bug(resumeUnconfirmed) {
			b.confirm.verdict = ftengine.Won
		}
	case ftengine.CloseSession:
		for i := range w.sessions { // also one that is only let in
			w.sessions[i].bUp = false
		}
		b.sess = 0
	case ftengine.Finish:
		m := x.backups.get(b.m)
		gen, ran := m.Holds()
		b.gen, b.ran = uint8(max(m.Generation(), gen)), ran
		b.m, b.retry, b.rehearsing, b.claim, b.confirm = 0, false, false, request{}, request{}
		b.settle()
	default:
		x.sendB(w, act)
	}
}

// settle writes the last marker, but not while a right is still to be handed
// back: a restart has to know of that.
func (b *hostB) settle() {
	if b.m == 0 && b.withdraws == 0 {
		b.phase = phaseEnded
	}
}

func (x *explorer) sendB(w *world, act ftengine.Action) {
	b := &w.b
	s := &w.sessions[b.sess]
	var m message
	switch act := act.(type) {
	case ftengine.Ack:
		// From here on it counts, whether or not A hears of it.
		s.acked, b.acked = uint8(act.Epoch), at(b.sess, uint8(act.Epoch))
		w.finished = w.finished || s.final
		m = msgAck | message(act.Epoch)
	case ftengine.SendDropped:
		b.forgot, b.performed = false, false
		m = msgDropped
	case ftengine.SendReady:
		m = msgReady
	case ftengine.SendRehearsed:
		m = msgUnloadable
		if act.OK {
			m = msgRehearsed
		}
	case ftengine.SendActivated:
		m = msgActivated | message(act.Generation)
	default:
		panic(fmt.Sprintf("explore: B cannot %T", act))
	}
	x.tellA(w, m)
}

func (x *explorer) tellA(w *world, m message) {
	if s := &w.sessions[w.b.sess]; w.b.sess != 0 && s.carries() && !s.toA.send(m) {
		x.bounded("messages")
	}
}

func (x *explorer) queueWork(w *world, k work) {
	b := &w.b
	switch {
	case b.n == 0 && k == workDestroy:
		b.destroy()
	case b.n == 0 && k == workStoodDown:
		x.tellA(w, msgStoodDown)
	case b.n == workMax:
		x.bounded("work")
	default:
		b.work[b.n] = k
		b.n++
	}
}

func (b *hostB) destroy() {
	b.standby, b.memory, b.memSess, b.rehearsing, b.died = absent, false, 0, false, false
}

// next takes the first of the work, and does at once what nobody answers.
func (b *hostB) next() work {
	k := b.work[0]
	b.n--
	copy(b.work[:], b.work[1:])
	b.work[workMax-1] = 0
	return k
}

// idle does the work that nobody answers.
func (x *explorer) idle(w *world) {
	b := &w.b
	for b.n > 0 && b.up {
		switch b.work[0] {
		case workDestroy:
			b.next()
			b.destroy()
		case workStoodDown:
			b.next()
			x.tellA(w, msgStoodDown)
		default:
			return
		}
	}
}

// perform does the first of the work and returns what the machine hears of it,
// or nil. bad: it fails; nil then says that it cannot.
func (x *explorer) perform(w *world, bad bool) ftengine.Event {
	b := &w.b
	k := b.next()
	switch k.kind() {
	case workMake:
		b.destroy()
		b.memSess, b.committed = k.arg(), 0
		return b.made(bad)
	case workRemake:
		b.standby, b.died = absent, false
		return b.made(bad || !b.memory)
	case workCommit:
		switch {
		case !b.memory:
			return nil // the session it belonged to is over
		case bad:
			return ftengine.CommitDone{Epoch: ftengine.Epoch(k.arg()), Err: "it failed"}
		}
		b.committed = at(b.memSess, k.arg())
		return ftengine.CommitDone{Epoch: ftengine.Epoch(k.arg())}
	case workRehearse:
		b.rehearsing = true
		return nil
	case workLoad:
		if b.standby != waiting || bad {
			b.standby, b.died = absent, false // a bad stream kills QEMU
			return ftengine.LoadDone{Err: "it failed"}
		}
		b.standby, b.holds = loaded, b.committed
		return ftengine.LoadDone{}
	case workResume:
		b.resumed = failed
		if b.standby == loaded {
			b.resumed, b.standby = done, running
			x.goesOn(w)
			w.hear(x)
		}
		return nil
	}
	panic(fmt.Sprintf("explore: work %d", k))
}

func (b *hostB) made(bad bool) ftengine.Event {
	if bad {
		return ftengine.StandbyMade{Err: "it failed"}
	}
	b.standby, b.memory = waiting, true
	return ftengine.StandbyMade{}
}

// hearB is a message of A reaching B's end of a session. It returns what the
// machine hears.
func (x *explorer) hearB(w *world, i uint8, m message) (evs []ftengine.Event) {
	b, s := &w.b, &w.sessions[i]
	if b.sess != i {
		if old := b.sess; old > i {
			return nil
		} else if old != 0 {
			evs = x.downB(w, old, ftengine.Closed)
		}
		b.sess = i
		if b.m == 0 {
			b.m = x.backups.add(ftengine.NewBackup(x.cfg.limits()))
			b.retry = false
		}
	}
	if m == msgSetup {
		s.begun = true
		return append(evs, ftengine.SessionUp{Generation: ftengine.Generation(s.gen)})
	}
	s.final = s.final || m.kind() == msgFinalEpoch
	if x.bug(finalForgotten) && m.kind() == msgFinalEpoch {
		m = msgEpoch | message(m.arg())
	}
	return append(evs, m.event())
}

// downB ends B's end of a session, and returns what its machine hears.
func (x *explorer) downB(w *world, i uint8, how ftengine.Loss) []ftengine.Event {
	s := &w.sessions[i]
	s.bUp = false
	if w.b.sess == i {
		w.b.sess = 0
	}
	if !s.begun {
		return nil
	}
	if x.bug(dropOnLoss) {
		return []ftengine.Event{ftengine.StandDown{}}
	}
	return []ftengine.Event{ftengine.SessionDown{How: how}}
}

// busyForNobody tells whether work of a machine that ended is still to be done:
// another one begins when that is over.
func (b *hostB) busyForNobody() bool { return b.m == 0 && (b.n > 0 || b.resumed != pending) }

// admits answers a primary that dials: a session, or the generation under which
// the guest ran here, or that it may ask again.
func (x *explorer) admits(w *world) (session bool, holds uint8) {
	b, gen := &w.b, x.primaries.get(w.a.m).Generation()
	if (b.m == 0 || x.stateB(w) == ftengine.BackupWaiting) && b.ran && ftengine.Generation(b.gen) > gen && !x.bug(forgetRan) {
		return false, b.gen // nobody watches over it here any more, but that copy is of the past
	}
	if b.m == 0 {
		return b.withdraws == 0 && !b.busyForNobody(), 0 // the right has to be back first
	}
	m := x.backups.get(b.m)
	if held, ran := m.Holds(); ran {
		return false, uint8(held)
	}
	return m.Accepts(gen), 0
}

// leave ends the machine of a guest that runs here, which goes on unprotected.
func (b *hostB) leave() {
	b.m, b.retry, b.died, b.claim, b.confirm = 0, false, false, request{}, request{}
	b.phase, b.ran = phaseEnded, true
}

// killB ends B's daemon: what it held in memory is lost, its standby is not.
func (x *explorer) killB(w *world) {
	for i := range w.sessions {
		w.sessions[i].bUp = false
	}
	o := w.b
	w.late[sideB].orphan = w.late[sideB].gen != 0
	w.b = hostB{power: o.power, gen: o.gen, phase: o.phase, ran: o.ran, standby: o.standby, holds: o.holds, acked: o.acked, performed: o.performed}
}

// restartB is B's daemon coming back and finding its marker.
func (x *explorer) restartB(w *world) []ftengine.Action {
	b := &w.b
	b.up, b.forgot = true, true
	found := ftengine.StandbyGone
	switch b.standby {
	case running:
		found = ftengine.StandbyRuns
	case loaded:
		found = ftengine.StandbyLoaded
	}
	if b.phase == phaseClaimed && found == ftengine.StandbyGone {
		w.wentOn = false // see RestoreBackup: what ran here for a moment is known to nobody
	}
	if b.phase == noPhase || b.phase == phaseEnded {
		if b.standby != running { // that one is unprotected
			b.destroy()
		}
		return nil
	}
	m, acts := ftengine.RestoreBackup(ftengine.Generation(b.gen), x.words[b.phase], found, x.cfg.limits())
	b.m, b.retry = x.backups.add(m), arms(acts, token(m))
	return acts
}

// loseB takes the power from host B.
func (x *explorer) loseB(w *world) {
	for i := range w.sessions {
		s := &w.sessions[i]
		if s.bUp {
			s.bLost = true
		}
		s.bUp = false
		s.toA, s.toB = queue{}, queue{}
	}
	x.killB(w)
	w.b.power, w.b.standby, w.b.holds = false, absent, 0
}
