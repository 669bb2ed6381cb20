package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// primary runs the machine of a guest that lives on this host.
type primary struct {
	base
	m   *ftengine.Primary
	dom *virt.Domain
	pid int
	id  replica.UUID // of the protection
	// domain is the guest's UUID.
	domain   replica.UUID
	peerAddr string
	ended    bool // the machine came to its end; the machine's goroutine owns it
	// halted: the daemon stops, and something had not come to pass for the guest.
	// Nothing that relies on it is done any more; the next daemon does all of it.
	halted bool

	peerRuns     atomic.Bool   // the backup said that it runs the guest
	announced    atomic.Bool   // libvirt said that the guest is shut down; QEMU's end follows
	endedInOrder chan struct{} // closed when QEMU was seen to have ended by somebody's wish
	endOnce      sync.Once

	wishes    atomic.Int64           // to connect, while a goroutine is at it
	fruitless atomic.Int32           // sessions in a row of which no epoch was acknowledged
	described atomic.Pointer[string] // the domain's XML that the backup's standby was made of
	setMu     sync.Mutex             // of who changes the pacing
	pacing    atomic.Pointer[control.Pacing]
	out       *outputs
	clock     *guestClock
	peerClock hostClock

	capMu     sync.Mutex // held while a checkpoint is taken
	runMu     sync.Mutex // of who lets the guest stand still or go on, but for checkpoints
	cap       *capture.Session
	gateTries int    // failures to put a gate before the guest; of capMu's holder
	disks     *disks // of the session that the checkpoint is for; of capMu's holder

	born     time.Time
	pausedNs atomic.Int64 // after born, when the last pause began

	mirrorTries atomic.Int32 // failures to mirror the guest's disks in a row

	setupMu      sync.Mutex      // one session is set up at a time
	captureTries int             // failures to open a capture session in a row; of setupMu's holder
	disksDone    <-chan struct{} // closed when nothing is left of the last session's mirrors; of setupMu's holder

	linkMu sync.Mutex
	link   *link // the session with the backup, or nil

	pacer *pacer
	stats epochLog
	sync  syncProgress
}

// newPrimary returns the runner of dom, which runs here as process pid. It
// does nothing yet: start does.
func newPrimary(d *Daemon, dom *virt.Domain, pid int, m marker.Marker, arb arbiter.Arbiter) (*primary, error) {
	id, err := replica.ParseUUID(m.Protection)
	if err != nil {
		return nil, fmt.Errorf("protection id: %w", err)
	}
	uuid, err := replica.ParseUUID(m.UUID)
	if err != nil {
		return nil, fmt.Errorf("domain: %w", err)
	}
	p := &primary{dom: dom, pid: pid, peerAddr: m.Peer, id: id, domain: uuid, endedInOrder: make(chan struct{})}
	p.init(d.ctx, d, m, arb)
	if m.Pacing == (marker.Pacing{}) {
		m.Pacing = marker.Pacing(pacingOf(d.cfg)) // the marker is of an earlier version
	}
	pacing := control.Pacing(m.Pacing)
	p.pacing.Store(&pacing)
	p.pacer = newPacer(d.cfg.Epoch, pacing)
	p.born = time.Now()
	p.out = newOutputs(p)
	p.clock = &guestClock{log: p.log, pid: pid, bound: d.cfg.Epoch.PauseMax + time.Second}
	limits := d.limits()
	if fences(arb.Name()) {
		// To ask is to turn the backup's host off: a daemon that is only restarted gets
		// the time for it. Without one no standby goes on.
		limits.Redial = max(limits.Detect, limits.Grace)
	}
	p.m = ftengine.RestorePrimary(ftengine.Generation(m.Generation), string(m.Phase), limits)
	p.snapshot()
	return p, nil
}

// snapshot publishes what others may look at; the machine's goroutine calls
// it after each event.
func (p *primary) snapshot() {
	p.mu.Lock()
	p.status.Epoch = control.EpochStatus{Captured: uint64(p.m.Captured()), Acked: uint64(p.m.Acked())}
	p.mu.Unlock()
	p.setState(control.RolePrimary, p.m.State().String(), p.m.Reason(), uint64(p.m.Generation()))
}

