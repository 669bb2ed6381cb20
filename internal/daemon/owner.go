package daemon

import (
	"fmt"

	"github.com/virt-ft/virt-ft/internal/replica"
)

// backupsMax bounds the guests that this host stands by for, whatever their hosts
// ask for. Each has a runner and a marker before its memory is counted.
const backupsMax = 256

// mayBring decides whether the host that a session would come from may bring the
// guest it is about. A host that may connect is trusted with its own guests only:
// what is here of a guest is from the host that brought it, and stays that host's
// until a person gives it up. So another one can neither replace a standby, nor end
// its session, nor have it follow a guest that was never there. b is what is
// here of the guest, or nil.
func (d *Daemon) mayBring(b *backup, hello *replica.Hello) *replica.Refuse {
	if b == nil {
		d.mu.Lock()
		n := len(d.backups)
		d.mu.Unlock()
		if n >= backupsMax {
			return &replica.Refuse{Code: replica.CodePolicy, Reason: fmt.Sprintf("this host stands by for %d guests, which is all it takes", n),
				Remedy: "protect the guest to another host"}
		}
		return nil
	}
	if b.idle() { // waits for a primary, and holds nothing
		return nil
	}
	if owner := b.peerName(); owner != "" && owner != hello.Host {
		return &replica.Refuse{Code: replica.CodePolicy, Reason: fmt.Sprintf("what this host has of %s is from %s, not from %s", b.name, owner, hello.Host),
			Remedy: "if the guest moved, run virt-ft unprotect " + b.name + " on the backup first"}
	}
	return nil
}

// warnOfTransport says at the start what is weaker than it could be.
func (d *Daemon) warnOfTransport() {
	t := d.transport()
	switch {
	case t.Mode == replica.ModePlain:
		d.log.Warn("transport.mode is plain: whoever reaches the port can pretend to be a host, take guests over, and read their memory; use it in a laboratory only", "listen", d.cfg.Listen)
	case len(t.Allowed()) == 0:
		d.log.Warn("no host may connect: name the others in [peers], or in transport.allowed_names")
	case t.Pages == replica.ModePlain:
		d.log.Warn("transport.pages is plain: the memory of guests can be read on its way to hosts that want it so, too")
	}
}
