package daemon

import (
	"context"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// Failback implements control.Service.
func (d *Daemon) Failback(ctx context.Context, domain string) error {
	p, b := d.find(domain)
	switch {
	case p != nil:
		// Nobody could say whose the guest is if something went wrong on the way.
		asking, cancel := context.WithTimeout(ctx, askMax(p.arb))
		_, err := p.arb.Inspect(asking, p.uuid)
		cancel()
		if err != nil {
			return control.Errorf(control.CodeUnavailable, "", "%s is not moved while the arbiter does not answer: %w", p.name, err)
		}
		if err := p.wish(ctx, ftengine.HandOver{Reason: "moved to the backup by the operator"}); err != nil {
			return control.Errorf(control.CodeConflict, "", "%s was not moved: %w", p.name, err)
		}
		return nil
	case b != nil:
		return control.Errorf(control.CodeConflict, "run virt-ft failback on host "+b.peerName(), "this host stands by for %s", b.name)
	}
	return d.notProtected(ctx, domain)
}
