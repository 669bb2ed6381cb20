package e2e

import (
	"github.com/virt-ft/virt-ft/internal/lab"
)

// again has a guest that moved, in order or after the loss of a host, protected again
// by itself.
const again = "reprotect = true\n" + calm

// movesBack runs virt-ft failback and waits until the guest is protected from
// where it went to.
func (w *workload) movesBack() {
	w.t.Helper()
	from := w.home
	_, err := from.Ctl(w.step(), "failback", w.g.Name)
	w.must(err)
	w.home = w.Peer(from)
	w.answered(w.c)
	if _, err := from.QEMU(w.g.Name); err == nil {
		// The standby may be there already, of the protection that begins anew.
		w.state(from, w.g.Name, "syncing", "standby")
	}
	w.state(w.home, w.g.Name, "protected")
}

// failback moves the guest to the other host, in order.
func failback(w *workload) {
	w.protected() // with a copy that is made now
	if d := w.report(w.home, w.g.Name).Disks; len(d) != 1 || d[0].Name != "vda" || d[0].SizeBytes != 64<<20 || d[0].WrittenBytes < 64<<20 {
		w.t.Errorf("status says of the guest's disks: %+v", d)
	}
	w.movesBack()
	w.sound()
	if _, err := w.Peer(w.home).Ctl(w.step(), "failback", w.g.Name); err == nil {
		w.t.Error("the backup moved a guest that does not run there")
	}
	w.answered(w.c)
}

func (w *workload) unprotectHome() {
	w.t.Helper()
	_, err := w.home.Ctl(w.step(), "unprotect", w.g.Name)
	w.must(err)
}

// comesBackAfterLoss cuts the power of the guest's host. When that boots, the guest
// is protected to it by itself, and what its disk there has already is not sent.
func comesBackAfterLoss(w *workload) {
	w.protected()
	lost := w.home
	lost.PowerOff()
	w.home = w.Peer(lost)
	w.answered(w.c)
	w.state(w.home, w.g.Name, "active")
	w.powerOn(lost)
	w.state(w.home, w.g.Name, "protected")
	if d := w.report(w.home, w.g.Name).Disks; len(d) != 1 || d[0].SentBytes >= d[0].SizeBytes {
		w.t.Errorf("all of the disk was sent again: %+v", d)
	}
	w.movesBack()
	w.sameDisks()
	w.unprotectHome()
	if _, err := w.home.Ctl(w.step(), "failback", w.g.Name); err == nil {
		w.t.Error("a guest without a backup was moved")
	}
	w.answered(w.c)
}

// lastWords ends the guest in order: the copy of its disk has all that it ever
// wrote, and nothing goes on from it.
func lastWords(w *workload) {
	w.protected()
	w.answered(w.c)
	backup := w.Peer(w.home)
	here, there := w.image(w.home, 0), w.image(backup, 0)
	w.c.Stop()
	_, err := w.home.Virsh(w.step(), "destroy", w.g.Name)
	w.must(err)
	for _, h := range []*lab.Host{w.home, backup} {
		w.eventually("the protection does not end on "+h.Name, func() error {
			if _, err := h.Protections(w.ctx, w.g.Name); err == nil {
				return errStillThere
			}
			return nil
		})
	}
	if err := lab.CompareImages(w.step(), here, there); err != nil {
		w.t.Errorf("the copy lacks what was written last: %v", err)
	}
	w.recordsIn(there)
	if _, err := backup.QEMU(w.g.Name); err == nil {
		w.t.Error("a guest that was ended on purpose goes on")
	}
}
