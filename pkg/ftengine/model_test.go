package ftengine

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// primaryModel is what an environment that keeps its promises knows of a
// Primary: which slow actions are out, and what was announced.
type primaryModel struct {
	t *rapid.T
	m *Primary

	connecting, session, ready bool
	captures, claims           int
	captureEpoch               Epoch // asked for
	claimGen                   Generation
	sent                       Epoch // of this session, as the peer could know
	acked, released            Epoch
	paused, dead, watching     bool
	// mayHold: the backup may have a checkpoint that it could go on from.
	// shut: the gate holds, or an earlier daemon left it so.
	mayHold, shut, told, stale bool
	early                      bool // an epoch that is under way was acknowledged
	phase                      string
	tokens                     []uint64
	finished                   bool
	wished                     bool  // the protection is to end
	asked                      bool  // a HandOver waits for its answer
	peerRuns                   bool  // somebody said that the backup runs the guest
	final                      Epoch // asked for
	finalHeld                  bool  // and acknowledged
}

// answers checks that each HandOver has one answer. One that comes with it, or
// with OperatorActivate, is meant for that.
func (p *primaryModel) answers(e Event, acts []Action) {
	_, asks := e.(HandOver)
	_, other := e.(OperatorActivate)
	for _, a := range acts {
		switch a := a.(type) {
		case Refuse:
			if !p.asked && !asks && !other {
				p.t.Fatalf("%+v answers nobody", a)
			}
			p.asked = p.asked && (asks || other)
			asks = false
		case Switched:
			if !p.asked || !p.peerRuns {
				p.t.Fatalf("Switched: asked %v, the backup runs the guest %v", p.asked, p.peerRuns)
			}
			p.asked = false
		}
	}
	p.asked = p.asked || asks
	open := map[PrimaryState]bool{PrimarySwitching: true, PrimaryUndecided: p.claims > 0, PrimaryFenced: true, PrimaryHandedOver: true}
	if p.asked && (p.finished || !open[p.m.State()]) {
		p.t.Fatalf("a hand over is not answered in %v", p.m.State())
	}
	if s := p.m.State(); p.wished && (s == PrimaryAlone || s == PrimaryProtected) {
		p.t.Fatalf("the protection is to end, and is %v", s)
	}
}

func (p *primaryModel) do(acts []Action) {
	for _, a := range acts {
		if p.finished {
			p.t.Fatalf("%T after Finish", a)
		}
		switch a := a.(type) {
		case Persist:
			p.phase = a.Phase
		case Connect:
			p.connecting = true
		case CloseSession:
			p.session, p.ready = false, false
		case SendSetup, SendStandDown, SendGuestDead:
			if !p.session {
				p.t.Fatalf("%T without a session", a)
			}
			if _, ok := a.(SendGuestDead); ok {
				p.tell()
			}
		case Capture:
			p.capture(a)
		case Release:
			if a.Epoch != p.released+1 || a.Epoch > p.acked || p.told {
				p.t.Fatalf("epoch %d is released after %d; %d is acknowledged, handed over %v", a.Epoch, p.released, p.acked, p.told)
			}
			p.released = a.Epoch
		case OpenGate:
			if p.mayHold || p.dead && !p.finalHeld {
				p.t.Fatalf("the gate is opened, dead %v, a backup that may hold a checkpoint %v", p.dead, p.mayHold)
			}
			p.shut, p.told = false, false
		case Claim:
			p.claims++
			p.claimGen = a.Generation
		case PauseGuest:
			if p.paused || p.dead {
				p.t.Fatalf("PauseGuest, paused %v, dead %v", p.paused, p.dead)
			}
			if p.phase != "fenced" {
				p.t.Fatalf("paused under the marker %q", p.phase)
			}
			p.paused = true
		case ResumeGuest:
			if !p.paused || p.dead {
				p.t.Fatalf("ResumeGuest, paused %v, dead %v", p.paused, p.dead)
			}
			if p.told && p.mayHold {
				p.t.Fatal("ResumeGuest, and the backup was told to go on")
			}
			p.paused = false
		case WatchWinner:
			p.watching = true
		case DestroyGuest:
			if !p.paused && !p.dead {
				p.t.Fatal("a running guest is destroyed")
			}
			p.dead, p.paused = true, false
		case RetryAfter:
			p.tokens = append(p.tokens, a.Token)
		case Finish:
			p.finished = true
		}
	}
	p.settled()
}

