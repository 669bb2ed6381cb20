package explore

import "github.com/virt-ft/virt-ft/pkg/ftengine"

// step says what led from one world to the next.
type step struct {
	what   string
	events []ftengine.Event // that a machine took
	then   string           // a fault that struck amid what they asked for
	fault  bool             // it needs a fault or a person to happen
	repair bool             // it needs somebody to mend what a fault broke
}

func (s step) String() string {
	t := s.what
	for i, e := range s.events {
		t += [...]string{": ", ", "}[min(i, 1)] + text(e)
	}
	return t + s.then
}

// steps emits every world that may come next.
func (x *explorer) steps(w *world) {
	if w.a.m != 0 {
		x.stepsOfSessionA(w)
		x.stepsOfA(w)
	}
	x.stepsOfRequestsA(w)
	if w.b.up {
		x.stepsOfSessionsB(w)
		x.stepsOfB(w)
		x.stepsOfRequestsB(w)
	}
	for who := sideA; who <= sideB; who++ {
		if c := w.late[who]; c.gen != 0 {
			n := *w
			n.late[who] = request{}
			x.begin(step{what: "a claim is taken late"})
			x.records(&n, who).claim(who, c, x.cfg.Manual)
			x.emit(&n, step{what: "a claim is taken late"})
		}
	}
	if w.mayLeave() {
		n := *w
		x.begin(step{what: "what is ordered leaves A"})
		x.leave(&n)
		x.emit(&n, step{what: "what is ordered leaves A"})
	}
	x.repairs(w)
	if w.faults < uint8(x.cfg.Faults) {
		x.faults(w)
	}
	if w.ops < uint8(x.cfg.Operations) {
		x.operations(w)
	}
}

// runA has A's machine take evs and performs what it asks for, at most limit
// actions if that is not negative. It returns how many there were.
func (x *explorer) runA(w *world, evs []ftengine.Event, limit int) (n int) {
	for _, e := range evs {
		if w.a.m == 0 {
			return n
		}
		n = x.performA(w, x.stepA(w, e), n, limit)
		if limit >= 0 && n > limit {
			return n
		}
	}
	return n
}

func (x *explorer) performA(w *world, acts []ftengine.Action, n, limit int) int {
	for _, act := range acts {
		if n == limit {
			return n + 1
		}
		n++
		x.doA(w, act)
		w.hear(x)
	}
	return n
}

func (x *explorer) runB(w *world, evs []ftengine.Event, limit int) (n int) {
	for _, e := range evs {
		n = x.performB(w, x.stepB(w, e), n, limit)
		if limit >= 0 && n > limit {
			return n
		}
	}
	return n
}

func (x *explorer) performB(w *world, acts []ftengine.Action, n, limit int) int {
	for _, act := range acts {
		if n == limit {
			return n + 1
		}
		n++
		x.doB(w, act)
	}
	return n
}

// tell has A's machine take evs in w, which is as it is when they come. Faults
// strike behind each of the actions.
func (x *explorer) tell(w *world, s step, evs ...ftengine.Event) {
	x.strikeBetween(w, s, evs, x.runA, x.killA, x.loseA)
}

// tellB is the same for B.
func (x *explorer) tellB(w *world, s step, evs ...ftengine.Event) {
	x.strikeBetween(w, s, evs, x.runB, x.killB, x.loseB)
}

func (x *explorer) strikeBetween(w *world, s step, evs []ftengine.Event, run func(*world, []ftengine.Event, int) int, kill, lose func(*world)) {
	s.events = evs
	n := *w
	x.begin(s)
	total := run(&n, evs, -1)
	x.emit(&n, s)
	if w.faults >= uint8(x.cfg.Faults) {
		return
	}
	s.fault = true
	for i := range total {
		s.then = "; meanwhile the daemon dies"
		n := *w
		x.begin(s)
		run(&n, evs, i)
		x.strike(&n)
		kill(&n)
		x.emit(&n, s)
		if i == 0 {
			continue
		}
		s.then = "; meanwhile the host is lost"
		n = *w
		x.begin(s)
		run(&n, evs, i)
		x.strike(&n)
		lose(&n)
		x.emit(&n, s)
	}
}