func (p *primary) start() {
	p.d.noteHere(p.uuid, p.name)
	p.async(p.watchGuest)
	p.async(func() { p.out.run(p.ctx) })
	if p.mark.Armed() {
		// An earlier daemon left a gate that is shut: what the guest sends is
		// better held than dropped. OpenGate does without if this fails.
		p.async(func() {
			if err := p.attachGate(p.ctx); err != nil {
				p.log.Warn("the gate of an earlier daemon is not taken over", "err", err)
			}
		})
	}
	go func() {
		p.run(p.m, p.m.Start(), p.do, p.snapshot, p.tidy)
		p.d.ended(p.uuid, &p.base)
	}()
}

func (p *primary) do(a ftengine.Action) {
	if !p.halted {
		p.act(a)
	}
}

func (p *primary) act(a ftengine.Action) {
	switch a := a.(type) {
	case ftengine.Persist:
		phase := marker.Phase(a.Phase)
		p.persist(a.Generation, phase, p.m.Reason())
		switch phase {
		case marker.PhaseAlone:
			p.answerActivate(nil)
		case marker.PhaseFenced:
			p.answerActivate(errors.New(p.m.Reason()))
		}
	case ftengine.Connect:
		p.async(p.connect)
	case ftengine.SendSetup:
		p.withLink(func(l *link) { p.async(func() { p.sendSetup(l) }) })
	case ftengine.Capture:
		l := p.currentLink()
		if a.Final {
			p.async(func() { p.lastWords(l, a) })
		} else {
			p.async(func() { p.capture(l, a) })
		}
	case ftengine.ReopenCapture:
		p.async(p.closeCapture)
	case ftengine.Release:
		p.out.grant(p.currentLink(), a.Epoch)
	case ftengine.OpenGate:
		p.out.openGate()
	case ftengine.Claim:
		p.claim(a)
	case ftengine.Withdraw:
		p.withdraw(a.Generation, p.ctx.Done())
	case ftengine.RetryAfter:
		p.retryAfter(a)
	case ftengine.SendGuestDead:
		p.out.seal()
		p.withLink(func(l *link) { l.send(0, &replica.GuestDead{Reason: a.Reason}) })
	case ftengine.SendStandDown:
		p.withLink(func(l *link) { l.send(0, &replica.StandDown{Reason: a.Reason}) })
	case ftengine.PauseGuest:
		if p.m.State() == ftengine.PrimarySwitching {
			p.capMu.Lock() // a guest that a checkpoint has stopped would be asked again later
			defer p.capMu.Unlock()
		}
		p.runMu.Lock()
		p.onGuest("pause", p.dom.Suspend, isStopped)
		p.runMu.Unlock()
	case ftengine.ResumeGuest:
		p.runMu.Lock()
		p.onGuest("resume", p.resumeGuest, isResumed)
		p.runMu.Unlock()
	case ftengine.DestroyGuest:
		p.noteStale()
		p.onGuest("destroy", p.dom.Destroy, nil)
	case ftengine.WatchWinner:
		p.async(func() { p.watchWinner(a.Generation) })
	case ftengine.CloseSession:
		p.dropLink()
	case ftengine.Switched:
		p.answerOperator(nil)
	case ftengine.Refuse:
		p.answerOperator(errors.New(a.Reason))
	case ftengine.Finish:
		p.finish(a.Reason)
	default:
		panic(fmt.Sprintf("daemon: primary cannot %T", a))
	}
}

// guestCallTimeout bounds one libvirt call on the guest outside the epochs.
const guestCallTimeout = 30 * time.Second

// guestRetry is the pause between two tries at a guest that libvirtd does not
// let us reach.
const guestRetry = 100 * time.Millisecond

// onGuest does an action on the guest, in order with the other actions: what follows
// relies on it.
func (p *primary) onGuest(what string, f func(context.Context) error, done func(status string) bool) {
	switch {
	case p.insist(what, f, done):
		p.log.Info("guest", "did", what)
	case !processGone(p.pid):
		p.halted = true
	}
}

