package ftengine

func (p *Primary) stopping(reason string) []Action {
	switch {
	case p.state == PrimaryStopping:
		return nil
	case p.state == PrimaryFenced || p.told:
		p.wish = reason // the guest is, or may be, the backup's by now
		return nil
	case p.state == PrimarySwitching:
		return append(p.spoiled(reason), p.stopping(reason)...)
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
		return p.standDown()
	}
	return p.claim(ToRevoke)
}

// wished does what was wished for while it was open whose the guest is.
func (p *Primary) wished() []Action {
	why := p.wish
	if p.wish = ""; why == "" {
		return nil
	}
	return p.stopping(why)
}

// standDownTries bounds, in detection limits, how long the backup may take to
// let go of its standby: libvirtd has to end a QEMU meanwhile.
const standDownTries = 20

func (p *Primary) standDown() []Action {
	return []Action{SendStandDown{p.reason}, p.retryAfter(standDownTries * p.limits.Detect)}
}

// lastWords ends the protection of a guest that ended in order: what it sent
// and wrote last makes a final epoch, which the backup takes for the end.
func (p *Primary) lastWords(reason string) []Action {
	p.state, p.reason, p.ending = PrimaryStopping, reason, true
	return append([]Action{p.retryAfter(standDownTries * p.limits.Detect)}, p.finalEpoch()...)
}

func (p *Primary) finalEpoch() []Action {
	if !p.ending || !p.session || p.final != 0 || p.capturing || int(p.captured-p.acked) >= p.limits.InFlight {
		return nil
	}
	p.final, p.capturing = p.captured+1, true
	return []Action{Capture{Epoch: p.final, Final: true}}
}

// finalFailed is the end of a capture that came to nothing. One that the
// guest's end interrupted leaves its part to the final one; without that the
// backup is told.
func (p *Primary) finalFailed(e CaptureFailed) []Action {
	switch {
	case p.final == 0 && p.early != e.Epoch:
		return p.finalEpoch()
	case p.finalHeld():
		return nil // it was acknowledged all the same
	}
	p.ending, p.final, p.ready = false, 0, false
	return p.standDown()
}

// finalHeld tells that the backup has all that the guest ever said and wrote,
// and will never go on from it.
func (p *Primary) finalHeld() bool { return p.final != 0 && p.acked >= p.final }

// openGate lets out what is held: no backup can go on from a checkpoint of
// this guest any more. What a dead guest said last is let out only if the
// backup has what it wrote.
func (p *Primary) openGate() []Action {
	if p.guestDead && !p.finalHeld() {
		return nil
	}
	return []Action{OpenGate{}}
}

// letGo ends the protection of a guest that is ours. The session goes first: no
// capture of it holds anything then.
func (p *Primary) letGo(reason string) []Action {
	open := p.openGate()
	return append(append([]Action{CloseSession{}}, open...), p.end(reason)...)
}

func (p *Primary) finish(reason string) []Action {
	p.left = p.armed
	return append([]Action{CloseSession{}}, p.end(reason)...)
}

func (p *Primary) end(reason string) []Action {
	p.state, p.reason, p.ready, p.session = PrimaryStopped, reason, false, false
	return append(p.refused(reason), Finish{reason})
}