// tell is the backup being told to go on: it has all that there is, unless the
// guest died.
func (p *primaryModel) tell() {
	p.told = true
	if !p.dead && (!p.paused || p.captures > 0 || p.acked != p.m.Captured()) {
		p.t.Fatalf("handed over: paused %v, captures %d, acknowledged %d of %d", p.paused, p.captures, p.acked, p.m.Captured())
	}
}

// settled checks what holds when all actions of an event are performed.
func (p *primaryModel) settled() {
	if p.finished && p.paused {
		p.t.Fatal("the guest is left paused")
	}
	if p.phase == "fenced" && !p.paused && !p.dead && !p.finished {
		p.t.Fatal("the marker says that the guest is paused")
	}
	if p.m.State() == PrimarySwitching && !slices.Contains(p.tokens, p.m.token) {
		p.t.Fatal("nothing bounds the hand over")
	}
	if p.shut && p.finished && p.finalHeld {
		p.t.Fatal("what the guest said last is kept")
	}
	if p.shut && !p.dead && (!p.mayHold || p.finished) {
		p.t.Fatalf("the gate stays shut, a backup that may hold a checkpoint %v, finished %v", p.mayHold, p.finished)
	}
	if p.captures > 1 || p.claims > 1 {
		p.t.Fatalf("%d captures, %d claims are out", p.captures, p.claims)
	}
}

func (p *primaryModel) capture(a Capture) {
	p.captures++
	p.captureEpoch, p.stale, p.early = a.Epoch, false, false
	p.mayHold = true
	if a.Final {
		p.final = a.Epoch
	}
	p.shut = p.shut || a.Initial
	switch {
	case a.Epoch == 1 && (p.phase != "armed" || !a.Initial):
		p.t.Fatalf("the first capture, %+v, under the marker %q", a, p.phase)
	case a.Epoch > 1 && !p.shut:
		p.t.Fatalf("%+v with the gate open", a)
	case !p.ready:
		p.t.Fatal("a capture before the backup is ready")
	case a.Epoch > p.acked+Epoch(p.m.limits.InFlight):
		p.t.Fatalf("epoch %d is captured, %d is acknowledged", a.Epoch, p.acked)
	case a.Final != p.dead:
		p.t.Fatalf("%+v, dead %v", a, p.dead)
	case p.paused && p.m.State() != PrimarySwitching:
		p.t.Fatal("a capture of a paused guest")
	}
}

// events returns what may happen now.
func (p *primaryModel) events() []Event {
	evs := []Event{PaceDue{}, Unprotect{"user"}, OperatorActivate{rapid.Bool().Draw(p.t, "force")}}
	if !p.finished {
		evs = append(evs, HandOver{"user"})
	}
	if p.connecting {
		evs = append(evs, SessionUp{}, SessionUp{}, SessionUp{p.m.Generation() + 1, rapid.Bool().Draw(p.t, "runs")})
	}
	if p.session {
		evs = append(evs, SessionDown{Closed}, SessionDown{Silent}, Rehearsed{OK: true}, Rehearsed{}, PeerDropped{}, StandbyReady{}, PeerStoodDown{})
		if !p.finalHeld {
			evs = append(evs, PeerActivated{p.m.Generation() + 1})
		}
		if p.ready {
			evs = append(evs, Acked{p.acked + 1}, Acked{p.acked + 1}, Acked{Epoch(rapid.Uint64Range(0, 20).Draw(p.t, "ack"))})
		}
	}
	if p.captures > 0 {
		evs = append(evs, Captured{p.captureEpoch}, Captured{p.captureEpoch}, CaptureFailed{p.captureEpoch, rapid.Bool().Draw(p.t, "fatal")})
	}
	if p.claims > 0 {
		for v := Won; v <= NeedOperator; v++ {
			evs = append(evs, ClaimDone{p.claimGen, v})
		}
	}
	if !p.dead {
		evs = append(evs, GuestGone{rapid.Bool().Draw(p.t, "orderly"), "gone"})
	}
	if p.watching {
		evs = append(evs, WinnerRunning{}, WinnerWithdrew{})
	}
	if len(p.tokens) > 0 {
		evs = append(evs, Retry{p.tokens[0]})
	}
	return evs
}

