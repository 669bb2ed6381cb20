package daemon

import (
	"context"
	"time"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
)

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
	if err := p.keep(func(m *marker) { m.Pacing = now }); err != nil {
		return was, control.Errorf(control.CodeInternal, "is there space left?", "the change could not be kept: %w", err)
	}
	p.pacing.Store(&now)
	p.log.Info("pacing", "min", time.Duration(now.MinNs), "idle", time.Duration(now.IdleNs), "pauseShareMax", now.PauseShareMax, "heldMax", time.Duration(now.HeldMaxNs))
	return now, nil
}
