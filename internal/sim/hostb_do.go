package sim

import "github.com/virt-ft/virt-ft/pkg/ftengine"

func nothing() {}

func (b *hostB) do(act ftengine.Action) {
	switch act := act.(type) {
	case ftengine.Persist:
		b.marker.gen, b.marker.phase = act.Generation, act.Phase
		_, b.marker.ran = b.m.Holds()
	case ftengine.MakeStandby:
		b.makeStandby(false)
	case ftengine.RemakeStandby:
		b.makeStandby(true)
	case ftengine.DestroyStandby:
		b.work(0, 2, b.destroy, func() { b.memory, b.rehearsal = false, b.rehearsal+1 })
	case ftengine.Commit:
		b.commit(act.Epoch)
	case ftengine.Rehearse:
		b.work(0, 5, nothing, b.rehearse)
	case ftengine.Load:
		b.load()
	case ftengine.Resume:
		b.resume()
	case ftengine.DropUncommitted:
	case ftengine.PerformOutputs:
		b.performOutputs(act)
	case ftengine.Claim:
		b.claim(act)
	case ftengine.Withdraw:
		b.withdraws++
		b.withdraw(act.Generation)
	case ftengine.Confirm:
		b.confirm(act.Generation)
	case ftengine.RetryAfter:
		b.answer(act.Delay, ftengine.Retry{Token: act.Token})
	case ftengine.CloseSession:
		for _, s := range b.w.link.sessions { // also one that is only let in
			s.closeB(false)
		}
		b.sess = nil
	case ftengine.Refuse:
		if b.m.State() != ftengine.BackupClaiming && !b.runs() { // else it is the second time
			b.w.person = nobody
		}
	case ftengine.Finish:
		w := b.w
		if b.m.State() == ftengine.BackupStopped && b.final != (checkpoint{}) {
			w.ended()
		}
		gen, ran := b.m.Holds()
		b.marker.gen, b.marker.ran = max(b.m.Generation(), gen), ran
		b.m, b.inbox = nil, nil
		b.settle()
	default:
		b.send(act)
	}
}

// settle writes the last marker, but not while a right is still to be handed
// back: a restart has to know of that.
func (b *hostB) settle() {
	if b.m == nil && b.withdraws == 0 {
		b.marker.phase = "ended"
	}
}

func (b *hostB) send(act ftengine.Action) {
	s, a := b.sess, b.w.a
	if ack, ok := act.(ftengine.Ack); ok && s != nil {
		// From here on it counts, whether or not A hears of it.
		s.acked = ack.Epoch
		b.acked = checkpoint{s.id, ack.Epoch}
		if b.parcels[b.acked].final {
			b.final = b.acked
		}
	}
	if s == nil || !s.bUp {
		return
	}
	var e ftengine.Event
	switch act := act.(type) {
	case ftengine.SendDropped:
		b.w.person, b.forgot = nobody, false
		e = ftengine.PeerDropped{}
	case ftengine.SendReady:
		b.w.person, b.forgot = nobody, false
		e = ftengine.StandbyReady{}
	case ftengine.Ack:
		e = ftengine.Acked{Epoch: act.Epoch}
	case ftengine.SendRehearsed:
		e = ftengine.Rehearsed{OK: act.OK, Reason: act.Reason}
	case ftengine.SendActivated:
		e = ftengine.PeerActivated{Generation: act.Generation}
	case ftengine.SendStoodDown:
		e = ftengine.PeerStoodDown{}
	default:
		b.w.fail("B cannot %T", act)
	}
	s.toA.send(func() { a.hear(s, e) })
}

// rehearse goes on beside other work.
func (b *hostB) rehearse() {
	b.rehearsal++
	life, id := b.life, b.rehearsal
	b.w.after(b.w.between(5, 200), func() {
		switch {
		case life != b.life || id != b.rehearsal:
		case b.rehearseFails > 0:
			b.rehearseFails--
			b.post(ftengine.RehearseDone{Reason: "it does not load"})
		default:
			b.post(ftengine.RehearseDone{OK: true})
		}
	})
}

// performOutputs sends what A may not have sent, before the guest runs here.
func (b *hostB) performOutputs(act ftengine.PerformOutputs) {
	if b.runs() {
		b.w.fail("outputs of epochs are performed behind those of the guest")
	}
	for e := act.From; e <= act.To; e++ {
		for _, n := range b.outputs[checkpoint{b.acked.session, e}] {
			b.w.a.gate.out(n).performed = true
		}
	}
}

