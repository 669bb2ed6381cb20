package ftengine

import (
	"fmt"
	"time"
)

func (p *Primary) claim(why Cause) []Action {
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
		p.armed, p.fenced = false, false
		p.state = PrimaryAlone
		return p.unpause(Persist{p.gen, "alone"}, OpenGate{}, Connect{})
	case Lost:
		p.reason = "the backup won the right to run"
		return p.fence()
	case NeedOperator:
		if p.fenced || !p.paused {
			// Only a person can activate the backup: our guest runs on,
			// and what it sends is held until a person decides.
			// But one that the backup was seen to own stays paused
			// until the backup, or a person here, says otherwise.
			return []Action{Connect{}}
		}
		return p.unpause(Persist{p.gen, "armed"}, Connect{})
	}
	// Nobody can tell whether the backup runs: then we may not.
	return p.hold()
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
func (p *Primary) operator() []Action {
	switch {
	case p.guestDead:
		return []Action{Refuse{"the guest ended here; activate it on the backup's host"}}
	case p.state == PrimaryUndecided && !p.session && !p.claiming:
		return p.claim(ByOperator)
	case p.claiming:
		return []Action{Refuse{"a claim is under way; look again in a second"}}
	case p.state == PrimaryFenced:
		return []Action{Refuse{"the backup holds the right to run the guest; this copy is ended when it runs there"}}
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
	case p.state == PrimaryUndecided && !p.session:
		return p.claim(PeerSilent)
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
	if e.Orderly {
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

func (p *Primary) stopping(reason string) []Action {
	if p.state == PrimaryStopping || p.state == PrimaryFenced {
		return nil
	}
	handed := p.state == PrimaryHandedOver
	p.reason = reason
	switch {
	case handed:
		return p.finish(reason)
	case !p.session && !p.armed && !p.claiming && !p.paused:
		return p.letGo(reason)
	}
	p.state, p.ready = PrimaryStopping, false
	switch {
	case p.claiming:
		return nil
	case p.session:
		return []Action{SendStandDown{reason}, p.retryAfter(standDownTries * p.limits.Detect)}
	}
	return p.claim(ToRevoke)
}

// standDownTries bounds, in detection limits, how long the backup may take to
// let go of its standby: libvirtd has to end a QEMU meanwhile.
const standDownTries = 20

func (p *Primary) winnerRunning() []Action {
	if p.state != PrimaryFenced {
		return nil
	}
	return append([]Action{DestroyGuest{}}, p.finish(p.reason+"; this copy was ended")...)
}

func (p *Primary) peerActivated(e PeerActivated) []Action {
	switch {
	case p.state == PrimaryHandedOver:
		return p.finish(p.reason + "; the backup runs the guest")
	case e.Generation > p.gen && p.state != PrimaryFenced:
		p.state, p.fenced, p.session, p.ready = PrimaryFenced, true, false, false
		p.reason = fmt.Sprintf("the backup was activated under generation %d", e.Generation)
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

// openGate lets out what is held: no backup can go on from a checkpoint of
// this guest any more.
func (p *Primary) openGate() []Action {
	if p.guestDead {
		return nil
	}
	return []Action{OpenGate{}}
}

// letGo ends the protection of a guest that is ours. The session goes first: no
// capture of it holds anything then.
func (p *Primary) letGo(reason string) []Action {
	p.stop(reason)
	return append(append([]Action{CloseSession{}}, p.openGate()...), Finish{reason})
}

func (p *Primary) finish(reason string) []Action {
	p.stop(reason)
	return []Action{CloseSession{}, Finish{reason}}
}

func (p *Primary) stop(reason string) {
	p.state, p.reason, p.ready, p.session = PrimaryStopped, reason, false, false
}