// happen updates what the environment knows before the machine hears of e.
func (p *primaryModel) happen(e Event) {
	p.believe(e)
	p.hear(e)
	switch e := e.(type) {
	case SessionUp:
		p.connecting = false
		p.session, p.ready = true, false
		p.sent, p.acked, p.released = 0, 0, 0
	case SessionDown:
		p.session, p.ready = false, false
	case StandbyReady:
		p.ready = true
	case Acked:
		// What counts is what the machine may believe: an epoch that
		// it asked for.
		if e.Epoch <= p.m.Captured() || p.captures > 0 && e.Epoch == p.m.Captured()+1 {
			p.acked = max(p.acked, e.Epoch)
		}
	case Captured, CaptureFailed:
		p.captures--
	case ClaimDone:
		p.claims--
	case Unprotect:
		p.wished = true
	case GuestGone:
		p.dead, p.paused = true, false
	case WinnerRunning, WinnerWithdrew:
		p.watching = false
	case Retry:
		p.tokens = p.tokens[1:]
	}
}

// hear is the word that the backup runs the guest.
func (p *primaryModel) hear(e Event) {
	switch e := e.(type) {
	case SessionUp:
		p.peerRuns = p.peerRuns || e.PeerRuns
	case PeerActivated, WinnerRunning:
		p.peerRuns = true
	}
}

// believe updates what the environment knows of the backup's checkpoint: what
// lets a gate be opened, and nothing else does.
func (p *primaryModel) believe(e Event) {
	state := p.m.State()
	switch e := e.(type) {
	case SessionUp, SessionDown:
		p.stale = p.captures > 0
	case PeerDropped, StandbyReady:
		if state == PrimarySyncing && !p.ready {
			p.mayHold = false // it dropped what it had
		}
	case Rehearsed:
		if state == PrimarySyncing && !e.OK {
			p.mayHold = false
		}
	case PeerStoodDown:
		if state == PrimaryStopping && p.claims == 0 {
			p.mayHold = false
		}
	case Acked:
		if p.final != 0 && e.Epoch == p.final && state == PrimaryStopping && p.claims == 0 {
			p.mayHold, p.finalHeld = false, true
		}
		p.early = p.early || p.captures > 0 && !p.stale && e.Epoch == p.captureEpoch
	case CaptureFailed:
		p.final = 0 // what was not sent cannot be acknowledged
		if state == PrimarySyncing && e.Epoch == 1 && !p.stale && !p.early && p.ready {
			p.mayHold = false // it was never sent all of the first epoch
		}
	case ClaimDone:
		// A person who ends a protection answers for the backup.
		if e.Verdict == Won || e.Verdict == NeedOperator && state == PrimaryStopping {
			p.mayHold = false
		}
	}
}

func (p *primaryModel) step(e Event) {
	p.t.Logf("%T%v in %v", e, e, p.m.State())
	p.happen(e)
	acts := p.m.Step(e)
	p.do(acts)
	p.answers(e, acts)
	if p.m.acked > p.m.captured || int(p.m.captured-p.m.acked) > p.m.limits.InFlight {
		p.t.Fatalf("captured %d, acked %d", p.m.captured, p.m.acked)
	}
}

// beginnings are what a run may begin with: it goes on at random, and would
// seldom come so far.
func beginnings() [][]Event {
	protected := []Event{SessionUp{}, PeerDropped{}, StandbyReady{}, Captured{1}, Acked{1}, Rehearsed{OK: true}}
	switching := append(slices.Clone(protected), HandOver{"user"})
	told := append(slices.Clone(switching), Captured{2}, Acked{2})
	undecided := append(slices.Clone(told), SessionDown{Closed})
	final := append(slices.Clone(protected), GuestGone{true, "shut down"})
	full := slices.Clone(protected)
	for k := Epoch(2); k < 2+Epoch(DefaultLimits().InFlight); k++ {
		full = append(full, PaceDue{}, Captured{k})
	}
	return [][]Event{nil, nil, protected, switching, told, undecided, final, full}
}

// check is rapid.Check, so often that a rare order of events is met.
func check(t *testing.T, prop func(*rapid.T)) {
	for range 20 {
		rapid.Check(t, prop)
	}
}

func TestPrimaryModel(t *testing.T) {
	check(t, func(t *rapid.T) {
		phase := rapid.SampledFrom([]string{"new", "new", "armed", "protected", "fenced", "alone"}).Draw(t, "phase")
		p := &primaryModel{t: t, m: RestorePrimary(1, phase, DefaultLimits()), phase: phase, shut: true}
		p.mayHold = phase == "armed" || phase == "protected" || phase == "fenced"
		p.do(p.m.Start())
		for _, e := range rapid.SampledFrom(beginnings()).Draw(t, "beginning") {
			p.step(e)
		}
		for range rapid.IntRange(1, 80).Draw(t, "length") {
			evs := p.events()
			e := evs[rapid.IntRange(0, len(evs)-1).Draw(t, "event")]
			p.step(e)
		}
	})
}