// insist runs f until done says that it had its effect, and reports whether it had.
// libvirtd may be away for a while, and a guest must neither stay paused nor run on
// for that.
func (p *primary) insist(what string, f func(context.Context) error, done func(status string) bool) bool {
	for told := false; ; told = true {
		err := p.tryOnGuest(f, done)
		if err == nil {
			if told {
				p.setError(nil)
			}
			return true
		}
		if !told {
			p.log.Error("could not "+what+" the guest; trying on", "err", err)
			p.setError(fmt.Errorf("could not %s the guest yet: %w", what, err))
		}
		if p.ctx.Err() != nil || processGone(p.pid) {
			return false // the marker tells the next daemon what is to be done
		}
		afterOrDone(p.ctx, guestRetry)
	}
}

// tryOnGuest looks at QEMU itself afterwards: libvirt takes a guest that is
// stopped for a checkpoint for a paused one, and does nothing.
func (p *primary) tryOnGuest(f func(context.Context) error, done func(string) bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), guestCallTimeout)
	defer cancel()
	err := f(ctx)
	if done == nil {
		return err
	}
	status, qerr := queryStatus(ctx, p.dom)
	if qerr != nil {
		return errors.Join(err, qerr)
	}
	if done(status) {
		return nil
	}
	return errors.Join(err, fmt.Errorf("QEMU says that it is %q", status))
}

// queryStatus is what QEMU itself says of its guest's state.
func queryStatus(ctx context.Context, dom *virt.Domain) (string, error) {
	raw, err := dom.QMP(ctx, "query-status", nil)
	if err != nil {
		return "", err
	}
	var st struct {
		Status string `json:"status"`
	}
	err = json.Unmarshal(raw, &st)
	return st.Status, err
}

// isResumed is true for a guest that sleeps or panicked by itself, too.
func isResumed(status string) bool { return status != "paused" }

// isStopped is false for a guest that a checkpoint lets go in a moment.
func isStopped(status string) bool { return status != "running" && status != "save-vm" }

func (p *primary) finish(reason string) {
	p.dropLink()
	gone := p.m.Left()
	switch {
	case gone && p.peerRuns.Load():
		p.noteStale() // before nothing else speaks of it any more
	case gone:
		p.noteGone(reason)
	}
	if !gone || p.peerRuns.Load() {
		p.persist(p.m.Generation(), marker.PhaseEnded, reason)
	}
	p.ended = true
	p.log.Info("protection ended", "reason", reason)
}

// tidy is the last thing that the runner does. A daemon that ends while it
// protects leaves the gate as it is: nobody knows yet who may run.
func (p *primary) tidy() {
	p.closeCapture()
	if p.ended && !processGone(p.pid) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), guestCallTimeout)
		if err := p.dom.AllowMigration(ctx); err != nil {
			p.log.Warn("the guest may still refuse to be migrated", "err", err)
		}
		cancel()
	}
	p.clock.close()
	p.out.close(!p.ended)
}

func (p *primary) closeCapture() {
	p.capMu.Lock()
	defer p.capMu.Unlock()
	if p.cap == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), guestCallTimeout)
	defer cancel()
	if err := p.cap.Close(ctx); err != nil {
		p.log.Warn("capture session did not close cleanly", "err", err)
	}
	p.cap = nil
}

// crashDetailWait is how long we wait for libvirt's word on why QEMU ended.
const crashDetailWait = 2 * time.Second

// watchGuest posts GuestGone when QEMU ends. The kernel tells us at once;
// libvirt tells whether somebody wanted it.
func (p *primary) watchGuest() {
	events, cancel := p.d.virt.Subscribe()
	defer cancel()
	type exit struct {
		signal syscall.Signal
		err    error
	}
	gone := make(chan exit, 1)
	p.async(func() {
		signal, err := waitExit(p.ctx, p.pid)
		gone <- exit{signal, err}
	})
	for {
		select {
		case <-p.ctx.Done():
			return
		case e := <-events:
			if p.hear(e) {
				return
			}
		case e := <-gone:
			if e.err != nil {
				if p.ctx.Err() == nil {
					p.log.Error("QEMU cannot be watched", "err", e.err)
				}
				gone = nil
				continue
			}
			if e.signal != 0 && !p.announced.Load() {
				// Nobody who wants a guest to end kills its QEMU; libvirt
				// asks it first, and would have announced it. What it has to
				// say comes after it has tidied up: too late for us.
				p.post(ftengine.GuestGone{Reason: fmt.Sprintf("QEMU was ended by a signal (%v)", e.signal)})
				return
			}
			p.post(p.whyGone(events))
			return
		}
	}
}

