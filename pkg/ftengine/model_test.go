package ftengine

import (
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
				p.told = true
			}
		case Capture:
			p.capture(a)
		case Release:
			if a.Epoch != p.released+1 || a.Epoch > p.acked || p.told {
				p.t.Fatalf("epoch %d is released after %d; %d is acknowledged, handed over %v", a.Epoch, p.released, p.acked, p.told)
			}
			p.released = a.Epoch
		case OpenGate:
			if p.mayHold || p.dead {
				p.t.Fatalf("the gate is opened, dead %v, a backup that may hold a checkpoint %v", p.dead, p.mayHold)
			}
			p.shut = false
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
	if p.finished && p.paused {
		p.t.Fatal("the guest is left paused")
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
	case p.paused:
		p.t.Fatal("a capture of a paused guest")
	}
}

// events returns what may happen now.
func (p *primaryModel) events() []Event {
	evs := []Event{PaceDue{}, Unprotect{"user"}, OperatorActivate{}}
	if p.connecting {
		evs = append(evs, SessionUp{}, SessionUp{}, SessionUp{p.m.Generation() + 1, rapid.Bool().Draw(p.t, "runs")})
	}
	if p.session {
		evs = append(evs, SessionDown{Closed}, SessionDown{Silent}, Rehearsed{OK: true}, Rehearsed{}, PeerDropped{}, StandbyReady{}, PeerActivated{p.m.Generation() + 1}, PeerStoodDown{})
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
	case GuestGone:
		p.dead, p.paused = true, false
	case WinnerRunning, WinnerWithdrew:
		p.watching = false
	case Retry:
		p.tokens = p.tokens[1:]
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
		p.early = p.early || p.captures > 0 && !p.stale && e.Epoch == p.captureEpoch
	case CaptureFailed:
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

func TestPrimaryModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		phase := rapid.SampledFrom([]string{"new", "new", "armed", "protected", "fenced", "alone"}).Draw(t, "phase")
		p := &primaryModel{t: t, m: RestorePrimary(1, phase, DefaultLimits()), phase: phase, shut: true}
		p.mayHold = phase == "armed" || phase == "protected" || phase == "fenced"
		p.do(p.m.Start())
		for range rapid.IntRange(1, 80).Draw(t, "length") {
			evs := p.events()
			e := evs[rapid.IntRange(0, len(evs)-1).Draw(t, "event")]
			t.Logf("%T%v in %v", e, e, p.m.State())
			p.happen(e)
			p.do(p.m.Step(e))
			if p.m.acked > p.m.captured || int(p.m.captured-p.m.acked) > p.m.limits.InFlight {
				t.Fatalf("captured %d, acked %d", p.m.captured, p.m.acked)
			}
		}
	})
}

// backupModel is the same for a Backup.
type backupModel struct {
	t *rapid.T
	m *Backup

	session, makeFirst                bool
	makes, commits, rehearsals        int
	claims, loads, confirms, resumes  int
	staged, acked, committed, nextCom Epoch
	claimGen, won                     Generation
	confirmed, loaded, resumed        bool
	phase                             string
	tokens                            []uint64
	stage                             bool // SendReady was said in this session
	grace                             bool // orphaned by a daemon that may come back
	performed                         Epoch
	released                          Epoch
	finished                          bool
}

func (b *backupModel) do(acts []Action) {
	for _, a := range acts {
		if b.finished {
			b.t.Fatalf("%T after Finish", a)
		}
		switch a := a.(type) {
		case Persist:
			b.phase = a.Phase
		case MakeStandby, RemakeStandby:
			b.makes++
			b.loaded = false
		case SendReady:
			b.stage = true
		case CloseSession:
			b.session, b.stage = false, false
		case DestroyStandby:
			b.rehearsals = 0
		case PerformOutputs:
			if a.From != b.released+1 || a.To != b.committed {
				b.t.Fatalf("%+v, released %d, committed %d", a, b.released, b.committed)
			}
			b.performed = a.To
		case Ack:
			if a.Epoch != b.acked+1 || a.Epoch != b.staged {
				b.t.Fatalf("epoch %d is acknowledged after %d, %d is staged", a.Epoch, b.acked, b.staged)
			}
			b.acked = a.Epoch
		case Commit:
			b.commits++
			if a.Epoch != b.acked {
				b.t.Fatalf("epoch %d is committed, %d is acknowledged", a.Epoch, b.acked)
			}
		case Rehearse:
			b.rehearsals++
		case SendRehearsed:
			if a.OK && b.phase != "standby" {
				b.t.Fatalf("announced as a standby under the marker %q", b.phase)
			}
		case Claim:
			b.claim(a)
		case Withdraw:
			if b.resumed {
				b.t.Fatal("the right is handed back after the guest ran")
			}
		case Load:
			b.loads++
			if b.won == 0 || b.phase != "claimed" || b.committed != b.acked {
				b.t.Fatalf("load: won %d, marker %q, committed %d, acknowledged %d", b.won, b.phase, b.committed, b.acked)
			}
		case Confirm:
			b.confirms++
		case Resume:
			b.resume()
		case SendActivated:
			if b.phase != "active" {
				b.t.Fatalf("announced as active under the marker %q", b.phase)
			}
		case RetryAfter:
			b.tokens = append(b.tokens, a.Token)
		case Finish:
			b.finished = true
		}
	}
	if b.claims > 1 || b.loads > 1 || b.confirms > 1 || b.resumes > 1 {
		b.t.Fatalf("%d claims, %d loads, %d confirms, %d resumes are out", b.claims, b.loads, b.confirms, b.resumes)
	}
}

