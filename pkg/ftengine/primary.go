package ftengine

import (
	"fmt"
	"time"
)

// PrimaryState is where a protection is, seen from the host that runs the guest.
//
//	connecting ──SessionUp──▶ syncing ──Rehearsed──▶ protected
//	     ▲                       │                      │
//	     │                       └──────SessionDown─────┤
//	     │ not armed                                    ▼ armed
//	     ├──────────────────────────────────────── undecided
//	     │                                   Won │      │ Lost
//	   alone ◀───────────────────────────────────┘      ▼
//	     └──SessionUp──▶ syncing                      fenced ──WinnerRunning──▶ stopped
//
//	protected ──HandOver──▶ switching ──PeerActivated──▶ stopped
//	    ▲                    │     │ trouble, and the backup was told
//	    └─────── trouble ────┘     ▼
//	                           undecided
//
//	any ──GuestGone, crashed──▶ handedOver ──PeerActivated──▶ stopped
//	any ──Unprotect, or an orderly GuestGone──▶ stopping ──▶ stopped
//
// The gate holds the guest's outputs from the pause of a session's first
// checkpoint on, in whatever state, until OpenGate. While undecided a person
// may decide (OperatorActivate).
type PrimaryState uint8

const (
	PrimaryConnecting PrimaryState = iota + 1
	PrimarySyncing
	PrimaryProtected
	PrimarySwitching
	PrimaryUndecided
	PrimaryAlone
	PrimaryFenced
	PrimaryHandedOver
	PrimaryStopping
	PrimaryStopped
)

var primaryNames = [...]string{"", "connecting", "syncing", "protected", "switching", "undecided", "alone", "fenced", "handed-over", "stopping", "stopped"}

func (s PrimaryState) String() string {
	if int(s) < len(primaryNames) {
		return primaryNames[s]
	}
	return fmt.Sprintf("PrimaryState(%d)", uint8(s))
}

// Limits are the bounds both machines keep to.
type Limits struct {
	// InFlight is the greatest number of captured epochs that the backup
	// has not acknowledged; at least 1.
	InFlight int
	// Detect is how long a peer is silent before it counts as lost.
	Detect time.Duration
	// Redial is how long a primary looks for a backup that it lost, and whose host
	// lives, before it claims; 0 is Detect. What the guest says is held meanwhile.
	Redial time.Duration
	// ClaimRetry is the pause between two tries at an arbiter that did not answer.
	ClaimRetry time.Duration
	// Grace is how long a backup whose primary's daemon is gone, and whose
	// primary's host lives, waits for a daemon to come back before it claims;
	// 0 is for ever. It is longer than any lease.
	Grace time.Duration
}

// DefaultLimits are right for two hosts on one local network.
func DefaultLimits() Limits {
	return Limits{InFlight: 4, Detect: 500 * time.Millisecond, ClaimRetry: 500 * time.Millisecond, Grace: 5 * time.Second}
}

// Primary is the machine of the host that runs the guest. Make it with
// NewPrimary; fields are read through methods.
type Primary struct {
	limits Limits
	state  PrimaryState
	gen    Generation
	reason string

	session   bool // a session is up
	ready     bool // the backup takes pages
	armed     bool // the backup may hold a checkpoint it could go on from
	capturing bool // a Capture was asked for and not answered
	stale     bool // that Capture is of a session that is gone
	paceDue   bool
	claiming  bool // a Claim was asked for and not answered
	unsure    bool // the last Claim's outcome is unknown: it may be ours
	fenced    bool // the backup was seen to hold a newer generation
	paused    bool // we paused our guest, or an earlier daemon of ours did
	guestDead bool

	asked bool   // a HandOver was not answered yet
	last  Epoch  // for which the guest was paused, to be handed over; or 0
	left  bool   // see Left
	told  bool   // the backup was told to go on, and may; our guest is paused
	wish  string // to stop, why, as soon as that is decided; or ""

	ending bool  // a final epoch is to be captured, or is on its way
	final  Epoch // its number, once it was asked for

	handedOver bool
	fresh      bool // no backup ever had anything under this protection
	restored   bool // an earlier daemon may have left the gate closed
	token      uint64

	captured, acked Epoch // acked <= captured <= acked + InFlight
	early           Epoch // acknowledged before its Captured was heard, or 0
}