func (b *hostB) makeStandby(again bool) {
	q := &qemu{}
	b.work(5, 30, func() {
		b.destroy()
		if b.makeFails == 0 {
			b.standby = q
		}
	}, func() {
		switch {
		case b.makeFails > 0:
			b.makeFails--
			b.post(ftengine.StandbyMade{Err: "QEMU does not start"})
		case again && !b.memory:
			b.post(ftengine.StandbyMade{Err: "its memory is gone"})
		default:
			if !again {
				b.committed = checkpoint{}
			}
			b.memory = true
			b.post(ftengine.StandbyMade{})
		}
	})
}

func (b *hostB) destroy() {
	if b.standby != nil {
		b.standby.dead = true
		b.standby = nil
	}
}

func (b *hostB) commit(e ftengine.Epoch) {
	s := b.sess
	b.work(0, 4, nothing, func() {
		switch {
		case !b.memory || s == nil: // the session it belonged to is over
		case b.commitFails > 0:
			b.commitFails--
			b.torn = true
			b.post(ftengine.CommitDone{Epoch: e, Err: "the page is not there"})
		default:
			b.committed = checkpoint{s.id, e}
			b.disk = b.parcels[b.committed].wrote
			b.post(ftengine.CommitDone{Epoch: e})
		}
	})
}

func (b *hostB) load() {
	held, ok := b.committed, false
	b.work(2, 10, func() {
		q := b.standby
		if ok = q != nil && !q.dead && b.loadFails == 0; ok {
			q.loaded, q.holds = true, held
		} else if q != nil {
			q.dead = true // a bad stream kills QEMU
		}
		if b.loadFails > 0 {
			b.loadFails--
		}
	}, func() {
		if ok && b.standby != nil && !b.standby.dead {
			b.post(ftengine.LoadDone{})
			return
		}
		b.post(ftengine.LoadDone{Err: "QEMU ended"})
	})
}

func (b *hostB) resume() {
	ok := false
	b.work(1, 4, func() {
		q := b.standby
		if ok = q != nil && !q.dead && q.loaded; ok && !q.runs {
			q.runs = true
			b.w.resumed(q)
		}
	}, func() {
		if ok {
			b.post(ftengine.ResumeDone{})
			return
		}
		b.post(ftengine.ResumeDone{Err: "the standby is gone"})
	})
}

// endStandby is QEMU ending on B.
func (b *hostB) endStandby() {
	q := b.standby
	if q == nil || q.dead {
		return
	}
	q.dead, q.runs = true, false
	b.queue = append(b.queue, func(done func()) {
		if b.standby == q {
			b.post(ftengine.StandbyDied{Reason: "QEMU ended"})
		}
		done()
	})
	b.next()
}

func (b *hostB) claim(act ftengine.Claim) {
	w, life := b.w, b.life
	if b.withdraws > 0 { // the right that goes back must not be this one
		w.after(w.between(5, 20), func() {
			if life == b.life {
				b.claim(act)
			}
		})
		return
	}
	if wait := b.leaseEnds - w.now; wait > 0 && act.Because != ftengine.HandedOver {
		w.after(wait, func() {
			if life == b.life {
				b.claim(act)
			}
		})
		return
	}
	b.cause = act.Because
	verdict := ftengine.Unknown
	w.arb.call(sideB,
		func() { verdict = w.arb.claim(sideB, act.Generation, act.Because) },
		func(known bool) {
			if life != b.life {
				return
			}
			if !known {
				verdict = ftengine.Unknown
			}
			w.claimed(act, verdict)
			b.post(ftengine.ClaimDone{Generation: act.Generation, Verdict: verdict})
		})
}

func (b *hostB) confirm(gen ftengine.Generation) {
	w, life, ok := b.w, b.life, false
	w.arb.call(sideB, func() { ok = w.arb.confirm(sideB, gen) }, func(known bool) {
		switch {
		case life != b.life:
		case known && ok:
			b.post(ftengine.ConfirmDone{})
		default:
			b.post(ftengine.ConfirmDone{Err: "the arbiter does not take it"})
		}
	})
}

func (b *hostB) withdraw(gen ftengine.Generation) {
	w, life := b.w, b.life
	w.arb.call(sideB, func() { w.arb.withdraw(sideB, gen) }, func(known bool) {
		switch {
		case life != b.life:
		case known:
			b.withdraws--
			b.settle()
		default:
			b.withdraw(gen)
		}
	})
}
