package ftengine

import "fmt"

// BackupState is where a protection is, seen from the host that stands by.
//
//	waiting ──SessionUp──▶ syncing ──RehearseDone──▶ standby
//	   ▲                      │                        │  │ Closed
//	   └──────SessionDown─────┘                 Silent │  ▼
//	   ▲      before an Ack                 GuestDead  │ orphaned (the primary may come back)
//	   │ Lost                                          ▼  │ Limits.Grace, OperatorActivate
//	   └──────────────────────────────────────────claiming◀┘
//	                                             Won │
//	                                                 ▼
//	                       failed ◀──LoadDone── activating ──ResumeDone──▶ active
//
//	any but activating and active ──StandDown──▶ stopped
//	syncing, standby ──Staged, final──▶ ending ──CommitDone──▶ stopped
//
// A session that ends after an acknowledgement leaves what may be the last
// copy there is: a backup that is syncing finishes its rehearsal, then goes on
// as one that stood by.
type BackupState uint8

const (
	BackupWaiting BackupState = iota + 1
	BackupSyncing
	BackupStandby
	BackupOrphaned
	BackupClaiming
	BackupActivating
	BackupActive
	BackupEnding
	BackupFailed
	BackupStopped
)

var backupNames = [...]string{"", "waiting", "syncing", "standby", "orphaned", "claiming", "activating", "active", "ending", "failed", "stopped"}

func (s BackupState) String() string {
	if int(s) < len(backupNames) {
		return backupNames[s]
	}
	return fmt.Sprintf("BackupState(%d)", uint8(s))
}

// loadTriesMax bounds how often a standby that died while loading is made
// again from the memory that we hold.
const loadTriesMax = 2

// pending counts the standbys that were asked for and not answered. Those of
// an older session are forgotten: their answers count no more. They are also
// the barrier behind which no other answer of an older session can come.
type pending struct{ live, old int }

func (p *pending) ask()    { p.live++ }
func (p *pending) forget() { p.old, p.live = p.old+p.live, 0 }

// answer takes one answer and tells whether it is one of this session's.
// Answers come in the order in which they were asked for.
func (p *pending) answer() bool {
	if p.old > 0 {
		p.old--
		return false
	}
	if p.live == 0 {
		return false
	}
	p.live--
	return true
}

// Backup is the machine of the host that stands by.
type Backup struct {
	limits Limits
	state  BackupState
	gen    Generation
	reason string

	session    bool
	alive      bool // the standby's QEMU waits for its load
	loading    bool // a Load was asked for and not answered
	loaded     bool // the standby holds the checkpoint
	confirmed  bool // the arbiter knows that we run: the right cannot go back
	asking     bool // a Confirm was asked for and not answered
	resuming   bool // a Resume was asked for and not answered
	ran        bool // an instruction may have been executed here under gen
	loadTries  int
	claiming   bool // a Claim was asked for and not answered
	cause      Cause
	rehearsing bool // a Rehearse was asked for and not answered
	dead       bool // the primary's guest is dead; remembered through a rehearsal
	lost       Loss // how the session ended; remembered through a rehearsal
	hostLives  bool // orphaned by a primary whose host is alive: its guest may run
	ending     bool // an end, endActs, that waits for the outcome of the claim
	endActs    []Action
	endState   BackupState
	token      uint64

	makes pending

	acked, committed, released Epoch // released <= committed <= acked
}

// NewBackup returns a machine that waits for its primary.
func NewBackup(l Limits) *Backup {
	return &Backup{limits: l, state: BackupWaiting}
}

// State, Generation, Acked, Committed and Reason tell where the machine is.
func (b *Backup) State() BackupState     { return b.state }
func (b *Backup) Generation() Generation { return b.gen }
func (b *Backup) Acked() Epoch           { return b.acked }
func (b *Backup) Committed() Epoch       { return b.committed }
func (b *Backup) Reason() string         { return b.reason }

// StandbyFound is what a restarted daemon found of the standby that an
// earlier daemon had made.
type StandbyFound uint8

