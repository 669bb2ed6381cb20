package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/pace"
)

// pacer is when the next epoch begins, and how hard the guest is slowed down. Safe
// for concurrent use.
type pacer struct {
	mu sync.Mutex
	c  *pace.Controller
	of *link // whose epochs count; what an older one still brings does not
}

// newPacer follows p, within what the configuration says.
func newPacer(e config.Epoch, p control.Pacing) *pacer { return &pacer{c: pace.New(paceLimits(e, p))} }

func paceLimits(e config.Epoch, p control.Pacing) pace.Limits {
	return pace.Limits{Min: time.Duration(p.MinNs), Idle: time.Duration(p.IdleNs), PauseShareMax: p.PauseShareMax,
		AckMax: e.AckMax, ThrottleMax: e.ThrottleMax, HoldMax: e.PauseMax / 2}
}

func (p *pacer) set(l pace.Limits) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.c.SetLimits(l)
}

func (p *pacer) captured(l *link, at time.Time, e pace.Epoch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l == p.of {
		p.c.Captured(at, e)
	}
}

// shipped tells that the next epoch was handed to the kernel, which took so long.
func (p *pacer) shipped(l *link, at time.Time, bytes int, busy time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l == p.of {
		p.c.Shipped(at, bytes, busy)
	}
}

// acked tells that the backup has the next epoch, so long after its pause began.
func (p *pacer) acked(l *link, at time.Time, lag time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l == p.of {
		p.c.Acked(at, lag)
	}
}

// newSession forgets what was on its way.
func (p *pacer) newSession(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of = l
	p.c.NewSession()
}

// begin tells that a checkpoint begins.
func (p *pacer) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.c.Begin(time.Now())
}

func (p *pacer) next() (earliest, idle time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.c.Next(time.Now())
}

// linkBound tells that live passes would be in the way of what counts.
func (p *pacer) linkBound() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.c.LinkBound(time.Now())
}

func (p *pacer) hold() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.c.Hold(time.Now())
}

func (p *pacer) report() control.ThrottleStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.c.Report()
	return control.ThrottleStatus{LinkBps: r.LinkBps, DirtyBps: r.DirtyBps, Share: r.Throttle, Reason: r.Reason}
}

// pacingOf returns what the configuration says of how often, and for how long,
// checkpoints may stop a guest.
func pacingOf(c config.Config) control.Pacing {
	return control.Pacing{MinNs: c.Epoch.Min.Nanoseconds(), IdleNs: c.Epoch.Idle.Nanoseconds(),
		PauseShareMax: c.Epoch.PauseShareMax, HeldMaxNs: c.Output.HeldMax.Nanoseconds()}
}

// checkPacing refuses values that the configuration would refuse, too.
func (d *Daemon) checkPacing(p control.Pacing) error {
	c := d.cfg
	c.Epoch.Min, c.Epoch.Idle, c.Epoch.PauseShareMax = time.Duration(p.MinNs), time.Duration(p.IdleNs), p.PauseShareMax
	c.Output.HeldMax = time.Duration(p.HeldMaxNs)
	if err := c.Validate(); err != nil {
		return control.Errorf(control.CodeInvalid, "", "%w", err)
	}
	return nil
}

// Set implements control.Service.
func (d *Daemon) Set(ctx context.Context, req control.SetRequest) (control.Pacing, error) {
	p, b := d.find(req.Domain)
	switch {
	case p != nil:
		return p.set(req.PacingChange)
	case b != nil && b.active():
		return control.Pacing{}, control.Errorf(control.CodeConflict, "protect it first", "%s runs here, and is not protected now", b.name)
	case b != nil:
		return control.Pacing{}, control.Errorf(control.CodeConflict, "run virt-ft set on host "+b.peerName(), "this host only stands by for %s", b.name)
	}
	return control.Pacing{}, d.notProtected(ctx, req.Domain)
}

// set changes the pacing from the next epoch on, and for a restart of this
// daemon too.
func (p *primary) set(c control.PacingChange) (control.Pacing, error) {
	p.setMu.Lock()
	defer p.setMu.Unlock()
	was := *p.pacing.Load()
	now := c.Apply(was)
	if err := p.d.checkPacing(now); err != nil || now == was {
		return was, err
	}
	if err := p.keep(func(m *marker.Marker) { m.Pacing = marker.Pacing(now) }); err != nil {
		return was, control.Errorf(control.CodeInternal, "is there space left?", "the change could not be kept: %w", err)
	}
	p.pacing.Store(&now)
	p.pacer.set(paceLimits(p.d.cfg.Epoch, now))
	p.log.Info("pacing", "min", time.Duration(now.MinNs), "idle", time.Duration(now.IdleNs), "pauseShareMax", now.PauseShareMax, "heldMax", time.Duration(now.HeldMaxNs))
	return now, nil
}
