package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/cpulayout"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/vmstate"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
)

const (
	// clockLookEvery is how often device state is looked into for its clocks.
	clockLookEvery = time.Second
	// layoutMax bounds learning how a QEMU binary lays out a virtual CPU's state.
	layoutMax   = 30 * time.Second
	layoutRetry = 10 * time.Minute
	// clockRetryMax is the longest pause between two tries to begin.
	clockRetryMax = time.Minute
)

// guestClock keeps the clock of a guest on this host true, where there is one to
// be kept, and knows what becomes of the others. Safe for concurrent use, but
// Paused, Resuming and Resumed, of which capture says who calls them.
type guestClock struct {
	log    *slog.Logger
	pid    int
	bound  time.Duration                   // above the longest pause
	keeper atomic.Pointer[kvmclock.Keeper] // nil: nothing to be kept, or it could not be begun

	looked atomic.Int64 // when device state was last looked at, Unix ns

	openMu sync.Mutex // held while it is begun, which may take seconds
	tryAt  time.Time  // not before, after a failure; of openMu's holder
	failed int        // in a row

	mu       sync.Mutex // never held for long: checkpoints ask
	closed   bool
	opened   bool   // it is known whether there is something to be kept
	kvm      bool   // the guest runs under KVM
	why      string // no keeper although it does
	page     bool   // a virtual CPU of it has a kvmclock page, or nobody knows
	emulated emulatedClock

	layoutAt time.Time // when learning the layout may be tried again, after a failure
}

// emulatedClock is QEMU_CLOCK_VIRTUAL, by which QEMU's own timers go: HPET, ACPI
// timer and periodic RTC, and under TCG the TSC too. It stands still in pauses.
type emulatedClock struct {
	fromNs  int64 // when it was first looked at
	from    time.Time
	driftNs int64 // against the host since then; negative: it is behind
}

func (e *emulatedClock) at(ns int64, now time.Time) {
	if e.from.IsZero() {
		e.fromNs, e.from = ns, now
	}
	e.driftNs = ns - e.fromNs - now.Sub(e.from).Nanoseconds()
}

// open begins to keep the clock, if that was not begun. After a failure it tries
// again later and later.
func (c *guestClock) open(ctx context.Context) {
	c.openMu.Lock()
	defer c.openMu.Unlock()
	if !c.wanted() || time.Now().Before(c.tryAt) {
		return
	}
	k, err := kvmclock.Open(ctx, c.pid, kvmclock.Options{Logger: c.log, Bound: c.bound})
	c.mu.Lock()
	was, closed := c.why, c.closed
	c.opened, c.kvm, c.why = true, !errors.Is(err, kvmclock.ErrNoKVM), ""
	switch {
	case err == nil && !closed:
		c.page = true // until it is looked at
		c.keeper.Store(k)
	case err != nil && c.kvm:
		c.why = err.Error()
	}
	why := c.why
	c.mu.Unlock()
	switch {
	case err == nil && closed:
		_ = k.Close() // a process of ours that does nothing
	case err == nil:
		c.failed = 0
	case why != "":
		c.tryAt = time.Now().Add(min(clockLookEvery<<min(c.failed, 6), clockRetryMax))
		if c.failed++; why != was {
			c.log.Warn("the guest's clock will lose its pauses", "err", err)
		}
	}
}

// wanted tells whether a keeper is missing.
func (c *guestClock) wanted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.closed && c.keeper.Load() == nil && (!c.opened || c.kvm)
}

// close leaves the guest's clock to QEMU.
func (c *guestClock) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if k := c.keeper.Swap(nil); k != nil {
		if err := k.Close(); err != nil {
			c.log.Warn("the tracer of the guest's clock did not end cleanly", "err", err)
		}
	}
}

// Paused, Resuming and Resumed implement capture.Clock.
func (c *guestClock) Paused() {
	if k := c.keeper.Load(); k != nil {
		k.Paused()
	}
}

func (c *guestClock) Resuming() {
	if k := c.keeper.Load(); k != nil {
		k.Resuming()
	}
}

func (c *guestClock) Resumed() {
	if k := c.keeper.Load(); k != nil {
		k.Resumed()
	}
}

// reading is what the backup is told with an epoch whose pause began at pausedAt.
func (c *guestClock) reading(pausedAt time.Time) (g replica.GuestClock) {
	if now := time.Now(); !pausedAt.IsZero() {
		g.PausedNs = uint64(now.Add(-now.Sub(pausedAt)).UnixNano())
	}
	if k := c.keeper.Load(); k != nil {
		if r, ok := k.Reading(); ok {
			g.ClockNs, g.RealtimeNs = r.ClockNs, r.RealtimeNs
		}
	}
	return g
}