// stepsOfSessionA are those of the connection, at A's end.
func (x *explorer) stepsOfSessionA(w *world) {
	a := &w.a
	if a.dialing && !w.cut && w.b.up {
		x.dial(w)
	}
	i := a.sess
	if i == 0 {
		return
	}
	s := &w.sessions[i]
	if s.toA.n > 0 && !w.cut {
		n := *w
		m := n.sessions[i].toA.take()
		x.tell(&n, step{what: "A hears"}, m.event())
	}
	if (!s.bUp || s.reset) && !s.bLost && !w.cut {
		n := *w
		n.sessions[i].aUp, n.a.sess = false, 0
		x.tell(&n, step{what: "A's session ends"}, x.downA(&n, ftengine.Closed)...)
	}
	if w.cut || s.bLost {
		n := *w
		n.sessions[i].aUp, n.a.sess = false, 0
		x.tell(&n, step{what: "A's session ends"}, x.downA(&n, ftengine.Silent)...)
	}
}

// downA is what A's machine hears of the end of its session.
func (x *explorer) downA(w *world, how ftengine.Loss) []ftengine.Event {
	if x.bug(openOnLoss) && w.a.gate == holding {
		x.openGate(w)
	}
	return []ftengine.Event{ftengine.SessionDown{How: how}}
}

func (x *explorer) dial(w *world) {
	session, holds := x.admits(w)
	switch {
	case holds != 0:
		n := *w
		n.a.dialing = false
		x.tell(&n, step{what: "A dials; B holds the right"}, ftengine.SessionUp{Generation: ftengine.Generation(holds), PeerRuns: true})
	case session && w.count >= uint8(x.cfg.Sessions):
		x.bounded("sessions")
	case session:
		n := *w
		n.a.dialing = false
		x.closeA(&n, n.a.sess)
		n.count++
		n.sessions[n.count] = session0(uint8(x.primaries.get(w.a.m).Generation()))
		n.a.sess = n.count
		n.leaseOver = false
		x.tell(&n, step{what: "A dials; B lets it in"}, ftengine.SessionUp{})
	}
}

func session0(gen uint8) session { return session{aUp: true, bUp: true, gen: gen} }

// stepsOfA are what happens on A otherwise.
func (x *explorer) stepsOfA(w *world) {
	a := &w.a
	if a.retry {
		n := *w
		n.a.retry = false
		x.tell(&n, step{what: "A's timer"}, ftengine.Retry{})
	}
	if a.gone != notGone {
		n := *w
		n.a.gone = notGone
		n.onPurpose = n.onPurpose || a.gone == shutDown
		x.tell(&n, step{what: "A sees QEMU's end"}, ftengine.GuestGone{Orderly: a.gone == shutDown})
	}
	switch c := a.capture; {
	case c.epoch == 0:
	case c.answer != pending:
		n := *w
		e := n.hearCapture()
		evs := []ftengine.Event{e}
		if c.sess == a.sess && (int(c.epoch) < x.cfg.Epochs || c.answer != done) {
			evs = append(evs, ftengine.PaceDue{})
		}
		x.tell(&n, step{what: "A hears of its capture"}, evs...)
	default:
		n := *w
		x.begin(step{what: "A captures"})
		x.captured(&n)
		x.emit(&n, step{what: "A captures"})
	}
}

// stepsOfRequestsA are those of what A asked of the arbiter.
func (x *explorer) stepsOfRequestsA(w *world) {
	a := &w.a
	if !a.up {
		return
	}
	switch c := a.claim; {
	case c.gen == 0:
	case c.gen >= gensMax:
		x.bounded("generations")
	case c.verdict == 0:
		x.taken(w, sideA, "A's claim is taken", func(n *world) *request { return &n.a.claim }, func(n *world) ftengine.Verdict { return x.askA(n, c) })
	default:
		n := *w
		n.a.claim = request{}
		v := c.verdict
		if x.bug(unknownWinsA) && v == ftengine.Unknown {
			v = ftengine.Won
		}
		if n.a.m == 0 {
			x.begin(step{what: "A's answer comes too late"})
			x.emit(&n, step{what: "A's answer comes too late"})
			break
		}
		x.tell(&n, step{what: "A hears the arbiter"}, ftengine.ClaimDone{Generation: ftengine.Generation(c.gen), Verdict: v})
	}
	if g := a.withdrawing; g != 0 {
		n := *w
		n.a.withdrawing = 0
		n.overtake(sideA)
		n.arb.withdraw(sideA, g)
		x.begin(step{what: "the arbiter takes A's right back"})
		x.emit(&n, step{what: "the arbiter takes A's right back"})
	}
	if g := a.watching; g != 0 && a.m != 0 {
		x.watch(w, g)
	}
}

