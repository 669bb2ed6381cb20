package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// takeBackMax bounds taking the right to a guest back, the arbiter being slow.
const takeBackMax = 30 * time.Second

// takeBack lets our copy go on, which was paused because the backup won the right to
// the guest: a person says that the backup was lost before it used the right, and
// will not. The right is taken from it first. An arbiter keeps a record of who runs,
// and of the backup's entry there and our correction only one succeeds: if the
// person is wrong, no two copies run.
func (p *primary) takeBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, takeBackMax)
	defer cancel()
	r, err := p.arb.Inspect(ctx, p.uuid)
	if err != nil {
		return fmt.Errorf("the arbiter does not answer, and may know that the backup runs the guest: %w", err)
	}
	if r.Step == arbiter.StepClaimed && r.Host != p.d.cfg.Host {
		revoker, ok := p.arb.(arbiter.Revoker)
		if !ok {
			return fmt.Errorf("%s holds the right to run the guest, and the arbiter %q has no record of it that could be corrected", r.Host, p.arb.Name())
		}
		if err := revoker.Revoke(ctx, arbiter.Claim{Domain: p.uuid, Generation: r.Generation, Host: p.d.cfg.Host}); err != nil {
			return fmt.Errorf("the right cannot be taken from %s: %w", r.Host, err)
		}
		p.log.Warn("the right to run the guest was taken from a host that had not used it", "host", r.Host, "generation", r.Generation)
	}
	return p.wishBy(ctx, ftengine.OperatorActivate{Force: true}, ftengine.WinnerWithdrew{})
}
