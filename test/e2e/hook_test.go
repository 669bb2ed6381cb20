package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// otherXML is a domain that has nothing to do with us.
const otherXML = `<domain type='qemu'>
  <name>other</name>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
</domain>
`

// TestHook: with the hook in place, libvirt does not start a guest here that
// runs, or may run, on the other host, whether somebody asks for it or a host
// boots; and everything else is as without it.
func TestHook(t *testing.T) {
	// A host that comes back is not to become the backup at once, and a daemon that
	// is away for a moment is not a lost one, however busy this machine is.
	p := newPair(t, "reprotect = false\n[heartbeat]\nlimit = \"2s\"\ndaemon_grace = \"60s\"\n")
	p.installHooks()
	g := p.guest(small(lab.GuestOptions{UUID: "1f0e9c5a-0000-4000-8000-0000000000aa", Disks: []lab.GuestDisk{{Target: "vda"}}}))
	p.virsh(p.A, "define", p.xmlOf(g))
	p.virsh(p.A, "autostart", g.Name)
	for _, s := range []struct {
		name string
		tell func(*pair, *lab.Guest)
	}{
		{"other guests", hookOthers},
		{"a libvirtd that returns", hookReconnect},
		{"a standby's host", hookStandby},
		{"the guest is elsewhere", hookElsewhere},
	} {
		p.story(s.name, func(p *pair) { s.tell(p, g) })
	}
}

// installHooks builds the hook and installs it on both hosts.
func (p *pair) installHooks() {
	p.t.Helper()
	program := filepath.Join(p.t.TempDir(), "hook")
	cmd := exec.Command("go", "build", "-o", program, "github.com/virt-ft/virt-ft/hooks")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%v\n%s", err, out)
	}
	for _, h := range p.Hosts() {
		p.must(h.InstallHook(p.step(), program))
	}
}

// xmlOf is the file that a guest was made from.
func (p *pair) xmlOf(g *lab.Guest) string {
	return filepath.Join(p.Dir, "shared", g.Name+"."+g.Host.Name+".xml")
}

// hookOthers: a guest that is not protected starts whatever the daemon does.
func hookOthers(p *pair, _ *lab.Guest) {
	file := filepath.Join(p.Dir, "shared", "other.xml")
	p.must(os.WriteFile(file, []byte(otherXML), 0o644))
	starts := func() {
		p.t.Helper()
		p.virsh(p.A, "create", file)
		p.virsh(p.A, "destroy", "other")
	}
	starts()
	thaw := p.freeze(p.A.Daemon.Process().Pid())
	starts()
	thaw()
	p.must(p.A.Daemon.Stop())
	starts()
	p.must(p.A.Daemon.Start(p.step()))
}

// hookReconnect: libvirtd asks its hook about every guest that it finds running.
// The guest lives on, with a daemon and without one.
func hookReconnect(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	pid, err := p.A.QEMU(g.Name)
	p.must(err)
	p.must(p.A.Libvirtd.Restart(p.step()))
	p.goesOn(g.Name)
	p.must(p.A.Daemon.Kill())
	p.must(p.A.Libvirtd.Restart(p.step()))
	p.must(p.A.Daemon.Start(p.step()))
	p.goesOn(g.Name)
	if now, err := p.A.QEMU(g.Name); err != nil || now != pid {
		p.t.Errorf("its QEMU was process %d and is %d: %v", pid, now, err)
	}
}

// hookStandby: nobody but the daemon starts a guest where its standby was, which
// went with the daemon; and the daemon does.
func hookStandby(p *pair, g *lab.Guest) {
	p.must(p.B.Daemon.Kill())
	p.eventually("the standby stays", func() error {
		if out, err := p.B.Virsh(p.step(), "domstate", g.Name); err == nil {
			return errors.New(out)
		}
		return nil
	})
	p.refused("virt-ft's daemon does not run: start it", p.B, "create", p.xmlOf(g))
	p.must(p.B.Daemon.Start(p.step()))
	p.goesOn(g.Name) // with a standby of the daemon's own
}

// hookElsewhere: a host that was lost, and returns when the guest went on, does
// not boot it again, until a person gives up what happened there.
func hookElsewhere(p *pair, g *lab.Guest) {
	off := func(when string) {
		p.t.Helper()
		if s := strings.TrimSpace(p.virsh(p.A, "domstate", g.Name)); s != "shut off" {
			p.t.Errorf("%s the guest on A is %q", when, s)
		}
	}
	p.A.PowerOff()
	p.tickFrom(p.B)
	p.must(os.Truncate(p.A.Libvirtd.LogPath(), 0))
	p.must(p.A.PowerOn(p.step()))
	off("after autostart")
	if log, err := os.ReadFile(p.A.Libvirtd.LogPath()); err != nil || !strings.Contains(string(log), "web1 must not be started here") {
		p.t.Errorf("libvirtd did not try to start the guest when its host booted: %v\n%s", err, log)
	}
	p.refused("virt-ft's daemon does not run: start it", p.A, "start", g.Name)
	p.must(p.A.Daemon.Start(p.step()))
	p.eventually("A does not find out where its guest is", func() error {
		_, err := p.A.Virsh(p.step(), "start", g.Name)
		if err == nil {
			p.t.Fatal("the guest was started on A, too")
		}
		if strings.Contains(err.Error(), "went on at host-b") {
			return nil
		}
		return err
	})
	p.must(p.A.Daemon.Process().Signal(syscall.SIGSTOP))
	p.refused("went on at host-b", p.A, "start", g.Name)
	p.must(p.A.Daemon.Kill())
	p.refused("went on at host-b", p.A, "start", g.Name)
	p.refused("virt-ft's daemon does not run: start it", p.A, "start", g.Name)
	off("all the time")
	p.tickFrom(p.B)

	p.must(p.A.Daemon.Start(p.step()))
	p.virsh(p.B, "destroy", g.Name)
	_, err := p.A.Ctl(p.step(), "activate", "--force", g.Name)
	p.must(err)
	p.virsh(p.A, "start", g.Name)
}
