package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// migrationBlocker is what an operator reads of a guest that may not leave.
const migrationBlocker = "virt-ft-protected"

const operatorSettings = "reprotect = false\n"

// TestOperator does to a protected guest, and to its standby, what people do to
// domains: what can be followed is followed, and what cannot is refused.
func TestOperator(t *testing.T) {
	p := newPair(t, operatorSettings)
	g := p.guest(small(lab.GuestOptions{Machine: "pc"})) // where devices are plugged without preparing for it
	if long() {
		p.story("reset and reboot", func(p *pair) { operatorReboots(p, g) })
		p.story("plug and unplug", func(p *pair) { operatorPlugs(p, g) })
	}
	for _, s := range []struct {
		name string
		tell func(*pair, *lab.Guest)
	}{
		{"descriptors reused", descriptorsReused}, // first: the guest was never elsewhere
		{"rehearsal left behind", operatorFindsRehearsal},
		{"standby", operatorAtStandby},
		{"move", operatorMoves},
		{"shutdown", operatorShutsDown},
	} {
		p.story(s.name, func(p *pair) { s.tell(p, g) })
	}
}

// virsh runs virsh on h.
func (p *pair) virsh(h *lab.Host, args ...string) string {
	p.t.Helper()
	out, err := h.Virsh(p.step(), args...)
	p.must(err)
	return out
}

// refused runs virsh on h, which has to fail with these words.
func (p *pair) refused(words string, h *lab.Host, args ...string) {
	p.t.Helper()
	switch out, err := h.Virsh(p.step(), args...); {
	case err == nil:
		p.t.Fatalf("virsh %v succeeds: %s", args, out)
	case !strings.Contains(err.Error(), words):
		p.t.Errorf("virsh %v is refused without %q: %v", args, words, err)
	}
}

// bootsAnew waits for a tick from h of another boot than was.
func (p *pair) bootsAnew(h *lab.Host, was guestapi.BootID) guestapi.BootID {
	p.t.Helper()
	o, err := p.out.WaitTick(p.step(), func(o lab.Observation) bool { return o.Host == h.Name && o.BootID != was })
	if err != nil {
		p.t.Fatalf("the guest does not boot again: %v", err)
	}
	return o.BootID
}

// goesOn waits until B commits what A captures from now on.
func (p *pair) goesOn(domain string) {
	p.t.Helper()
	p.state(p.A, domain, "protected")
	p.epochs(domain, 3)
}

// operatorReboots restarts the guest from outside and from inside. QEMU stays,
// and so does the protection.
func operatorReboots(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	first := p.tickFrom(p.A).BootID
	p.virsh(p.A, "reset", g.Name)
	second := p.bootsAnew(p.A, first)
	p.goesOn(g.Name)
	_, err := p.Command(p.step(), "reboot")
	p.must(err)
	p.bootsAnew(p.A, second)
	p.goesOn(g.Name)
	p.unprotect(g.Name)
}

// operatorPlugs gives the guest a network card and a disk, and takes the card
// away: each time a standby of that shape is made.
func operatorPlugs(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	p.virsh(p.A, "attach-interface", g.Name, "bridge", "br0", "--model", "virtio", "--mac", "52:54:00:f7:00:0d", "--live")
	p.standbyHas(g.Name, "52:54:00:f7:00:0d", true, "domiflist")
	p.plug(g, "vdb")
	p.standbyHas(g.Name, "vdb", true, "domblklist")
	p.refused("block", p.A, "detach-disk", g.Name, "vdb", "--live") // it is being mirrored
	p.goesOn(g.Name)
	p.virsh(p.A, "detach-interface", g.Name, "bridge", "--mac", "52:54:00:f7:00:0d", "--live")
	p.standbyHas(g.Name, "52:54:00:f7:00:0d", false, "domiflist")
	p.unprotect(g.Name)
	p.unplug(g, "vdb")
}

// plug gives the guest a small disk.
func (p *pair) plug(g *lab.Guest, target string) {
	p.t.Helper()
	image := hostFiles + target + ".raw"
	_, err := p.A.Run(p.step(), "truncate", "--size", "4M", image)
	p.must(err)
	p.virsh(p.A, "attach-disk", g.Name, image, target, "--targetbus", "virtio", "--subdriver", "raw", "--live")
}

// unplug takes a disk away, which the guest has to agree to.
func (p *pair) unplug(g *lab.Guest, target string) {
	p.t.Helper()
	p.virsh(p.A, "detach-disk", g.Name, target, "--live")
	p.eventually("the disk stays", func() error {
		if list := p.virsh(p.A, "domblklist", g.Name); strings.Contains(list, target) {
			return errors.New(list)
		}
		return nil
	})
}

// standbyHas waits until A's guest is protected by a standby of which a virsh
// command lists a device, or does not.
func (p *pair) standbyHas(domain, device string, want bool, list string) {
	p.t.Helper()
	p.eventually("the standby does not follow", func() error {
		out, err := p.B.Virsh(p.ctx, list, domain)
		if err == nil && strings.Contains(out, device) != want {
			err = fmt.Errorf("it has %s", out)
		}
		return err
	})
	p.goesOn(domain)
}