// NewPrimary returns the machine of a guest that runs here under gen.
// afterRestart says that an earlier daemon had armed a backup for gen and
// died: the backup may hold a checkpoint.
func NewPrimary(gen Generation, afterRestart bool, l Limits) *Primary {
	invariant(gen > 0, "generation 0")
	invariant(l.InFlight > 0, "InFlight %d", l.InFlight)
	if l.Redial == 0 {
		l.Redial = l.Detect
	}
	return &Primary{limits: l, state: PrimaryConnecting, gen: gen, armed: afterRestart, fresh: !afterRestart}
}

// State, Generation, Captured, Acked and Reason tell where the machine is.
func (p *Primary) State() PrimaryState    { return p.state }
func (p *Primary) Generation() Generation { return p.gen }
func (p *Primary) Captured() Epoch        { return p.captured }
func (p *Primary) Acked() Epoch           { return p.acked }
func (p *Primary) Reason() string         { return p.reason }

// HandedOver tells that the backup was asked to take over, because the guest
// died here or by a HandOver, and that nothing since then says that it cannot:
// if the machine ends so, nothing of this protection is to be taken up again.
func (p *Primary) HandedOver() bool { return p.handedOver || p.told }

// Left tells, of a machine that ended, that the backup may have the guest, or may go
// on from its last checkpoint.
func (p *Primary) Left() bool { return p.left }

// RestorePrimary returns the machine of a guest that an earlier daemon
// protected under gen, when phase is what that daemon persisted last. Other
// than NewPrimary it also knows of a guest that this daemon had to pause.
func RestorePrimary(gen Generation, phase string, l Limits) *Primary {
	p := NewPrimary(gen, phase == "armed" || phase == "protected" || phase == "fenced" || phase == "told", l)
	p.fenced, p.told = phase == "fenced", phase == "told"
	p.paused = p.fenced || p.told
	p.fresh, p.restored = phase == "connecting" || phase == "", true
	return p
}

// Start returns the first actions.
func (p *Primary) Start() []Action {
	if !p.armed {
		acts := []Action{Persist{p.gen, "connecting"}, Connect{}}
		if p.restored {
			// The earlier daemon may have died before it came to that.
			acts = append([]Action{OpenGate{}}, acts...)
		}
		return acts
	}
	// A backup may hold a checkpoint, and may have gone on from it while
	// nobody watched here. The marker that says so stays as it is.
	p.state = PrimaryUndecided
	acts := []Action{Connect{}, p.retryAfter(p.limits.Detect)}
	if p.paused {
		// The earlier daemon may have died before it came to that.
		acts = append([]Action{PauseGuest{}}, acts...)
	}
	return acts
}

// Step takes one event. After Finish it returns nothing.
func (p *Primary) Step(e Event) []Action {
	if p.state == PrimaryStopped {
		return nil
	}
	switch e := e.(type) {
	case SessionUp:
		return p.sessionUp(e)
	case SessionDown:
		return p.sessionDown(e)
	case PeerDropped:
		if p.state != PrimarySyncing || p.ready {
			return nil
		}
		return p.peerDropped()
	case StandbyReady:
		if p.state != PrimarySyncing || p.ready {
			return nil
		}
		p.ready, p.paceDue = true, true
		// It dropped what it held for an older session, if it did not say so yet.
		return append(p.peerDropped(), p.maybeCapture()...)
	case PaceDue:
		p.paceDue = true
		return p.maybeCapture()
	case Captured:
		return p.capturedEpoch(e)
	case CaptureFailed:
		return p.captureFailed(e)
	case Acked:
		return p.ackedEpoch(e)
	case Rehearsed:
		return p.rehearsed(e)
	case ClaimDone:
		return p.claimDone(e)
	case Retry:
		return p.retry(e)
	case GuestGone:
		return p.guestGone(e)
	case WinnerRunning:
		return p.winnerRunning()
	case WinnerWithdrew:
		if p.state != PrimaryFenced {
			return nil
		}
		p.state, p.fenced = PrimaryUndecided, false
		return p.claim(PeerSilent)
	case PeerStoodDown:
		if p.state != PrimaryStopping || p.claiming {
			return nil
		}
		return p.unpause(p.letGo(p.reason)...)
	case PeerActivated:
		return p.peerActivated(e)
	case Unprotect:
		return p.stopping(e.Reason)
	case OperatorActivate:
		return p.operator(e)
	case HandOver:
		return p.swap(e)
	}
	panic(fmt.Sprintf("ftengine: primary got %T", e))
}