// lastErrNs is what the clock gained in the last epoch; 0 if nobody keeps it.
func (c *guestClock) lastErrNs() int64 {
	if k := c.keeper.Load(); k != nil {
		return k.Report().LastErrNs
	}
	return 0
}

// due tells whether device state should be looked at, and counts as having done so.
func (c *guestClock) due(now time.Time) bool {
	was := c.looked.Load()
	return now.UnixNano()-was >= clockLookEvery.Nanoseconds() && c.looked.CompareAndSwap(was, now.UnixNano())
}

// look notes what device state of a pause that began at pausedAt says of clocks.
func (c *guestClock) look(device []byte, pausedAt time.Time, layout func() (vmstate.CPULayout, error)) {
	ds, err := vmstate.ParseDevices(device)
	if err != nil {
		c.log.Warn("device state is not understood; nothing is known of the guest's clocks", "err", err)
		return
	}
	_, kvm := ds.KVMClock(device)
	page := kvm
	if kvm {
		if l, ok := c.layout(layout); ok {
			cpus, err := ds.CPUClocks(device, l)
			page = err != nil || slices.ContainsFunc(cpus, func(c vmstate.CPUClock) bool { return c.KVMClockOn })
		}
	}
	ns, any := ds.VirtualClock(device)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.page = page
	if any {
		c.emulated.at(ns, pausedAt)
	}
}

// layout asks, unless that was in vain a short while ago: it starts a QEMU.
func (c *guestClock) layout(ask func() (vmstate.CPULayout, error)) (vmstate.CPULayout, bool) {
	c.mu.Lock()
	ok := time.Now().After(c.layoutAt)
	c.mu.Unlock()
	if !ok {
		return vmstate.CPULayout{}, false
	}
	l, err := ask()
	if err != nil {
		c.log.Warn("it is not known whether the guest uses kvmclock", "err", err)
		c.mu.Lock()
		c.layoutAt = time.Now().Add(layoutRetry)
		c.mu.Unlock()
	}
	return l, err == nil
}

// report is what status shows.
func (c *guestClock) report() (s control.ClockStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.EmulatedDriftUs = micros(c.emulated.driftNs)
	k := c.keeper.Load()
	switch {
	case !c.opened:
	case !c.kvm:
		s.State = control.ClockTCG
	case k == nil:
		s.State, s.Why = control.ClockUncorrected, c.why
	case !c.page:
		s.State = control.ClockTSC
	default:
		s.State = control.ClockCorrected
	}
	if k == nil {
		return s
	}
	r := k.Report()
	s.Kept, s.Restored, s.Missed, s.Accepted, s.LastMiss = r.Kept, r.Restored, r.Missed, r.Accepted, r.LastMiss
	s.ErrUs, s.MaxErrUs, s.DriftUs, s.DebtUs, s.AcceptedUs = micros(r.LastErrNs), micros(r.MaxErrNs), micros(r.DriftNs), micros(r.DebtNs), micros(r.AcceptedNs)
	return s
}

func micros(ns int64) float64 { return float64(ns) / 1e3 }

// lookAtClock has the device state of a checkpoint looked at now and then.
func (p *primary) lookAtClock(device []byte) {
	pausedAt := p.pausedAt()
	if p.clock.due(pausedAt) {
		p.async(func() {
			p.clock.open(p.ctx) // a tracer that could not begin on a busy host may now
			p.clock.look(device, pausedAt, p.cpuLayout)
		})
	}
}

// cpuLayout is how the guest's QEMU lays out a virtual CPU's state.
func (p *primary) cpuLayout() (vmstate.CPULayout, error) {
	xml := p.described.Load()
	if xml == nil {
		return vmstate.CPULayout{}, errNoCapture
	}
	return layoutOf(p.ctx, &p.d.layouts, p.pid, *xml, layoutMax)
}

// layoutOf learns from the binary that runs as process pid: a path may lead to
// another one since the last upgrade, and what a domain's XML names is another's word.
func layoutOf(ctx context.Context, known *cpulayout.Cache, pid int, domainXML string, within time.Duration) (vmstate.CPULayout, error) {
	s, err := shapeOf(domainXML)
	if err != nil {
		return vmstate.CPULayout{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return known.Layout(ctx, fmt.Sprintf("/proc/%d/exe", pid), s.machine)
}

// resumeGuest resumes the guest after a pause that this daemon made, and which its
// clock is not to feel. Is a checkpoint under way, that has the clock in hand.
func (p *primary) resumeGuest(ctx context.Context) error {
	if !p.capMu.TryLock() {
		return p.dom.Resume(ctx)
	}
	defer p.capMu.Unlock()
	p.clock.Paused()
	p.clock.Resuming()
	defer p.clock.Resumed()
	return p.dom.Resume(ctx)
}