const (
	// StandbyGone: no QEMU, or one that waits for pages that died with us.
	StandbyGone StandbyFound = iota
	// StandbyLoaded: it holds the whole checkpoint, paused.
	StandbyLoaded
	// StandbyRuns: it runs the guest.
	StandbyRuns
)

// RestoreBackup returns the machine of a host whose earlier daemon persisted
// phase under gen last, and its first actions. What that daemon held in memory
// is lost, outputs that are still to be performed and logged inputs too; a
// standby that was already loaded, or that runs, goes on. Not known any more is
// a guest that ran here only in the moment between its Resume and the marker
// "active", and ended with this host then: a primary that comes back before the
// arbiter is asked goes on as if it had not.
func RestoreBackup(gen Generation, phase string, found StandbyFound, l Limits) (*Backup, []Action) {
	b := &Backup{limits: l, state: BackupWaiting, gen: gen}
	switch {
	case phase != "claimed" && phase != "active":
		// A claim may have been won in the moment in which that daemon died.
		return b, []Action{Withdraw{gen + 1}, DestroyStandby{}}
	case found == StandbyRuns:
		b.state, b.alive, b.confirmed, b.ran = BackupActive, true, true, true
		return b, []Action{Persist{gen, "active"}}
	case phase == "active":
		b.ran = true
		return b, b.end("the guest ended here while this daemon was down")
	case found == StandbyLoaded:
		b.state, b.alive, b.loaded = BackupActivating, true, true
		return b, b.confirm()
	}
	b.state = BackupActivating
	return b, b.fail("the daemon ended while it activated the guest")
}

// Holds returns the generation that this side won for itself, or 0, and
// whether the guest ran here under it. While its claim is open it holds
// nothing yet, and accepts nothing either.
func (b *Backup) Holds() (gen Generation, ran bool) {
	if b.ran || b.state == BackupActivating {
		return b.gen, b.ran
	}
	return 0, false
}

// Accepts tells whether a session of a primary with gen may begin now.
func (b *Backup) Accepts(gen Generation) bool {
	held, _ := b.Holds()
	return held == 0 && b.state != BackupClaiming && b.state != BackupEnding && gen >= b.gen && b.state != BackupFailed && b.state != BackupStopped
}

// Step takes one event. After Finish it returns nothing.
func (b *Backup) Step(e Event) []Action {
	if b.state == BackupStopped || b.state == BackupFailed {
		return nil
	}
	switch e := e.(type) {
	case SessionUp:
		return b.sessionUp(e)
	case SessionDown:
		return b.sessionDown(e)
	case StandbyMade:
		return b.standbyMade(e)
	case Staged:
		return b.staged(e)
	case CommitDone:
		return b.commitDone(e)
	case RehearseDone:
		return b.rehearseDone(e)
	case ReleasedTo:
		if e.Epoch > b.released && e.Epoch <= b.acked {
			b.released = e.Epoch
		}
		return nil
	case GuestDead:
		return b.guestDead(e)
	case StandDown:
		return b.stand(e)
	case OperatorActivate:
		return b.operator(e)
	case StandbyDied:
		return b.standbyDied(e)
	case ClaimDone:
		return b.claimDone(e)
	case Retry:
		return b.retry(e)
	case LoadDone:
		return b.loadDone(e)
	case ConfirmDone:
		return b.confirmDone(e)
	case ResumeDone:
		return b.resumeDone(e)
	}
	panic(fmt.Sprintf("ftengine: backup got %T", e))
}

func (b *Backup) sessionUp(e SessionUp) []Action {
	if !b.Accepts(e.Generation) {
		// It was let in before the last event: we are on our way to run, or
		// to the end of what we hold.
		b.session = false
		return []Action{CloseSession{}}
	}
	// What we hold belongs to an older session; its memory must not shine
	// through in the new one.
	b.token++ // what was to be claimed after a while is not
	acts := b.drop(BackupSyncing, b.state != BackupWaiting)
	b.gen, b.session = e.Generation, true
	b.acked, b.committed, b.released = 0, 0, 0
	b.makes.ask()
	return append(acts, SendDropped{}, MakeStandby{})
}