func (x *explorer) watch(w *world, g uint8) {
	top := w.arb.top()
	n := *w
	n.a.watching = 0
	r := &w.arb[g]
	switch {
	case top > ftengine.Generation(g), r.holder == sideB && (r.running || x.bug(destroyOnClaim)):
		x.tell(&n, step{what: "A sees the winner"}, ftengine.WinnerRunning{})
	case r.free:
		x.tell(&n, step{what: "A sees the winner"}, ftengine.WinnerWithdrew{})
	}
}

// taken has the arbiter take a claim, and not, and take it with the answer lost.
func (x *explorer) taken(w *world, who side, what string, of func(*world) *request, ask func(*world) ftengine.Verdict) {
	n := *w
	x.begin(step{what: what})
	of(&n).verdict = ask(&n)
	x.emit(&n, step{what: what})
	if w.faults >= uint8(x.cfg.Faults) {
		return
	}
	s := step{what: what, then: ", or rather not: the arbiter is not reached", fault: true}
	n = *w
	x.begin(s)
	x.strike(&n)
	of(&n).verdict = ftengine.Unknown
	x.emit(&n, s)
	if c := *of(w); x.cfg.Late && c.cause != 0 && w.late[who].gen == 0 {
		s.then = ", or rather later: the arbiter does not answer"
		n = *w
		x.begin(s)
		x.strike(&n)
		n.late[who] = c
		of(&n).verdict = ftengine.Unknown
		x.emit(&n, s)
	}
	s.then = "; the answer is lost"
	n = *w
	x.begin(s)
	x.strike(&n)
	ask(&n)
	of(&n).verdict = ftengine.Unknown
	x.emit(&n, s)
}

// stepsOfSessionsB are those of the connections, at B's end.
func (x *explorer) stepsOfSessionsB(w *world) {
	for i := uint8(1); i <= w.count; i++ {
		s := &w.sessions[i]
		if !s.bUp {
			continue
		}
		if s.toB.n > 0 && !w.cut && !w.b.busyForNobody() {
			n := *w
			m := n.sessions[i].toB.take()
			x.tellB(&n, step{what: "B hears"}, x.hearB(&n, i, m)...)
		}
		if (!s.aUp || s.reset) && !s.aLost && !w.cut {
			n := *w
			x.tellB(&n, step{what: "B's session ends"}, x.downB(&n, i, ftengine.Closed)...)
		}
		if w.cut || s.aLost {
			n := *w
			x.tellB(&n, step{what: "B's session ends"}, x.downB(&n, i, ftengine.Silent)...)
		}
	}
}

// stepsOfB are what happens on B otherwise.
func (x *explorer) stepsOfB(w *world) {
	b := &w.b
	if b.retry && !x.bug(deafTimersB) {
		n := *w
		n.b.retry = false
		x.tellB(&n, step{what: "B's timer"}, ftengine.Retry{})
	}
	if b.died && b.m != 0 {
		n := *w
		n.b.died = false
		x.tellB(&n, step{what: "B sees its standby's end"}, ftengine.StandbyDied{})
	}
	if b.rehearsing && b.m != 0 {
		n := *w
		n.b.rehearsing = false
		x.tellB(&n, step{what: "B's rehearsal ends"}, ftengine.RehearseDone{OK: true})
		if w.faults < uint8(x.cfg.Faults) {
			n := *w
			n.b.rehearsing = false
			x.strike(&n)
			x.tellB(&n, step{what: "B's rehearsal fails", fault: true}, ftengine.RehearseDone{})
		}
	}
	if b.resumed != pending {
		n := *w
		n.b.resumed = pending
		e := ftengine.ResumeDone{}
		if b.resumed == failed {
			e.Err = "the standby is gone"
		}
		x.tellB(&n, step{what: "B hears of its guest"}, e)
	}
	if b.n > 0 && b.resumed == pending {
		x.works(w)
	}
}

