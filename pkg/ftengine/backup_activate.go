package ftengine

// operator is a person's word on our host that the guest is to go on here.
func (b *Backup) operator(e OperatorActivate) []Action {
	switch {
	case b.state == BackupActive || b.state == BackupActivating:
		return []Action{Refuse{"the guest already runs here"}}
	case b.state == BackupEnding:
		return []Action{Refuse{"the guest was shut down in order; start it on the host on which it is to run"}}
	case b.committed == 0 || b.state == BackupSyncing || b.state == BackupWaiting:
		return []Action{Refuse{"no complete checkpoint is here to go on from"}}
	case b.claiming:
		return []Action{Refuse{"a claim is under way; look again in a second"}}
	case b.session && !e.Force:
		return []Action{Refuse{"the primary is connected and runs the guest; --force would make it lose its copy and everything since the last checkpoint"}}
	case b.state == BackupOrphaned && b.hostLives && !e.Force:
		return []Action{Refuse{"the primary's host is alive, so its guest may be running; --force would run a second copy from the last checkpoint until the primary's daemon is back"}}
	}
	return b.claim(ByOperator)
}

// maybeLoad goes on with an activation as soon as nothing is missing: the
// right to run, every acknowledged epoch, a QEMU that waits.
func (b *Backup) maybeLoad() []Action {
	if b.state != BackupActivating || !b.alive || b.loading || b.loaded || b.committed != b.acked {
		return nil
	}
	b.loading = true
	b.loadTries++
	return []Action{Load{}}
}

func (b *Backup) loadDone(e LoadDone) []Action {
	if !b.loading {
		return nil
	}
	b.loading = false
	switch {
	case e.Err != "":
		return b.loadAgain(e.Err)
	case !b.alive:
		return b.loadAgain("it died as soon as it had loaded")
	}
	b.loaded = true
	if b.confirmed {
		return b.resume()
	}
	return b.confirm()
}

// confirm tells the arbiter that we run, before we do.
func (b *Backup) confirm() []Action {
	if b.asking {
		return nil
	}
	b.asking = true
	b.token++ // what was to be retried is asked now
	return []Action{Confirm{b.gen}}
}

// loadAgain makes another standby from the memory that we hold, because the
// one that was given the checkpoint is dead.
func (b *Backup) loadAgain(why string) []Action {
	b.alive, b.loaded = false, false
	if b.loadTries < loadTriesMax && b.committed > 0 {
		return b.remake()
	}
	return b.fail("the standby does not load the checkpoint: " + why)
}

func (b *Backup) confirmDone(e ConfirmDone) []Action {
	b.asking = false
	switch {
	case b.state != BackupActivating || b.confirmed:
		return nil
	case e.Err != "" && !b.loaded:
		return nil // it died meanwhile; loadDone asks again
	case e.Err != "":
		// The guest is loaded and may not run: the arbiter must know first.
		b.token++
		return []Action{RetryAfter{b.limits.ClaimRetry, b.token}}
	}
	b.confirmed = true
	if !b.loaded {
		return nil // it died meanwhile; loadDone goes on
	}
	return b.resume()
}

func (b *Backup) resume() []Action {
	invariant(b.state == BackupActivating && b.loaded && b.confirmed && b.committed == b.acked, "resume in state %v", b.state)
	b.resuming, b.ran = true, true
	if b.released < b.committed {
		return []Action{PerformOutputs{b.released + 1, b.committed}, Resume{}}
	}
	return []Action{Resume{}}
}

func (b *Backup) resumeDone(e ResumeDone) []Action {
	if b.state != BackupActivating || !b.resuming {
		return nil
	}
	b.resuming = false
	if e.Err != "" {
		return b.end("the guest was loaded but does not resume: " + e.Err)
	}
	b.state = BackupActive
	acts := []Action{Persist{b.gen, "active"}, SendActivated{b.gen}}
	if !b.alive {
		return append(acts, b.end("the guest ended here as soon as it ran")...)
	}
	return acts
}

// fail gives up before an instruction was executed here.
func (b *Backup) fail(reason string) []Action {
	acts := []Action{CloseSession{}, DestroyStandby{}}
	if b.state == BackupActivating && !b.confirmed {
		acts = append([]Action{Withdraw{b.gen}}, acts...)
	}
	// Once the arbiter knows that we run, the other copy is being ended.
	b.ran = b.ran || b.confirmed
	return b.leave(BackupFailed, reason, acts...)
}

// leave ends the machine with acts, but not before a claim is settled: a right
// that nobody uses must not keep the primary down.
func (b *Backup) leave(state BackupState, reason string, acts ...Action) []Action {
	if b.ending {
		return nil
	}
	b.reason = reason
	acts = append(acts, Finish{reason})
	if b.claiming {
		b.ending, b.endActs, b.endState = true, acts, state
		return nil
	}
	if b.state == BackupClaiming {
		// The outcome of an earlier claim may be unknown.
		acts = append([]Action{Withdraw{b.gen + 1}}, acts...)
	}
	b.state = state
	return acts
}

func (b *Backup) end(reason string) []Action {
	b.state, b.reason = BackupStopped, reason
	return []Action{CloseSession{}, Finish{reason}}
}