// hear acts on one of libvirt's events. It reports whether the guest ended.
func (p *primary) hear(e virt.Event) bool {
	if e.UUID != "" && e.UUID != p.uuid {
		return false
	}
	switch e.Kind {
	case virt.Reconnected, virt.Lagged:
		p.announced.Store(false) // it may have been reset meanwhile; if it does end, libvirt tells why
		p.async(p.compareDevices)
	case virt.DeviceAdded, virt.DeviceRemoved:
		p.async(p.compareDevices)
	case virt.CopyEnded:
		p.withLink(func(l *link) { p.async(func() { l.disks.Load().lost(e.Detail) }) })
	case virt.Shutdown:
		p.announced.Store(true)
	case virt.Resumed:
		// Older versions of libvirt announce a shutdown of which they make a reboot.
		p.announced.Store(false)
	case virt.Rebooted:
		p.announced.Store(false)
		p.async(p.checkLayout)
	case virt.Stopped:
		p.post(goneOf(e.Detail))
		return true
	}
	return false
}

// compareDevices begins a new session when the guest is not the one any more
// that the backup's standby was made of: it would not load there. A guest that
// cannot be protected as it is now is not protected any more.
func (p *primary) compareDevices() {
	l, was := p.currentLink(), p.described.Load()
	if l == nil || was == nil {
		return // the next session describes it anew
	}
	ctx, cancel := context.WithTimeout(p.ctx, guestCallTimeout)
	defer cancel()
	now, err := p.dom.XML(ctx)
	if err != nil {
		return // libvirtd is away again, and tells when it is back
	}
	if same, err := virt.SameHardware(now, *was); err == nil && same {
		return
	}
	if live, err := p.dom.LiveXML(ctx); err == nil {
		for _, f := range virt.Judge(live) {
			if f.Level == virt.Fail {
				p.post(ftengine.Unprotect{Reason: fmt.Sprintf("the guest was changed: %s: %s", f.Item, f.Text)})
				return
			}
		}
	}
	l.fail(errors.New("the guest's devices were changed; a new standby is needed"))
}

// whyGone asks, after QEMU ended, whether that was wanted.
func (p *primary) whyGone(events <-chan virt.Event) ftengine.GuestGone {
	timeout := time.NewTimer(crashDetailWait)
	defer timeout.Stop()
	if p.announced.Load() {
		return ftengine.GuestGone{Orderly: true, Reason: "the guest was shut down"}
	}
	for {
		select {
		case e := <-events:
			if e.UUID == p.uuid && e.Kind == virt.Stopped {
				return goneOf(e.Detail)
			}
		case <-timeout.C:
			// libvirtd is down or busy; nobody shuts a guest down through it then.
			return ftengine.GuestGone{Reason: "QEMU ended"}
		case <-p.ctx.Done():
			return ftengine.GuestGone{Reason: "QEMU ended"}
		}
	}
}

func goneOf(detail string) ftengine.GuestGone {
	switch detail {
	case "failed", "crashed", "":
		return ftengine.GuestGone{Reason: "QEMU " + detail}
	}
	return ftengine.GuestGone{Orderly: true, Reason: "the guest was stopped here (" + detail + ")"}
}

// winnerPoll is how often a loser asks whether the winner runs.
const winnerPoll = 100 * time.Millisecond

func (p *primary) watchWinner(gen ftengine.Generation) {
	for p.ctx.Err() == nil && p.generation() < uint64(gen) { // else it has been decided otherwise
		ctx, cancel := context.WithTimeout(p.ctx, askMax(p.arb))
		r, err := p.arb.Inspect(ctx, p.uuid)
		cancel()
		switch {
		case err != nil:
			p.log.Warn("the arbiter does not answer", "err", err)
		case r.Generation > uint64(gen), r.Generation == uint64(gen) && r.Step == arbiter.StepRunning:
			p.post(ftengine.WinnerRunning{})
			return
		case r.Generation == uint64(gen) && r.Step == arbiter.StepWithdrawn:
			p.post(ftengine.WinnerWithdrew{})
			return
		}
		afterOrDone(p.ctx, winnerPoll)
	}
}
