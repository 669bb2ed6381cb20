package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// workMax bounds the queue of slow work of one backup: commits that wait for a
// rehearsal, stagedEpochsMax at most, and a handful of standby changes.
const workMax = stagedEpochsMax + 256

// backup runs the machine of a guest that lives on the peer. All slow work on
// the standby (making, committing, rehearsing, loading) is done by one
// goroutine in the order in which the machine asked for it.
type backup struct {
	base
	m    *ftengine.Backup
	work chan func()

	lastWord bool // the marker is to say that this ended, and does not yet; the machine's goroutine owns it

	sessMu sync.Mutex
	sess   *inbound // the session with the primary, or nil

	stageMu sync.Mutex
	stage   map[ftengine.Epoch]*stagedEpoch // complete, not yet committed

	// Owned by the work goroutine.
	setup    *replica.Setup
	standby  *virt.Standby
	img      *image             // changed under imgMu, which readers of the first epoch hold while they write into it
	device   []byte             // device state of the last committed epoch
	clock    replica.GuestClock // what is known of its clock
	takeover takeover
	gate     *netgate.Gate

	peerClock hostClock
	imgMu     sync.RWMutex
	release   func()                      // ends what is promised of this host's memory; guarded by imgMu
	disks     atomic.Pointer[backupDisks] // nil: the guest has none, or the session has not begun
	runsOn    atomic.Pointer[backupDisks] // what was the copy, and the guest runs on now
	kept      *kept
	destroys  atomic.Int64  // how often the standby's end was asked for
	loaded    atomic.Bool   // the standby holds the whole checkpoint, without us
	closed    atomic.Bool   // no session may begin: a claim is under way
	applied   atomic.Uint64 // the last epoch that is in the standby's memory

	holdMu sync.Mutex // guards what Admit looks at
	accept func(ftengine.Generation) bool
	holds  ftengine.Generation
	runs   bool

	leaseEnds atomic.Pointer[time.Time] // of the primary, in the last session; CLOCK_BOOTTIME
	started   time.Time                 // of an activation
	failover  time.Duration
	committed statMark
}

func newBackup(d *Daemon, m marker.Marker, arb arbiter.Arbiter) *backup {
	b := &backup{m: ftengine.NewBackup(d.limits()), work: make(chan func(), workMax),
		stage: map[ftengine.Epoch]*stagedEpoch{}, kept: newKept()}
	b.init(d.ctx, d, m, arb)
	b.snapshot()
	return b
}

// restoreBackup returns the runner of a protection that an earlier daemon of
// this host knew, and what it has to do first. dom is what runs here of it, or
// nil.
func restoreBackup(d *Daemon, m marker.Marker, arb arbiter.Arbiter, found ftengine.StandbyFound, dom *virt.Domain) (*backup, []ftengine.Action) {
	b := newBackup(d, m, arb)
	var first []ftengine.Action
	b.m, first = ftengine.RestoreBackup(ftengine.Generation(m.Generation), string(m.Phase), found, d.limits())
	if dom != nil {
		b.standby = &virt.Standby{Domain: dom}
		if found != ftengine.StandbyGone {
			b.watchStandby(b.standby)
		}
	}
	if found == ftengine.StandbyRuns {
		b.tidyActive() // the work goroutine does it once it runs
		go d.reprotect(b)
	}
	b.snapshot()
	return b, first
}

func (b *backup) start(first ...ftengine.Action) {
	b.async(func() {
		for {
			select {
			case f := <-b.work:
				f()
			case <-b.ctx.Done():
				b.drainWork()
				return
			}
		}
	})
	go func() {
		b.run(b.m, first, b.do, b.snapshot, b.noteEnd)
		b.d.ended(b.uuid, &b.base)
	}()
}

// drainWork finishes what was asked for before the end, such as destroying
// the standby, and lets go of everything.
func (b *backup) drainWork() {
	for {
		select {
		case f := <-b.work:
			f()
		default:
			if b.standby != nil && !b.active() && !b.loaded.Load() { // that one the next daemon goes on with
				b.destroyStandby() // nobody could feed it any more
			}
			b.closeImage()
			b.closeGate()
			b.closeDisks()
			b.dropStaged(0)
			return
		}
	}
}