func (p *Primary) sessionUp(e SessionUp) []Action {
	if p.state == PrimaryHandedOver {
		return p.handOver(e) // again, when the session is not the one that was told
	}
	if p.claiming || p.unsure || p.guestDead {
		// The answer decides under which generation we talk again.
		return []Action{CloseSession{}}
	}
	if p.state == PrimarySwitching {
		acts := p.spoiled("the connection to the backup was made anew")
		if p.claiming {
			return acts
		}
		return append(acts, p.sessionUp(e)...)
	}
	if e.Generation > p.gen {
		return p.peerHolds(e)
	}
	switch p.state {
	case PrimaryFenced:
		// The peer holds nothing any more: ask who may run.
		p.state, p.fenced = PrimaryUndecided, false
		return p.claim(PeerSilent)
	case PrimaryStopping:
		p.session = true
		return []Action{SendStandDown{p.reason}}
	}
	p.session, p.state = true, PrimarySyncing
	// Still armed, and paused, if it was: that the backup dropped what it held
	// for an older session is certain only when it says so.
	p.ready = false
	p.captured, p.acked, p.early = 0, 0, 0
	p.stale = p.capturing
	return []Action{SendSetup{}}
}

// peerDropped is the backup's word that it cannot go on from anything that an
// older session brought: our guest may be heard, and go on, again.
func (p *Primary) peerDropped() []Action {
	p.fenced, p.told = false, false
	acts := p.openGate()
	if p.paused {
		acts = p.unpause(append([]Action{Persist{p.gen, "armed"}}, acts...)...)
	}
	return append(acts, p.wished()...)
}

// peerHolds keeps our copy down: the backup won a generation of its own. Not
// every arbiter shows us whether it runs, so we ask the backup as well.
func (p *Primary) peerHolds(e SessionUp) []Action {
	if p.fresh && p.state == PrimaryConnecting {
		// Two guests, and nothing says that ours is the older one: that is for a
		// person to find out.
		return p.letGo(fmt.Sprintf("the peer holds generation %d of this guest, and this protection is of generation %d: it ran, or runs, there too", e.Generation, p.gen))
	}
	known := p.state == PrimaryFenced
	if p.state == PrimaryStopping {
		p.wish = p.reason // should the backup give the right back
	}
	p.state, p.fenced, p.session, p.ready = PrimaryFenced, true, false, false
	p.reason = fmt.Sprintf("the peer holds generation %d", e.Generation)
	var acts []Action
	if !known {
		acts = p.pause([]Action{Persist{p.gen, "fenced"}})
	}
	if e.PeerRuns {
		return append(acts, p.winnerRunning()...)
	}
	acts = append(acts, CloseSession{})
	if !known {
		acts = append(acts, WatchWinner{e.Generation})
	}
	return append(acts, p.retryAfter(p.limits.ClaimRetry))
}

func (p *Primary) sessionDown(e SessionDown) []Action {
	if !p.session {
		return nil
	}
	switch p.state {
	case PrimarySwitching:
		acts := p.spoiled("the connection to the backup is " + e.How.String())
		return append(acts, p.sessionDown(e)...)
	case PrimarySyncing, PrimaryProtected:
	case PrimaryHandedOver:
		return p.finish(p.reason + "; the backup was told, then the connection was lost")
	case PrimaryStopping:
		p.session, p.ready = false, false
		if !p.armed {
			return p.letGo(p.reason)
		}
		return p.claim(ToRevoke)
	default:
		p.session, p.ready = false, false
		return nil
	}
	if e.How == Silent && p.armed {
		p.session, p.ready, p.stale = false, false, p.capturing
		p.state = PrimaryUndecided
		return p.claim(PeerSilent)
	}
	// Its host lives: give its daemon the time to come back.
	return p.redial()
}

// redial looks for another session after the last one ended. A backup that
// may hold a checkpoint may also go on from it, so it gets only so long.
func (p *Primary) redial(before ...Action) []Action {
	if p.state == PrimarySwitching {
		before = append(p.spoiled("the backup has to be asked anew"), before...)
		if p.claiming {
			return before
		}
	}
	p.session, p.ready, p.stale = false, false, p.capturing
	p.state = PrimaryConnecting
	acts := append(before, Connect{})
	if p.armed {
		p.state = PrimaryUndecided
		acts = append(acts, p.retryAfter(p.limits.Redial))
	}
	return acts
}