// drop lets go of what was held for a session.
func (b *Backup) drop(next BackupState, had bool) []Action {
	b.state, b.session, b.alive, b.hostLives = next, false, false, false
	b.rehearsing, b.dead, b.lost = false, false, 0
	b.makes.forget()
	if !had {
		return nil
	}
	return []Action{DropUncommitted{}, DestroyStandby{}}
}

func (b *Backup) sessionDown(e SessionDown) []Action {
	if !b.session {
		return nil
	}
	b.session = false
	switch b.state {
	case BackupSyncing:
		if b.acked == 0 {
			return b.drop(BackupWaiting, true)
		}
		// The world may have been told of what we acknowledged. Whether it
		// loads is known soon.
		b.lost = e.How
		return []Action{DropUncommitted{}}
	case BackupStandby:
		return b.peerLost(e.How)
	}
	return nil
}

// peerLost is the end of a session that leaves us with a whole checkpoint.
func (b *Backup) peerLost(how Loss) []Action {
	if how == Closed {
		// The primary's host lives, its guest probably runs, and its daemon
		// is probably back soon. If not, that guest can tell nobody anything.
		b.state, b.hostLives = BackupOrphaned, true
		b.reason = "the primary's daemon is gone but its host is not"
		acts := []Action{DropUncommitted{}}
		if b.limits.Grace > 0 {
			b.token++
			acts = append(acts, RetryAfter{b.limits.Grace, b.token})
		}
		return acts
	}
	b.state, b.cause, b.hostLives = BackupClaiming, PeerSilent, false
	// A primary that lives claims first: its guest need not move at all.
	b.token++
	return []Action{DropUncommitted{}, RetryAfter{b.limits.Detect / 4, b.token}}
}

func (b *Backup) standbyMade(e StandbyMade) []Action {
	if !b.makes.answer() || b.ending || b.state == BackupEnding {
		return nil
	}
	if e.Err == "" {
		b.alive = true
		if b.state == BackupSyncing && b.acked == 0 {
			return []Action{SendReady{}}
		}
		return b.maybeLoad()
	}
	switch b.state {
	case BackupActivating:
		return b.fail("the standby could not be made again: " + e.Err)
	case BackupSyncing:
		return b.leave(BackupStopped, e.Err, SendRehearsed{false, e.Err}, DestroyStandby{})
	}
	return b.leave(BackupStopped, e.Err, CloseSession{}, DestroyStandby{})
}

func (b *Backup) staged(e Staged) []Action {
	if !b.session || b.dead || b.ending || b.state != BackupSyncing && b.state != BackupStandby {
		return nil
	}
	if e.Epoch != b.acked+1 {
		// Not the epoch that comes next: a peer's mistake, not ours.
		return append([]Action{CloseSession{}}, b.sessionDown(SessionDown{Closed})...)
	}
	b.acked = e.Epoch
	if e.Final {
		// Nobody goes on from here: what the guest wrote is all that counts.
		b.state, b.reason = BackupEnding, "the guest was shut down"
		b.token++
	}
	return []Action{Ack{e.Epoch}, Commit{e.Epoch}}
}

func (b *Backup) commitDone(e CommitDone) []Action {
	if e.Epoch != b.committed+1 || e.Epoch > b.acked || b.state == BackupWaiting || b.ending {
		return nil
	}
	if e.Err != "" {
		return b.fail("a committed checkpoint could not be applied: " + e.Err)
	}
	b.committed = e.Epoch
	if b.state == BackupEnding && b.committed == b.acked {
		return b.leave(BackupStopped, b.reason, DestroyStandby{}, SendStoodDown{})
	}
	if b.state == BackupSyncing && e.Epoch == 1 {
		b.rehearsing = true
		return []Action{Rehearse{}}
	}
	return b.maybeLoad()
}

func (b *Backup) rehearseDone(e RehearseDone) []Action {
	if b.state != BackupSyncing || !b.rehearsing || b.ending {
		return nil
	}
	b.rehearsing = false
	if !e.OK {
		return b.leave(BackupStopped, "the rehearsal failed: "+e.Reason, SendRehearsed{false, e.Reason}, DestroyStandby{})
	}
	b.state = BackupStandby
	acts := []Action{Persist{b.gen, "standby"}}
	if b.session {
		acts = append(acts, SendRehearsed{OK: true})
	}
	switch {
	case b.dead:
		return append(acts, b.claim(HandedOver)...)
	case b.lost != 0:
		return append(acts, b.peerLost(b.lost)...)
	}
	return acts
}