func (b *backup) later(f func()) { b.work <- f }

func (b *backup) do(a ftengine.Action) {
	switch a := a.(type) {
	case ftengine.Persist:
		if marker.Phase(a.Phase) == marker.PhaseClaimed {
			b.started = time.Now()
		}
		b.note(a.Generation, marker.Phase(a.Phase))
	case ftengine.MakeStandby:
		// Before the new session is let go on: its epochs begin at 1 again.
		b.kept.drop(0)
		b.later(b.makeStandby)
	case ftengine.RemakeStandby:
		b.later(b.remakeStandby)
	case ftengine.DestroyStandby:
		b.destroys.Add(1)
		b.later(b.destroyStandby)
	case ftengine.Commit:
		b.later(func() { b.commit(a.Epoch) })
	case ftengine.Rehearse:
		b.later(b.rehearse)
	case ftengine.Load:
		b.later(b.load)
	case ftengine.Resume:
		b.later(b.resume)
	case ftengine.SendDropped:
		b.send(0, &replica.Dropped{})
	case ftengine.SendReady:
		b.send(0, &replica.Ready{Disks: b.diskReady()})
	case ftengine.Ack:
		b.send(a.Epoch, &replica.Ack{})
	case ftengine.SendRehearsed:
		b.send(0, &replica.Rehearsed{OK: a.OK, Reason: a.Reason})
	case ftengine.SendActivated:
		b.send(0, &replica.Activated{})
	case ftengine.SendStoodDown:
		b.sayBye()
	case ftengine.DropUncommitted:
		b.dropUncommitted()
	case ftengine.PerformOutputs:
		b.later(func() { b.performOutputs(a.From, a.To) })
	case ftengine.Claim:
		b.claimAfterLease(a)
	case ftengine.Withdraw:
		b.noteIdle()
		b.withdraw(a.Generation, b.d.ctx.Done())
	case ftengine.Confirm:
		b.async(func() { b.confirm(a.Generation) })
	case ftengine.RetryAfter:
		b.retryAfter(a)
	case ftengine.CloseSession:
		b.dropSession()
	case ftengine.Refuse:
		b.answerOperator(fmt.Errorf("%s", a.Reason))
	case ftengine.Finish:
		b.finish(a.Reason)
	default:
		panic(fmt.Sprintf("daemon: backup cannot %T", a))
	}
}

// byeMax is how long the farewell waits at most for libvirt to end the standby, where a
// primary that waits for longer turns this host off.
const byeMax = 8 * time.Second

// sayBye goes behind DestroyStandby: it is said when it is true. But a primary that can
// turn us off must not wait until it thinks that we are lost: nothing is ever claimed
// from here on.
func (b *backup) sayBye() {
	bye := sync.OnceFunc(func() { b.send(0, &replica.Bye{Reason: "the standby is gone"}) })
	b.later(bye)
	b.mu.Lock()
	arb := b.arb
	b.mu.Unlock()
	if arb == nil || !fences(arb.Name()) {
		return
	}
	b.async(func() {
		afterOrDone(b.ctx, byeMax)
		bye()
	})
}

// leaseMargin is what two clocks may drift apart over one lease, generously.
const leaseMargin = 5 * time.Millisecond

// claimAfterLease asks the arbiter when the primary's lease is surely over: it
// may still perform outputs of older epochs until then, also when its daemon is
// dead or frozen. One that handed over has sealed its gate before.
func (b *backup) claimAfterLease(a ftengine.Claim) {
	b.d.watch.Claimed(b.uuid, a.Because.String())
	if a.Because != ftengine.HandedOver {
		// A session that was let in a moment ago would extend the lease.
		b.closed.Store(true)
		b.dropSession()
		b.inTurn(func() {
			if ends := b.leaseEnds.Load(); ends != nil {
				afterOrDone(b.ctx, ends.Add(leaseMargin).Sub(replica.Boottime()))
			}
		})
	}
	b.claim(a)
}