// maybeCapture asks for the next epoch, if there is to be one now.
func (p *Primary) maybeCapture() []Action {
	switch p.state {
	case PrimarySwitching:
		return p.lastEpoch()
	case PrimaryStopping:
		return p.finalEpoch()
	}
	ok := p.ready && p.paceDue && !p.capturing &&
		(p.state == PrimaryProtected || p.state == PrimarySyncing) &&
		int(p.captured-p.acked) < p.limits.InFlight
	if !ok {
		return nil
	}
	p.capturing, p.paceDue = true, false
	next := p.captured + 1
	if next > 1 {
		return []Action{Capture{Epoch: next}}
	}
	// From here on the backup may hold a checkpoint: the marker goes first.
	p.armed, p.fresh = true, false
	return []Action{Persist{p.gen, "armed"}, Capture{Epoch: 1, Initial: true}}
}

func (p *Primary) capturedEpoch(e Captured) []Action {
	if !p.capturing {
		return nil
	}
	stale := p.stale
	p.capturing, p.stale = false, false
	if stale || !p.ready || e.Epoch != p.captured+1 {
		return p.maybeCapture() // of a session that is gone
	}
	p.captured = e.Epoch
	if p.early == e.Epoch && p.session {
		return p.ackedEpoch(Acked{e.Epoch})
	}
	return p.maybeCapture()
}

func (p *Primary) captureFailed(e CaptureFailed) []Action {
	if !p.capturing {
		return nil
	}
	stale := p.stale
	p.capturing, p.stale = false, false
	switch {
	case p.ending && p.session:
		return p.finalFailed(e)
	case p.guestDead || stale:
		return p.maybeCapture() // when the pace says so
	}
	var acts []Action
	if e.Fatal {
		acts = append(acts, ReopenCapture{})
	}
	if !p.ready {
		return acts
	}
	// An acknowledgement of what was never sent whole is a peer's mistake.
	wrong := p.early == p.captured+1
	if p.captured == 0 && !wrong {
		// The gate may hold already, and the backup has nothing at all.
		acts = append(p.openGate(), acts...)
	}
	if e.Fatal || wrong {
		return p.redial(append(acts, CloseSession{})...)
	}
	if p.state == PrimarySwitching && p.last != 0 {
		acts = append(acts, p.spoiled("the last checkpoint could not be taken")...)
	}
	return append(acts, p.maybeCapture()...)
}

func (p *Primary) ackedEpoch(e Acked) []Action {
	switch {
	case !p.ready || e.Epoch <= p.acked:
		return nil
	case p.ending && e.Epoch == p.final:
		// That it was captured is only said later, perhaps; and the backup
		// ends the session.
		p.captured, p.armed = p.final, false
	case e.Epoch == p.captured+1 && p.capturing && !p.stale:
		// Shipped and acknowledged before the word that it was captured
		// came through.
		p.early = e.Epoch
		return nil
	case e.Epoch > p.captured:
		// Not an epoch that we sent: a peer's mistake, not ours.
		if p.ending {
			return p.sessionDown(SessionDown{Closed})
		}
		return p.redial(CloseSession{})
	}
	if p.state == PrimarySwitching && e.Epoch == p.last {
		p.acked = e.Epoch
		return p.tellLast()
	}
	var acts []Action
	for p.acked < e.Epoch {
		p.acked++
		acts = append(acts, Release{p.acked})
	}
	return append(acts, p.maybeCapture()...)
}

func (p *Primary) rehearsed(e Rehearsed) []Action {
	if p.state == PrimaryHandedOver && !e.OK {
		return p.finish(p.reason + "; the backup cannot load this guest: " + e.Reason)
	}
	if p.state != PrimarySyncing {
		return nil
	}
	if !e.OK {
		// It gave up for good before it said so.
		return append(p.peerDropped(), p.stopping("the backup cannot load this guest: "+e.Reason)...)
	}
	if p.acked == 0 && p.early == 0 {
		// Of what did it make one? A peer's mistake, not ours.
		return p.redial(CloseSession{})
	}
	p.state = PrimaryProtected
	return append([]Action{Persist{p.gen, "protected"}}, p.maybeCapture()...)
}
