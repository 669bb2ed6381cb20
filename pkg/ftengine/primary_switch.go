package ftengine

import "fmt"

// switchTries bounds, in detection limits, each part of a hand over: until the
// backup has the epochs that are on their way; until it has the last one, for
// which the guest stands still; until it runs the guest.
const switchTries = 10

// swap begins to hand the guest over to the backup. It runs on until the
// backup has all epochs, so that the last one is small and alone on its way.
func (p *Primary) swap(e HandOver) []Action {
	switch {
	case p.state == PrimarySwitching:
		return []Action{Refuse{"the guest is being handed over already"}}
	case p.state != PrimaryProtected:
		return []Action{Refuse{fmt.Sprintf("only a protected guest can be handed over; this one is %v", p.state)}}
	}
	p.state, p.reason, p.asked, p.last = PrimarySwitching, e.Reason, true, 0
	return append([]Action{p.retryAfter(switchTries * p.limits.Detect)}, p.lastEpoch()...)
}

// lastEpoch pauses the guest and asks for the epoch from which the backup is
// to go on. Whatever becomes of us, the marker knows of the paused guest.
func (p *Primary) lastEpoch() []Action {
	if p.last != 0 || p.capturing || p.acked != p.captured {
		return nil
	}
	p.last = p.captured + 1
	p.capturing, p.paceDue = true, false
	return p.pause([]Action{Persist{p.gen, "fenced"}}, Capture{Epoch: p.last}, p.retryAfter(switchTries*p.limits.Detect))
}

// tellLast has the backup go on: it has all of the guest. What of it has not
// left yet, the backup sends.
func (p *Primary) tellLast() []Action {
	p.told, p.ready = true, false
	return []Action{Persist{p.gen, "told"}, SendGuestDead{p.reason}, p.retryAfter(switchTries * p.limits.Detect)}
}

// spoiled ends a hand over that met trouble. Before the backup was told the
// guest is ours, and goes on as it did; afterwards the arbiter has to say whose
// it is.
func (p *Primary) spoiled(why string) []Action {
	if p.told {
		p.state, p.session = PrimaryUndecided, false
		return p.claim(PeerSilent)
	}
	p.state, p.reason, p.last = PrimaryProtected, "", 0
	p.token++
	acts := p.refused("the guest was not handed over: " + why)
	if p.paused && !p.guestDead {
		acts = p.unpause(append([]Action{Persist{p.gen, "protected"}}, acts...)...)
	}
	return acts
}

// goneSwitching is our QEMU ending while its guest is handed over.
func (p *Primary) goneSwitching(e GuestGone) []Action {
	if p.told {
		// Nobody can take that back: the guest is the backup's.
		p.state, p.told, p.handedOver = PrimaryHandedOver, false, true
		return []Action{Persist{p.gen, "handed-over"}}
	}
	acts := p.spoiled(e.Reason)
	p.guestDead = false // for the first time
	return append(acts, p.guestGone(e)...)
}

// refused and switched answer a HandOver, if one was not answered yet.
func (p *Primary) refused(why string) []Action {
	if !p.asked {
		return nil
	}
	p.asked = false
	return []Action{Refuse{why}}
}

func (p *Primary) switched() []Action {
	if !p.asked {
		return nil
	}
	p.asked = false
	return []Action{Switched{}}
}