// operatorFindsRehearsal protects a guest to a host on which the scratch domain of an
// earlier rehearsal was left. That one goes, and the standby stays.
func operatorFindsRehearsal(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	name := g.Name + "-virt-ft-rehearsal"
	xml := p.virsh(p.B, "dumpxml", g.Name)
	uuid := strings.TrimSpace(p.virsh(p.B, "domuuid", g.Name))
	for _, change := range [][2]string{{"<name>" + g.Name + "<", "<name>" + name + "<"}, {uuid, "22817b4e-6b08-4ffd-987c-e00a8e1cb21e"}} {
		if !strings.Contains(xml, change[0]) {
			p.t.Fatalf("the standby has no %s:\n%s", change[0], xml)
		}
		xml = strings.Replace(xml, change[0], change[1], 1)
	}
	p.unprotect(g.Name)
	path := filepath.Join(p.t.TempDir(), "left.xml")
	p.must(os.WriteFile(path, []byte(xml), 0o600))
	p.virsh(p.B, "create", path, "--paused")
	p.protect(p.A, g.Name)
	if names := p.virsh(p.B, "list", "--name"); strings.Contains(names, name) || !strings.Contains(names, g.Name) {
		p.t.Errorf("on %s there are %q", p.B.Name, names)
	}
	p.goesOn(g.Name)
	p.unprotect(g.Name)
}

// operatorAtStandby takes the standby for a domain like others. It is made anew,
// it does not run before it is to, and then it does, with its disk, which can be
// unplugged from a guest that is not protected.
func operatorAtStandby(p *pair, g *lab.Guest) {
	p.plug(g, "vdb")
	p.protect(p.A, g.Name)
	born := p.tickFrom(p.A).BootID
	first, err := p.B.QEMU(g.Name)
	p.must(err)
	p.virsh(p.B, "destroy", g.Name)
	p.eventually("there is no other standby", func() error {
		pid, err := p.B.QEMU(g.Name)
		if err == nil && pid == first {
			err = errors.New("the first one's QEMU runs")
		}
		return err
	})
	p.goesOn(g.Name)
	p.virsh(p.B, "resume", g.Name)
	p.goesOn(g.Name)
	if state := strings.TrimSpace(p.virsh(p.B, "domstate", g.Name)); state != "paused" {
		p.t.Errorf("the standby is %s", state)
	}
	p.tickFrom(p.A)
	p.killQEMU(p.A, g.Name)
	p.state(p.B, g.Name, "active")
	if now := p.verified(p.B); now.BootID != born {
		p.t.Errorf("it is another guest: boot %v became %v", born, now.BootID)
	}
	p.turn()
	p.unplug(g, "vdb")
}

// hostFiles is a directory of a host of the lab, gone with it.
const hostFiles = "/var/lib/libvirt/images/"

// operatorMoves tries to move the guest, or its memory, away: not while it is
// protected, and as ever afterwards.
func operatorMoves(p *pair, g *lab.Guest) {
	xml := hostFiles + g.Name + ".xml"
	_, err := p.A.Run(p.step(), "sh", "-c", "virsh -q dumpxml "+g.Name+" > "+xml)
	p.must(err)
	p.virsh(p.A, "define", xml)
	p.protect(p.A, g.Name)
	pid, err := p.A.QEMU(g.Name)
	p.must(err)
	if err := p.migrate(g.Name); err == nil || !strings.Contains(err.Error(), migrationBlocker) {
		p.t.Fatalf("migration of a protected guest: %v", err)
	}
	p.refused(migrationBlocker, p.A, "managedsave", g.Name)
	p.refused(migrationBlocker, p.A, "save", g.Name, hostFiles+g.Name+".save")
	p.refused(migrationBlocker, p.A, "dump", g.Name, hostFiles+g.Name+".core", "--live")
	p.virsh(p.A, "dump", g.Name, hostFiles+g.Name+".core", "--memory-only", "--live")
	p.virsh(p.A, "undefine", g.Name)
	p.goesOn(g.Name)

	p.unprotect(g.Name)
	if files := openFiles(p.t, pid); strings.Contains(files, migrationBlocker) {
		p.t.Errorf("QEMU still holds\n%s", files)
	}
	p.must(p.migrate(g.Name))
	p.turn()
	p.tickFrom(p.A)
}

// migrate has virsh, which sees both libvirtds, move the guest from A to B.
func (p *pair) migrate(domain string) error {
	p.t.Helper()
	uri := func(h *lab.Host) string {
		socket, err := h.Root("/run/libvirt/libvirt-sock")
		p.must(err)
		return "qemu+unix:///system?socket=" + socket
	}
	out, err := exec.CommandContext(p.step(), "virsh", "-q", "-c", uri(p.A), "migrate", "--live", domain, uri(p.B)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("virsh migrate: %w: %s", err, out)
	}
	return nil
}

// operatorShutsDown lets the guest turn its power off. That is no failure.
func operatorShutsDown(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	p.tickFrom(p.A)
	_, err := p.Command(p.step(), "poweroff")
	p.must(err)
	for _, h := range p.Hosts() {
		p.eventually("a domain is left on "+h.Name, func() error {
			if out, err := h.Virsh(p.ctx, "list", "--all", "--name"); err != nil || strings.TrimSpace(out) != "" {
				return fmt.Errorf("%q, %v", strings.TrimSpace(out), err)
			}
			return nil
		})
	}
	p.eventually("status does not say what became of it", func() error {
		if out, err := p.A.Ctl(p.ctx, "status", g.Name); err == nil || !strings.Contains(err.Error(), "the guest was shut down") {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
}
