package daemon

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/control"
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
	handed   bool // the backup was told to take over; the machine's goroutine owns it

	connecting atomic.Bool  // a connect goroutine is at work
	epochNs    atomic.Int64 // shortest time between the starts of two captures

	capMu sync.Mutex // held while a checkpoint is taken
	cap   *capture.Session

	linkMu sync.Mutex
	link   *link // the session with the backup, or nil

	stats epochStats
	sync  syncProgress
}

// newPrimary returns the runner of dom, which runs here as process pid. It
// does nothing yet: start does.
func newPrimary(d *Daemon, dom *virt.Domain, pid int, m marker, arb arbiter.Arbiter) (*primary, error) {
	id, err := replica.ParseUUID(m.Protection)
	if err != nil {
		return nil, fmt.Errorf("protection id: %w", err)
	}
	uuid, err := replica.ParseUUID(m.UUID)
	if err != nil {
		return nil, fmt.Errorf("domain: %w", err)
	}
	p := &primary{dom: dom, pid: pid, peerAddr: m.Peer, id: id, domain: uuid}
	p.init(d.ctx, d, m, arb)
	p.epochNs.Store(m.EpochNs)
	p.m = ftengine.NewPrimary(ftengine.Generation(m.Generation), m.armed(), d.limits())
	p.snapshot()
	return p, nil
}

// snapshot publishes what others may look at; the machine's goroutine calls
// it after each event.
func (p *primary) snapshot() {
	p.mu.Lock()
	p.status.Epoch = control.EpochStatus{Captured: uint64(p.m.Captured()), Acked: uint64(p.m.Acked()), Committed: uint64(p.m.Acked())}
	p.mu.Unlock()
	p.setState(control.RolePrimary, p.m.State().String(), p.m.Reason(), uint64(p.m.Generation()))
}

func (p *primary) start() {
	p.async(p.watchGuest)
	go func() {
		p.run(p.m, p.m.Start(), p.do, p.snapshot, p.closeCapture)
		p.d.ended(p.uuid, &p.base)
	}()
}

func (p *primary) do(a ftengine.Action) {
	switch a := a.(type) {
	case ftengine.Persist:
		p.persist(a.Generation, a.Phase, p.m.Reason())
	case ftengine.Connect:
		p.async(p.connect)
	case ftengine.SendSetup:
		p.withLink(func(l *link) { p.async(func() { p.sendSetup(l) }) })
	case ftengine.Capture:
		l := p.currentLink()
		p.async(func() { p.capture(l, a) })
	case ftengine.ReopenCapture:
		p.async(p.closeCapture)
	case ftengine.Release:
		// Frames are not held yet; DESIGN §5 is the next issue.
	case ftengine.SendReleased:
		p.withLink(func(l *link) { l.send(uint64(a.Epoch), &replica.Released{}) })
	case ftengine.Claim:
		p.claim(a)
	case ftengine.Withdraw:
		p.withdraw(a.Generation)
	case ftengine.RetryAfter:
		p.retryAfter(a)
	case ftengine.SendGuestDead:
		p.handed = true
		p.withLink(func(l *link) { l.send(0, &replica.GuestDead{Reason: a.Reason}) })
	case ftengine.SendStandDown:
		p.withLink(func(l *link) { l.send(0, &replica.StandDown{Reason: a.Reason}) })
	case ftengine.PauseGuest:
		p.onGuest("pause", p.dom.Suspend)
	case ftengine.ResumeGuest:
		p.onGuest("resume", p.dom.Resume)
	case ftengine.DestroyGuest:
		p.onGuest("destroy", p.dom.Destroy)
	case ftengine.WatchWinner:
		p.async(func() { p.watchWinner(a.Generation) })
	case ftengine.CloseSession:
		p.dropLink()
	case ftengine.Finish:
		p.finish(a.Reason)
	default:
		panic(fmt.Sprintf("daemon: primary cannot %T", a))
	}
}

// guestCallTimeout bounds one libvirt call on the guest outside the epochs.
const guestCallTimeout = 30 * time.Second

// onGuest runs f in order with the other actions: what follows relies on it.
func (p *primary) onGuest(what string, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), guestCallTimeout)
	defer cancel()
	if err := f(ctx); err != nil {
		p.log.Error("could not "+what+" the guest", "err", err)
		p.warn("could not " + what + " the guest: " + err.Error())
		return
	}
	p.log.Info("guest", "did", what)
}

func (p *primary) finish(reason string) {
	p.dropLink()
	phase := "ended"
	if p.handed {
		phase = "handed-over"
	}
	p.persist(p.m.Generation(), phase, reason)
	p.log.Info("protection ended", "reason", reason)
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
	gone := make(chan error, 1)
	p.async(func() { gone <- waitExit(p.ctx, p.pid) })
	orderly := "" // what libvirt announced before the end
	for {
		select {
		case <-p.ctx.Done():
			return
		case e := <-events:
			if e.UUID != p.uuid {
				continue
			}
			if e.Kind == virt.Shutdown {
				orderly = "the guest was shut down"
			}
			if e.Kind == virt.Stopped {
				p.post(goneOf(e.Detail))
				return
			}
		case err := <-gone:
			if err != nil {
				if p.ctx.Err() == nil {
					p.log.Error("QEMU cannot be watched", "err", err)
				}
				gone = nil
				continue
			}
			p.post(p.whyGone(events, orderly))
			return
		}
	}
}

// whyGone asks, after QEMU ended, whether that was wanted.
func (p *primary) whyGone(events <-chan virt.Event, orderly string) ftengine.GuestGone {
	timeout := time.NewTimer(crashDetailWait)
	defer timeout.Stop()
	if orderly != "" {
		return ftengine.GuestGone{Orderly: true, Reason: orderly}
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
	for p.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(p.ctx, claimTimeout)
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