func (b *backupModel) claim(a Claim) {
	b.claims++
	b.claimGen = a.Generation
	if b.acked == 0 {
		b.t.Fatal("a claim without a checkpoint")
	}
	if b.session && a.Because != HandedOver {
		b.t.Fatalf("a claim because of %q while a session may renew the lease", a.Because)
	}
	if a.Because == DaemonGone && !b.grace {
		b.t.Fatal("a claim because of a daemon that may be there")
	}
}

func (b *backupModel) resume() {
	b.resumes++
	if !b.confirmed || !b.loaded || b.resumed {
		b.t.Fatalf("resume: confirmed %v, loaded %v, resumed %v", b.confirmed, b.loaded, b.resumed)
	}
	if b.committed != b.acked || max(b.released, b.performed) < b.committed {
		b.t.Fatalf("resume: acknowledged %d, committed %d, released %d, performed %d", b.acked, b.committed, b.released, b.performed)
	}
	b.resumed = true
}

func failure(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "", "it failed"}).Draw(t, "err")
}

func (b *backupModel) events() []Event {
	t := b.t
	evs := []Event{OperatorActivate{}, OperatorActivate{Force: true}, StandbyDied{"killed"}}
	if !b.session {
		evs = append(evs, SessionUp{Generation: b.m.Generation() + 1}, SessionUp{Generation: max(1, b.m.Generation())})
	} else {
		evs = append(evs, SessionDown{Closed}, SessionDown{Silent}, GuestDead{"killed"}, StandDown{"user"}, ReleasedTo{Epoch(rapid.Uint64Range(0, 9).Draw(t, "released"))})
		if b.stage {
			evs = append(evs, Staged{b.staged + 1}, Staged{b.staged + 1}, Staged{b.staged + 1}, Staged{b.staged + 2})
		}
	}
	if b.rehearsals > 0 { // beside the other work
		evs = append(evs, RehearseDone{OK: true}, RehearseDone{OK: true}, RehearseDone{})
	}
	// The work on the standby is answered in order: the oldest first.
	switch {
	case b.makes > 0:
		evs = append(evs, StandbyMade{failure(t)}, StandbyMade{})
	case b.commits > 0:
		evs = append(evs, CommitDone{b.committed + 1, failure(t)}, CommitDone{b.committed + 1, ""}, CommitDone{b.committed + 1, ""})
	case b.loads > 0:
		evs = append(evs, LoadDone{failure(t)})
	case b.resumes > 0:
		evs = append(evs, ResumeDone{failure(t)})
	}
	if b.claims > 0 {
		for v := Won; v <= NeedOperator; v++ {
			evs = append(evs, ClaimDone{b.claimGen, v})
		}
	}
	if b.confirms > 0 {
		evs = append(evs, ConfirmDone{failure(t)})
	}
	if len(b.tokens) > 0 {
		evs = append(evs, Retry{b.tokens[0]})
	}
	return evs
}

func (b *backupModel) happen(e Event) {
	switch e := e.(type) {
	case SessionUp:
		b.session, b.stage = true, false
		if b.m.Accepts(e.Generation) {
			b.grace = false
			b.staged, b.acked, b.committed, b.commits, b.rehearsals = 0, 0, 0, 0, 0
			b.released, b.performed = 0, 0
		}
	case SessionDown:
		b.session, b.stage = false, false
		b.grace = e.How == Closed
	case ReleasedTo:
		if e.Epoch <= b.acked {
			b.released = max(b.released, e.Epoch)
		}
	case Staged:
		if e.Epoch == b.staged+1 && (b.m.State() == BackupSyncing || b.m.State() == BackupStandby) && !b.m.dead && !b.m.ending {
			b.staged++
		} else {
			b.grace = true // we end the session, its daemon has to come back
		}
	case StandbyMade:
		b.makes--
	case CommitDone:
		b.commits--
		if e.Err == "" {
			b.committed++
		}
	case RehearseDone:
		b.rehearsals--
	case ClaimDone:
		b.claims--
		b.won = 0
		if e.Verdict == Won {
			b.won = e.Generation
		}
	case LoadDone:
		b.loads--
		b.loaded = e.Err == ""
	case ConfirmDone:
		b.confirms--
		b.confirmed = b.confirmed || e.Err == ""
	case ResumeDone:
		b.resumes--
	case StandbyDied:
		b.loaded = false
	case Retry:
		b.tokens = b.tokens[1:]
	}
}

func TestBackupModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &backupModel{t: t, m: NewBackup(DefaultLimits())}
		for range rapid.IntRange(1, 80).Draw(t, "length") {
			evs := b.events()
			e := evs[rapid.IntRange(0, len(evs)-1).Draw(t, "event")]
			t.Logf("%T%v in %v", e, e, b.m.State())
			_, down := e.(SessionDown)
			held := down && b.m.Acked() > 0 && (b.m.State() == BackupSyncing || b.m.State() == BackupStandby)
			b.happen(e)
			b.do(b.m.Step(e))
			m := b.m
			if held && m.State() == BackupWaiting {
				t.Fatal("what was acknowledged is forgotten")
			}
			if m.released > m.acked || m.committed > m.acked {
				t.Fatalf("acked %d, committed %d, released %d", m.acked, m.committed, m.released)
			}
			if _, ran := m.Holds(); b.resumed && !ran {
				t.Fatal("the guest ran here, and it is not told")
			}
		}
	})
}
