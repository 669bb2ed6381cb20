package daemon

import (
	"context"

	"github.com/virt-ft/virt-ft/internal/hookd"
)

// hookHandler answers libvirt's hook. It never asks libvirt: that waits for the hook.
type hookHandler struct{ d *Daemon }

// MayStart implements hookd.Handler.
func (h hookHandler) MayStart(ctx context.Context, c hookd.Call) hookd.Answer {
	if err := h.d.mayStart(ctx, c.UUID, c.Name); err != nil {
		h.d.log.Warn("libvirt is told not to start a domain", "domain", c.Name, "because", err)
		return hookd.Answer{Reason: err.Error()}
	}
	return hookd.Answer{Allow: true}
}

// Told implements hookd.Handler. QEMU's end is seen by its pidfd before libvirt
// comes to its hook, so this is for people.
func (h hookHandler) Told(c hookd.Call) {
	h.d.log.Debug("libvirt's hook", "domain", c.Name, "op", c.Op, "subop", c.Subop, "extra", c.Extra)
}
