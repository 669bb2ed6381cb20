package daemon

import (
	"context"
	"fmt"

	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// The methods of this file run on the work goroutine.

// openGate makes ready what an activation needs: a way to send, through the
// standby's own interfaces, what its guest is going to have sent.
func (b *backup) openGate(st *virt.Standby) error {
	b.closeGate()
	ctx, cancel := context.WithTimeout(b.ctx, guestCallTimeout)
	defer cancel()
	live, err := st.LiveXML(ctx)
	if err != nil {
		return err
	}
	nics, err := nicsOf(live)
	if err != nil {
		return err
	}
	want, err := nicsOf(b.setup.LiveXML)
	if err != nil {
		return err
	}
	if len(nics) != len(want) {
		return fmt.Errorf("the standby has %d network interfaces, the guest %d", len(nics), len(want))
	}
	if len(nics) == 0 {
		return nil
	}
	b.gate, err = netgate.Open(nics, netgate.Options{Mute: true, Log: b.log})
	return err
}

func (b *backup) closeGate() {
	if b.gate == nil {
		return
	}
	if err := b.gate.Close(false); err != nil {
		b.log.Warn("the standby's gate does not close cleanly", "err", err)
	}
	b.gate = nil
}

// performOutputs sends what the guest had sent by the committed checkpoint and
// the primary is not known to have sent: the world hears it twice rather than
// never.
func (b *backup) performOutputs(from, to ftengine.Epoch) {
	frames := framesOf(b.kept.unreleased(from, to))
	if len(frames) == 0 {
		return
	}
	if b.gate == nil {
		b.log.Error("outputs cannot be performed: the standby has no gate", "frames", len(frames))
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, b.d.cfg.Output.OpenWithin)
	defer cancel()
	err := b.gate.Pass(ctx, frames)
	b.log.Info("outputs of the primary performed", "from", from, "to", to, "frames", len(frames), "err", err)
	if err != nil {
		b.warn("some of what the guest had sent before the failover was not sent again: " + err.Error())
	}
}

// replayInputs gives the guest what had arrived for it since its checkpoint.
func (b *backup) replayInputs() {
	frames := framesOf(b.kept.after(ftengine.Epoch(b.applied.Load())))
	b.kept.drop(0)
	if b.gate == nil {
		return
	}
	b.gate.Unmute()
	if len(frames) == 0 {
		return
	}
	err := b.gate.Inject(frames)
	b.log.Info("inputs since the checkpoint replayed", "frames", len(frames), "err", err)
}

// announce lets switches learn where the guest is now. QEMU repeats it.
func (b *backup) announce(st *virt.Standby) {
	ctx, cancel := context.WithTimeout(b.ctx, guestCallTimeout)
	defer cancel()
	if err := st.Announce(ctx); err != nil {
		b.log.Warn("the guest could not be announced; switches learn where it is when it speaks", "err", err)
	}
}