// dropUncommitted forgets what was not acknowledged.
func (b *backup) dropUncommitted() {
	if s := b.m.State(); s == ftengine.BackupClaiming || s == ftengine.BackupOrphaned {
		// In the others the session is over, or is the next one already.
		if in := b.current(); in != nil {
			in.dropped.Store(true)
		}
	}
	b.dropStaged(b.m.Acked())
	b.kept.drop(b.m.Acked())
	if bd := b.disks.Load(); bd != nil {
		bd.target.Drop(uint64(b.m.Acked()))
	}
}

// note writes a marker, which also says whether the guest ran here.
func (b *backup) note(gen ftengine.Generation, phase marker.Phase) {
	_, ran := b.m.Holds()
	b.mu.Lock()
	b.mark.Ran = ran
	b.mu.Unlock()
	b.persist(gen, phase, b.m.Reason())
}

// noteEnd is the marker's last word. As long as a right is to be handed back it is not
// said: should this daemon stop before, the next one has to do that.
func (b *backup) noteEnd() {
	if b.lastWord && b.owed.Load() == 0 {
		b.lastWord = false
		b.note(b.m.Generation(), marker.PhaseEnded)
	}
}

func (b *backup) finish(reason string) {
	b.lastWord = true
	b.noteEnd()
	b.answerOperator(fmt.Errorf("%s", reason))
	b.flush()
	b.log.Info("stand-by ended", "reason", reason)
}

// flush waits until what was asked for has been done, such as the farewell, which
// needs the session. The machine has ended: nobody else reads events any more, and
// work may have more of them to tell than there is room for.
func (b *backup) flush() {
	flushed, work := make(chan struct{}), b.work
	for {
		select {
		case work <- func() { close(flushed) }:
			work = nil
		case <-flushed:
			return
		case <-b.events:
		}
	}
}

func (b *backup) confirm(gen ftengine.Generation) {
	ctx, cancel := context.WithTimeout(b.ctx, askMax(b.arb))
	defer cancel()
	var text string
	c := b.claimOf(gen)
	err := b.arb.Confirm(ctx, c)
	if errors.Is(err, arbiter.ErrNotHolder) {
		// Some arbiters take the word of the process alone that claimed, which a
		// daemon that was restarted since is not: it claims the same right again.
		if v, cerr := b.arb.Claim(ctx, c); cerr == nil && v.Won {
			err = b.arb.Confirm(ctx, c)
		}
	}
	if err != nil {
		text = err.Error()
		b.log.Error("the arbiter does not take RUNNING; the guest waits", "err", err)
		b.setError(err)
	}
	b.post(ftengine.ConfirmDone{Err: text})
}

// active tells whether the guest runs here.
func (b *backup) active() bool {
	b.holdMu.Lock()
	defer b.holdMu.Unlock()
	return b.runs
}

// takesOver tells whether the guest is on its way to go on here.
func (b *backup) takesOver() bool {
	s := b.stateNow()
	return s == ftengine.BackupClaiming.String() || s == ftengine.BackupActivating.String()
}

// idle tells whether there is neither a standby nor a primary.
func (b *backup) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status.State == ftengine.BackupWaiting.String()
}

// snapshot publishes what others may look at; the machine's goroutine calls
// it after each event.
func (b *backup) snapshot() {
	now := *b.m // others ask it while the machine goes on
	holds, runs := b.m.Holds()
	state, gen := b.m.State(), b.m.Generation()
	if state != ftengine.BackupClaiming {
		b.closed.Store(false)
	}
	b.holdMu.Lock()
	b.holds, b.runs = holds, runs
	b.accept = now.Accepts
	b.holdMu.Unlock()
	b.mu.Lock()
	b.status.Epoch = control.EpochStatus{Captured: uint64(b.m.Acked()), Acked: uint64(b.m.Acked()), Committed: uint64(b.m.Committed())}
	if b.failover > 0 {
		b.status.FailoverMs = ms(b.failover)
	}
	b.mu.Unlock()
	b.setState(control.RoleBackup, state.String(), b.m.Reason(), uint64(gen))
}
