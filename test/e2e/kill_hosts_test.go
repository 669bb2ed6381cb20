package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// killedWhileNobodyWatched kills A's daemon, for longer than the standby waits, and
// then, unseen, A's QEMU. Nothing that the guest said since was let out, so its
// standby may go on from its last checkpoint: it does when nobody came back on A for
// a while.
func killedWhileNobodyWatched(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	p.must(p.A.Daemon.Kill())
	p.killQEMU(p.A, g.Name)
	p.state(p.B, g.Name, "active")
	p.must(p.A.Daemon.Start(p.step()))
	p.turn()
}

// daemonLost kills A's daemon and leaves it dead. The guest runs on there,
// and nobody hears it; its standby takes over. A daemon that comes back on A
// ends the copy that nobody heard.
func daemonLost(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name)
	p.tickFrom(p.A)
	p.must(p.A.Daemon.Kill())
	p.state(p.B, g.Name, "active")
	first := p.tickFrom(p.B)
	p.verified(p.B)
	if _, err := p.A.QEMU(g.Name); err != nil {
		p.t.Errorf("nobody was there to end the copy on A: %v", err)
	}
	if o, ok := p.out.LastFrom(p.A.Name); ok && o.At.After(first.At) {
		p.t.Errorf("A was heard after B had taken over: tick %d, B's first seen was %d", o.Counter, first.Counter)
	}
	p.must(p.A.Daemon.Start(p.step()))
	p.copyEnds(g)
	if o, ok := p.out.LastFrom(p.A.Name); ok && o.At.After(first.At) {
		p.t.Errorf("A was heard after B had taken over: tick %d, B's first seen was %d", o.Counter, first.Counter)
	}
	p.tickFrom(p.B)
	p.turn()
}

// daemonRestarted stops and kills the primary's daemon: nothing leaves until
// there is one again, and then the guest's connections go on.
func daemonRestarted(s *siege) {
	home, c := s.home, s.clients()
	s.protect(home, s.name)
	for name, end := range map[string]func() error{"stop": home.Daemon.Stop, "kill": home.Daemon.Kill} {
		if name == "stop" && !long() {
			continue
		}
		s.answered(c)
		s.must(end())
		s.tickSilence()
		s.muteWhile(c, func() { s.state(s.Peer(home), s.name, "orphaned") })
		s.must(home.Daemon.Start(s.step()))
		s.answered(c)
		s.state(home, s.name, "protected")
		s.faithful(c)
		s.t.Logf("%s: the connections survived it", name)
	}
	s.verified(home)
	_, err := home.Ctl(s.step(), "unprotect", s.name)
	s.must(err)
}

// backupLost cuts the power of B: the guest on A goes on alone, and is
// protected again when B is back.
func backupLost(s *siege) {
	home := s.home
	s.protect(s.home, s.name, "--epoch-idle", shortEpoch)
	s.Peer(home).PowerOff()
	s.alive()
	s.state(home, s.name, "alone")
	s.verified(home)
	s.powerOn(s.Peer(home))
	s.settled()
	s.tidy()
	if s.home != home {
		s.t.Fatalf("the guest moved to %s", s.home.Name)
	}
	s.t.Logf("longest silence %v", s.neverQuiet())
	s.lastStand()
}

// descriptorsReused is the danger of capturing through a descriptor's
// number: after libvirtd was restarted, numbers that it had passed to QEMU are
// closed, and a disk that is plugged in next gets them. A checkpoint through a
// stale number would truncate that disk.
func descriptorsReused(p *pair, g *lab.Guest) {
	p.configured(patientBackup)
	s := p.siege(g)
	image := filepath.Join(s.Dir, "disk.img")
	want := make([]byte, 4<<20)
	_, _ = rand.Read(want) // never fails
	s.must(os.WriteFile(image, want, 0o644))
	s.protect(s.home, s.name, "--epoch-idle", shortEpoch)
	for _, restart := range []struct {
		how string
		end func() error
	}{{"killed", s.A.Libvirtd.Kill}, {"stopped", s.A.Libvirtd.Stop}} {
		if restart.how == "stopped" && !long() {
			continue
		}
		s.must(restart.end())
		s.alive()
		s.must(s.A.Libvirtd.Start(s.step()))
		_, err := s.A.Virsh(s.step(), "attach-disk", s.name, image, "vdb", "--sourcetype", "file", "--driver", "qemu", "--subdriver", "raw", "--mode", "readonly", "--live")
		s.must(err)
		s.settled()
		s.epochs(20)
		s.tidy()
		_, err = s.A.Virsh(s.step(), "detach-disk", s.name, "vdb", "--live")
		s.must(err)
		s.eventually("the disk is not unplugged", func() error {
			out, err := s.A.Virsh(s.step(), "domblklist", s.name)
			if err == nil && strings.Contains(out, "vdb") {
				err = errStillThere
			}
			return err
		})
		s.settled()
		s.epochs(20)
		s.tidy()
		got, err := os.ReadFile(image)
		s.must(err)
		if !bytes.Equal(got, want) {
			s.t.Fatalf("libvirtd %s: the disk image was changed; it has %d bytes", restart.how, len(got))
		}
	}
	s.t.Logf("longest silence %v", s.neverQuiet())
	s.lastStand()
	p.turn()
	p.configured(operatorSettings)
}

var errStillThere = errors.New("it is still there")

// arbiterIdentity is the file by which the file arbiter knows its directory.
const arbiterIdentity = "virt-ft-arbiter"

// epochs waits until n more epochs were acknowledged in one session.
func (s *siege) epochs(n uint64) {
	s.t.Helper()
	from := uint64(1 << 62)
	s.eventually("no epochs are acknowledged", func() error {
		ps, err := s.protections(s.home)
		if err != nil || len(ps) != 1 {
			return fmt.Errorf("%d protections: %w", len(ps), err)
		}
		from = min(from, ps[0].Epoch.Acked)
		if ps[0].Epoch.Acked < from+n {
			return fmt.Errorf("%d of %d", ps[0].Epoch.Acked-from, n)
		}
		return nil
	})
}

// restartedBesidePausedGuest loses the link and the arbiter, so that the
// guest has to be paused, and kills the daemon that paused it. The next one
// comes before the arbiter does. When that is back, either host may win; with
// no daemon on B, it is A, and the guest goes on there.
func restartedBesidePausedGuest(s *siege) {
	id := filepath.Join(s.Dir, "shared", arbiterIdentity)
	s.protect(s.home, s.name, "--epoch-idle", shortEpoch)
	for _, peerLives := range []bool{false, true} {
		home, peer := s.home, s.Peer(s.home)
		s.must(os.Rename(id, id+".away"))
		s.must(s.CutReplication())
		paused := func() error {
			if st := s.status(home); !strings.Contains(st, `"paused"`) {
				return errors.New(st)
			}
			return nil
		}
		s.eventually("the guest is not paused", paused)
		s.must(home.Daemon.Kill())
		if !peerLives {
			s.must(peer.Daemon.Kill())
		}
		s.must(home.Daemon.Start(s.step()))
		if err := paused(); err != nil {
			s.t.Errorf("nobody decided anything, and the guest is %v", err)
		}
		s.must(os.Rename(id+".away", id))
		if !peerLives {
			s.state(home, s.name, "alone")
			s.alive()
			s.must(peer.Daemon.Start(s.step()))
		}
		s.must(s.HealReplication())
		s.settled()
		s.tidy()
		s.epochs(3)
	}
	s.lastStand()
}
