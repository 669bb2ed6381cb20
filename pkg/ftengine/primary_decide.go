package ftengine

import (
	"fmt"
	"time"
)

func (p *Primary) claim(why Cause) []Action {
	if p.told && why == PeerSilent {
		why = TookBack
	}
	p.claiming = true
	p.token++ // what was to be retried is asked now
	return []Action{CloseSession{}, Claim{p.gen + 1, why}}
}

func (p *Primary) claimDone(e ClaimDone) []Action {
	if !p.claiming || e.Generation != p.gen+1 {
		return nil
	}
	p.claiming = false
	p.unsure = e.Verdict == Unknown
	if p.state == PrimaryStopping {
		return p.revoked(e.Verdict)
	}
	if p.guestDead {
		if e.Verdict == Lost || e.Verdict == NeedOperator {
			return p.finish(p.reason)
		}
		// Nothing runs here any more: let the backup have it.
		return append([]Action{Withdraw{e.Generation}}, p.finish(p.reason)...)
	}
	switch e.Verdict {
	case Won:
		p.gen++
		p.armed, p.fenced, p.told = false, false, false
		p.state = PrimaryAlone
		acts := p.unpause(Persist{p.gen, "alone"}, OpenGate{}, Connect{})
		return append(append(acts, p.refused("the backup did not take the guest over; it goes on here, unprotected")...), p.wished()...)
	case Lost:
		p.reason = "the backup won the right to run"
		return p.fence()
	case NeedOperator:
		if p.fenced || p.told || !p.paused {
			// Only a person can activate the backup: our guest runs on,
			// and what it sends is held until a person decides.
			// But one that the backup was seen, or told, to own stays
			// paused until the backup, or a person here, says otherwise.
			return append([]Action{Connect{}}, p.refused("the backup was told to take over, and cannot be reached; the guest is paused here until it can, or you decide")...)
		}
		return p.unpause(Persist{p.gen, "armed"}, Connect{})
	}
	// Nobody can tell whether the backup runs: then we may not.
	return append(p.hold(), p.refused("the backup was told to take over, and neither it nor the arbiter answers; the guest is paused here until one of them does")...)
}

// fence keeps our copy down until the winner of the next generation runs.
func (p *Primary) fence() []Action {
	p.state, p.fenced = PrimaryFenced, true
	return p.pause([]Action{Persist{p.gen, "fenced"}}, WatchWinner{p.gen + 1})
}

// hold pauses our copy until the arbiter answers.
func (p *Primary) hold() []Action {
	var acts []Action
	if !p.paused && !p.guestDead {
		acts = p.pause([]Action{Persist{p.gen, "fenced"}})
	}
	return append(acts, p.retryAfter(p.limits.ClaimRetry))
}

// revoked ends a protection whose backup could not be told.
func (p *Primary) revoked(v Verdict) []Action {
	switch v {
	case Lost:
		if p.guestDead {
			return p.finish(p.reason)
		}
		p.wish = p.reason // should the backup give the right back
		return p.fence()
	case Unknown:
		return p.hold()
	case Won:
		// The generation is used up: the next protection must not claim it.
		p.gen++
		return p.unpause(append([]Action{Persist{p.gen, "alone"}}, p.letGo(p.reason)...)...)
	}
	if !p.guestDead {
		p.reason += "; the backup could not be told: do not activate it"
	}
	return p.unpause(p.letGo(p.reason)...)
}

// operator is a person's word on our host that our copy is to go on alone.
func (p *Primary) operator(e OperatorActivate) []Action {
	switch {
	case p.guestDead:
		return []Action{Refuse{"the guest ended here; activate it on the backup's host"}}
	case p.state == PrimarySwitching:
		return []Action{Refuse{"the guest is being handed over to the backup; look again in a few seconds"}}
	case p.told && !p.claiming && !p.session && !e.Force:
		return []Action{Refuse{"the backup was told to go on with the guest, and may run it; activate it there, or, sure that it does not run there and never will, use --force"}}
	case p.paused && p.session:
		return []Action{Refuse{"the backup is connected; the guest goes on here as soon as the backup let go of it"}}
	case p.state == PrimaryUndecided && !p.session && !p.claiming:
		return p.claim(ByOperator)
	case p.claiming:
		return []Action{Refuse{"a claim is under way; look again in a second"}}
	case p.state == PrimaryFenced:
		return []Action{Refuse{"the backup holds the right to run the guest; this copy is ended when it runs there; if the backup was lost before that, and is not to come back, use --force"}}
	case p.state == PrimaryStopping:
		return []Action{Refuse{"the protection is being ended; the guest goes on here then"}}
	}
	return []Action{Refuse{"the guest already runs here, and nothing is to be decided"}}
}