func (b *Backup) guestDead(e GuestDead) []Action {
	switch b.state {
	case BackupStandby, BackupOrphaned:
		b.reason = e.Reason
		return b.claim(HandedOver)
	case BackupSyncing:
		b.reason = e.Reason
		if b.acked > 0 {
			b.dead = true // decided when the rehearsal ends
			return nil
		}
		return append([]Action{CloseSession{}}, b.drop(BackupWaiting, true)...)
	case BackupWaiting:
		return []Action{CloseSession{}} // nothing is here to go on from
	}
	return nil
}

func (b *Backup) stand(e StandDown) []Action {
	if b.state == BackupActivating || b.state == BackupActive {
		return nil // too late; the answer to the next Hello tells
	}
	if b.state == BackupEnding {
		return nil // it is said soon
	}
	return b.leave(BackupStopped, e.Reason, DestroyStandby{}, SendStoodDown{})
}

func (b *Backup) standbyDied(e StandbyDied) []Action {
	if !b.alive {
		return nil
	}
	b.alive = false
	if b.ending {
		return nil
	}
	switch b.state {
	case BackupSyncing:
		if b.dead || b.lost != 0 {
			return b.remake()
		}
		return append([]Action{CloseSession{}}, b.drop(BackupWaiting, true)...)
	case BackupStandby, BackupOrphaned, BackupClaiming:
		return b.remake()
	case BackupActivating:
		if b.loading || b.resuming {
			return nil // LoadDone or ResumeDone answers
		}
		// Between its load and our word to run: the memory is still ours.
		return b.loadAgain(e.Reason)
	case BackupActive:
		return b.end("the guest ended here: " + e.Reason)
	}
	return nil
}

func (b *Backup) remake() []Action {
	b.makes.ask()
	return []Action{RemakeStandby{}}
}

func (b *Backup) claim(why Cause) []Action {
	b.state, b.claiming, b.cause = BackupClaiming, true, why
	b.token++ // what was to be retried is asked now
	acts := []Action{DropUncommitted{}, Claim{b.gen + 1, why}}
	if why != HandedOver {
		// No lease may be renewed while we wait for the end of the last one.
		b.session = false
		acts = append([]Action{CloseSession{}}, acts...)
	}
	return acts
}

func (b *Backup) claimDone(e ClaimDone) []Action {
	if !b.claiming || e.Generation != b.gen+1 {
		return nil
	}
	b.claiming = false
	if b.ending {
		b.state = b.endState
		acts := b.endActs
		if e.Verdict == Won || e.Verdict == Unknown {
			acts = append([]Action{Withdraw{e.Generation}}, acts...)
		}
		return acts
	}
	switch e.Verdict {
	case Won:
		b.gen++
		b.state = BackupActivating
		return append([]Action{Persist{b.gen, "claimed"}}, b.maybeLoad()...)
	case Lost:
		b.reason = "the primary won the right to run"
		return append([]Action{CloseSession{}}, b.drop(BackupWaiting, true)...)
	case NeedOperator:
		b.state = BackupOrphaned
		b.reason = "the arbiter leaves the decision to you"
		if b.session {
			b.session = false
			return []Action{CloseSession{}}
		}
		return nil
	}
	b.token++
	return []Action{RetryAfter{b.limits.ClaimRetry, b.token}}
}

func (b *Backup) retry(e Retry) []Action {
	switch {
	case e.Token != b.token || b.claiming:
		return nil
	case b.state == BackupClaiming:
		return b.claim(b.cause)
	case b.state == BackupOrphaned:
		b.reason = "the primary's daemon did not come back"
		return b.claim(DaemonGone)
	case b.state == BackupActivating && b.loaded && !b.confirmed:
		return b.confirm()
	}
	return nil
}
