package ftengine

import (
	"testing"

	"pgregory.net/rapid"
)

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
	final, failed                     bool // a final epoch was acknowledged; could not be committed
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
			if b.final && b.committed != b.acked && !b.failed {
				b.t.Fatalf("epoch %d is final, %d is committed, and the standby is destroyed", b.acked, b.committed)
			}
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
	b.settled()
}

// settled checks what holds when all actions of an event are performed.
func (b *backupModel) settled() {
	if b.final && b.claims+b.loads+b.confirms+b.resumes > 0 {
		b.t.Fatal("a guest that was shut down in order is to go on")
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
			evs = append(evs, Staged{b.staged + 1, false}, Staged{b.staged + 1, false}, Staged{b.staged + 2, false}, Staged{b.staged + 1, true})
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
			b.final = b.final || e.Final
		} else if !b.final {
			b.grace = true // we end the session, its daemon has to come back
		}
	case StandbyMade:
		b.makes--
	case CommitDone:
		b.commits--
		if e.Err == "" {
			b.committed++
		}
		b.failed = b.failed || e.Err != ""
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
	check(t, func(t *rapid.T) {
		b := &backupModel{t: t, m: NewBackup(DefaultLimits())}
		for range rapid.IntRange(1, 80).Draw(t, "length") {
			evs := b.events()
			e := evs[rapid.IntRange(0, len(evs)-1).Draw(t, "event")]
			t.Logf("%T%v in %v", e, e, b.m.State())
			_, down := e.(SessionDown)
			final := b.final
			held := down && b.m.Acked() > 0 && (b.m.State() == BackupSyncing || b.m.State() == BackupStandby)
			b.happen(e)
			b.do(b.m.Step(e))
			m := b.m
			if final && m.State() != BackupEnding && m.State() != BackupStopped && m.State() != BackupFailed {
				t.Fatalf("%v after a final epoch", m.State())
			}
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