func (p *Primary) retry(e Retry) []Action {
	if e.Token != p.token || p.claiming {
		return nil
	}
	switch {
	case p.state == PrimarySwitching:
		return append(p.spoiled("the backup took too long"), p.maybeCapture()...)
	case p.state == PrimaryUndecided && !p.session:
		return p.claim(PeerSilent)
	case p.state == PrimaryStopping && p.finalHeld():
		return p.letGo(p.reason)
	case p.state == PrimaryStopping:
		p.session = false
		return p.claim(ToRevoke)
	case p.state == PrimaryFenced:
		return []Action{Connect{}}
	case p.state == PrimaryHandedOver && !p.handedOver:
		return p.finish(p.reason + ", while no backup could be told")
	}
	return nil
}

func (p *Primary) retryAfter(d time.Duration) Action {
	p.token++
	return RetryAfter{d, p.token}
}

func (p *Primary) guestGone(e GuestGone) []Action {
	if p.guestDead {
		return nil
	}
	p.guestDead = true
	if p.state == PrimarySwitching {
		return p.goneSwitching(e)
	}
	if e.Orderly && p.state == PrimaryProtected {
		return p.lastWords(e.Reason)
	}
	if e.Orderly && !p.told && p.state != PrimaryFenced {
		return p.stopping(e.Reason)
	}
	p.reason = e.Reason
	switch {
	case p.claiming:
		return nil // claimDone hands the right back
	case p.state == PrimaryStopping:
		return nil
	case p.session && p.armed:
		return p.tellDead()
	case p.session:
		return p.stopping(e.Reason + ", before the first checkpoint was complete")
	case p.state == PrimaryFenced:
		return p.finish(e.Reason + " here, while the backup holds the right to run")
	case p.unsure:
		return append([]Action{Withdraw{p.gen + 1}}, p.finish(e.Reason+", while no backup could be told")...)
	case p.armed:
		// The backup may hold the last checkpoint there is: look for it.
		p.state = PrimaryHandedOver
		return []Action{Connect{}, p.retryAfter(handOverTries * p.limits.Detect)}
	}
	return p.finish(e.Reason + ", while no backup could be told")
}

// handOverTries bounds, in detection limits, how long a primary whose guest
// died looks for its backup. One that is silent decides for itself meanwhile.
const handOverTries = 120

func (p *Primary) tellDead() []Action {
	p.state, p.ready, p.handedOver = PrimaryHandedOver, false, true
	return []Action{Persist{p.gen, "handed-over"}, SendGuestDead{p.reason}}
}

// handOver tells a backup that was found again that the guest is dead.
func (p *Primary) handOver(e SessionUp) []Action {
	if e.Generation > p.gen {
		return p.finish(p.reason + "; the backup had decided for itself")
	}
	p.session = true
	return p.tellDead()
}

func (p *Primary) winnerRunning() []Action {
	if p.state != PrimaryFenced {
		return nil
	}
	acts := append([]Action{DestroyGuest{}}, p.switched()...)
	return append(acts, p.finish(p.reason+"; this copy was ended")...)
}

func (p *Primary) peerActivated(e PeerActivated) []Action {
	switch {
	case p.state == PrimaryHandedOver:
		return append(p.switched(), p.finish(p.reason+"; the backup runs the guest")...)
	case e.Generation > p.gen && p.state != PrimaryFenced:
		p.state, p.fenced, p.session, p.ready = PrimaryFenced, true, false, false
		if p.told {
			p.reason += fmt.Sprintf("; the backup runs it under generation %d", e.Generation)
		} else {
			p.reason = fmt.Sprintf("the backup was activated under generation %d", e.Generation)
		}
		return p.pause([]Action{Persist{p.gen, "fenced"}}, p.winnerRunning()...)
	}
	return nil
}

func (p *Primary) pause(before []Action, after ...Action) []Action {
	if !p.paused && !p.guestDead {
		p.paused = true
		before = append(before, PauseGuest{})
	}
	return append(before, after...)
}

// unpause lets our copy go on, then does the rest: a marker that says that it
// runs must not be on disk while it is paused, or a restart forgets it there.
func (p *Primary) unpause(after ...Action) []Action {
	if p.paused && !p.guestDead {
		p.paused = false
		after = append([]Action{ResumeGuest{}}, after...)
	}
	return after
}