// works does the first of the work on the standby.
func (x *explorer) works(w *world) {
	k := w.b.work[0]
	s := step{what: "B works, " + k.String()}
	n := *w
	if e := x.perform(&n, false); e != nil {
		x.tellB(&n, s, e)
	} else {
		x.begin(s)
		x.emit(&n, s)
	}
	if w.faults >= uint8(x.cfg.Faults) {
		return
	}
	n = *w
	x.strike(&n)
	if e := x.perform(&n, true); e != nil {
		x.tellB(&n, step{what: s.what, then: ", which fails", fault: true}, e)
	}
}

// stepsOfRequestsB are those of what B asked of the arbiter.
func (x *explorer) stepsOfRequestsB(w *world) {
	b := &w.b
	for g := uint8(1); g < gensMax; g++ {
		if b.withdraws&(1<<g) == 0 {
			continue
		}
		n := *w
		n.b.withdraws &^= 1 << g
		n.overtake(sideB)
		x.records(&n, sideB).withdraw(sideB, g)
		n.b.settle()
		x.begin(step{what: "the arbiter takes B's right back"})
		x.emit(&n, step{what: "the arbiter takes B's right back"})
	}
	switch c := b.claim; {
	case c.gen == 0 || b.withdraws != 0 && c.verdict == 0:
	case c.gen >= gensMax:
		x.bounded("generations")
	case c.verdict == 0:
		x.taken(w, sideB, "B's claim is taken", func(n *world) *request { return &n.b.claim }, func(n *world) ftengine.Verdict { return x.askB(n, c) })
	default:
		n := *w
		n.b.claim = request{}
		v := c.verdict
		if x.bug(unknownWinsB) && v == ftengine.Unknown {
			v = ftengine.Won
		}
		x.tellB(&n, step{what: "B hears the arbiter"}, ftengine.ClaimDone{Generation: ftengine.Generation(c.gen), Verdict: v})
	}
	if b.confirm.gen != 0 {
		x.confirms(w)
	}
}

// askA is a claim of A reaching the arbiter.
func (x *explorer) askA(w *world, c request) ftengine.Verdict {
	if x.bug(bothWin) {
		return ftengine.Won
	}
	w.overtake(sideA)
	v := w.arb.claim(sideA, c, x.cfg.Manual)
	if x.cfg.Manual {
		w.a.decided, w.a.left = c.cause, v == ftengine.NeedOperator
	}
	return v
}

// askB is a claim of B reaching the arbiter: it waited for the end of the
// lease, which no heartbeat may renew any more.
func (x *explorer) askB(w *world, c request) ftengine.Verdict {
	if c.cause != ftengine.HandedOver && !x.bug(claimInLease) {
		for i := range w.sessions {
			if w.sessions[i].bUp {
				x.fail("B claims because of %q, and answers heartbeats of session %d", c.cause, i)
			}
		}
		w.leaseOver = true
	}
	w.overtake(sideB)
	return x.records(w, sideB).claim(sideB, c, x.cfg.Manual)
}

func (x *explorer) confirms(w *world) {
	c := w.b.confirm
	if c.verdict != 0 {
		n := *w
		n.b.confirm = request{}
		e := ftengine.ConfirmDone{}
		if c.verdict != ftengine.Won {
			e.Err = "the arbiter does not take it"
		}
		x.tellB(&n, step{what: "B hears the arbiter"}, e)
		return
	}
	x.taken(w, sideB, "B says RUNNING", func(n *world) *request { return &n.b.confirm }, func(n *world) ftengine.Verdict {
		if x.records(n, sideB).confirm(sideB, c.gen) {
			return ftengine.Won
		}
		return ftengine.Lost
	})
}
