package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// Flags of the kill campaign:
//
//	go test ./test/e2e -run TestKilled/anywhere -kills 200 -timeout 90m
//	go test ./test/e2e -run TestKilled/anywhere -seed 42
//
// The environment variables VIRT_FT_KILLS and VIRT_FT_SEED do the same where
// flags cannot be passed. A seed replays the choices, not the machine's timing.
var (
	killsFlag = flag.Int("kills", envInt("VIRT_FT_KILLS"), "rounds of each kill campaign; 0: a few minutes' worth")
	seedFlag  = flag.Uint64("seed", uint64(envInt("VIRT_FT_SEED")), "seed of the kill campaigns; 0 draws one")
)

func envInt(name string) int {
	n, _ := strconv.Atoi(os.Getenv(name))
	return n
}

// long tells whether VIRT_FT_LONG asks for what takes long and is told elsewhere,
// or boots a guest again.
func long() bool { return envInt("VIRT_FT_LONG") > 0 }

// quietMax is how long the guest may stand still, at most, while its host
// lives, and mutedMax how long its network may be closed, which it is while
// nobody is there who could release what it sends. They are no figures of ours:
// the machine that runs this test is small and busy. A guest that is left paused
// stands still for good.
const (
	quietMax = 10 * time.Second
	mutedMax = time.Minute
)

// patientBackup keeps the standby from taking over because a daemon is slow to
// be started again here.
const patientBackup = "[heartbeat]\ndaemon_grace = \"60s\"\n"

// shortEpoch makes checkpoints frequent, so that kills hit them.
const shortEpoch = "10ms"

// siege is a guest under attack, and what must stay true of it.
type siege struct {
	*pair
	name   string
	home   *lab.Host // where the guest lives
	gpa    uint64    // of its beacon page
	beacon *lab.Beacon
	pipes  int // that QEMU has without us
	rng    *rand.Rand
	struck map[string]int
	cut    bool // the replication link is cut
	moves  int  // the guest was taken over by its standby
	lost   int  // protection ended with a reason and was asked for again
	seed   uint64
	began  time.Time
}

// besiege makes a lab and a guest, not protected yet. rounds sizes the time
// limit.
func besiege(t *testing.T, shape lab.GuestOptions, rounds int) *siege {
	t.Helper()
	p := newPair(t, patientBackup)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute+time.Duration(rounds)*time.Minute)
	t.Cleanup(cancel)
	p.ctx = ctx
	return p.siege(p.guest(shape))
}

// siege begins with a guest that is on A, not protected, and was never elsewhere.
func (p *pair) siege(g *lab.Guest) *siege {
	p.t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	p.t.Logf("seed %d: replay with -seed %[1]d", seed)
	// Not that of g.Ready: the guest may have booted again.
	gpa := p.tickFrom(p.A).BeaconGPA
	s := &siege{pair: p, name: g.Name, gpa: gpa, seed: seed}
	s.begins()
	pid, err := p.A.QEMU(g.Name)
	p.must(err)
	s.pipes = len(pipesOf(pid))
	s.livesOn(p.A)
	return s
}

// story is pair.story for a siege. Its stories find the guest on home, wherever
// that is, and leave it there or at the other host. Each counts for itself.
func (s *siege) story(name string, tell func(*siege)) {
	s.t.Helper()
	s.pair.story(name, func(p *pair) {
		whole := s.pair
		s.pair = p
		defer func() { s.pair = whole }()
		s.begins()
		tell(s)
	})
}

// begins starts the counts anew, and the choices.
func (s *siege) begins() {
	s.rng, s.began = rand.New(rand.NewPCG(s.seed, 0)), time.Now()
	s.struck, s.moves, s.lost = map[string]int{}, 0, 0
}

// livesOn says where the guest is from now on.
func (s *siege) livesOn(h *lab.Host) {
	s.t.Helper()
	if h == s.home {
		return
	}
	var err error
	s.beacon, err = h.OpenBeacon(s.step(), s.name, s.gpa)
	s.must(err)
	s.home = h
}

// rounds is how many to fight.
func rounds(fallback int) int {
	if *killsFlag > 0 {
		return *killsFlag
	}
	return fallback
}

// victim is something to kill.
type victim struct {
	name   string
	strike func() error
}

func (s *siege) victims() []victim {
	peer := s.Peer(s.home)
	return []victim{
		{"daemon of the primary", s.home.Daemon.Kill},
		{"daemon of the backup", peer.Daemon.Kill},
		{"libvirtd of the primary", s.home.Libvirtd.Kill},
		{"libvirtd of the backup", peer.Libvirtd.Kill},
		{"QEMU of the standby", func() error { s.killStandbys(peer); return nil }},
		{"link", func() error { s.cut = true; return s.CutReplication() }},
	}
}

// killStandbys kills every QEMU on h, which is not the guest's home: its
// standby, if there is one, and the rehearsal's, if that is going on.
func (s *siege) killStandbys(h *lab.Host) {
	for _, pid := range s.processes(h)[qemuName] {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
	}
}

func (s *siege) strike(v victim) {
	s.t.Helper()
	s.struck[v.name]++
	s.must(v.strike())
}

// heal repairs everything: the link first, libvirtd before the daemon that
// needs it, as systemd would.
func (s *siege) heal() {
	s.t.Helper()
	if s.cut {
		s.must(s.HealReplication())
		s.cut = false
	}
	for _, h := range s.Hosts() {
		for _, service := range []*lab.Service{h.Libvirtd, h.Daemon} {
			if service.Process() == nil {
				s.must(service.Start(s.step()))
			}
		}
	}
}

// brief waits a random time below limit: when exactly we strike is the
// experiment.
func (s *siege) brief(limit time.Duration) {
	time.Sleep(time.Duration(s.rng.Int64N(int64(limit))))
}

// wander lets a random number of the guest's ticks, and so of epochs, pass.
func (s *siege) wander(ticks int) {
	s.t.Helper()
	n := s.heard().Counter + uint64(s.rng.IntN(ticks))
	ctx, cancel := context.WithTimeout(s.ctx, stepMax)
	defer cancel()
	if _, err := s.out.WaitTick(ctx, func(o lab.Observation) bool { return o.Counter >= n }); err != nil {
		s.t.Fatalf("waiting for %d ticks: %v", n, err)
	}
	s.brief(15 * time.Millisecond)
}

// alive fails unless the guest runs: where it lives, which can be seen without
// its network, or on the other host, from where it is heard.
func (s *siege) alive() {
	s.t.Helper()
	began := time.Now()
	first, seen := uint64(0), false
	for time.Since(began) < quietMax {
		if b, err := s.beacon.Read(); err == nil && seen && b.Counter != first {
			return
		} else if err == nil && !seen {
			first, seen = b.Counter, true
		}
		if o, ok := s.out.LastFrom(s.Peer(s.home).Name); ok && o.At.After(began) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	for _, h := range s.Hosts() {
		s.t.Logf("%s: %s", h.Name, s.status(h))
	}
	s.t.Fatalf("the guest does not run any more")
}

// heard waits for the guest to be heard, from wherever it is.
func (s *siege) heard() lab.Observation {
	s.t.Helper()
	now := time.Now()
	o, err := s.out.WaitTick(s.step(), func(o lab.Observation) bool { return o.At.After(now) })
	s.must(err)
	return o
}

// status asks QEMU itself what its guest does.
func (s *siege) status(h *lab.Host) string {
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	out, err := h.Virsh(ctx, "qemu-monitor-command", s.name, `{"execute":"query-status"}`)
	if err != nil {
		return err.Error()
	}
	return out
}

// settled waits until the guest is protected, wherever it lives, and its peer
// stands by. A protection that reported itself lost is asked for again.
func (s *siege) settled() {
	s.t.Helper()
	s.eventually("protection does not resume", func() error {
		var seen []string
		for _, h := range s.Hosts() {
			ps, err := s.protections(h)
			switch {
			case err != nil && strings.Contains(err.Error(), "not protected any more: "):
				seen = append(seen, h.Name+" "+err.Error())
				if h == s.home && s.runsOn(h) {
					s.t.Logf("lost: %v", err)
					s.lost++
					s.protectHome()
				}
			case err != nil:
				seen = append(seen, h.Name+" "+err.Error())
			case len(ps) == 0:
				seen = append(seen, h.Name+" nothing")
			default:
				seen = append(seen, h.Name+" "+ps[0].Role+" "+ps[0].State+" "+ps[0].Error)
				switch {
				case ps[0].Role == "backup" && ps[0].State == "active":
					s.moves++
					s.t.Logf("the guest lives on %s now", h.Name)
					s.livesOn(h)
					s.protectHome()
				case ps[0].Role == "primary" && ps[0].State == "protected":
					if other, err := s.protections(s.Peer(h)); err == nil && len(other) == 1 && other[0].State == "standby" {
						s.livesOn(h)
						return nil
					}
				}
			}
		}
		return fmt.Errorf("%s", strings.Join(seen, "; "))
	})
}

func (s *siege) protections(h *lab.Host) ([]lab.Protection, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	return h.Poll(ctx, s.name)
}

// runsOn tells whether the guest's QEMU is on h.
func (s *siege) runsOn(h *lab.Host) bool {
	_, err := h.QEMU(s.name)
	return err == nil
}

// protectHome asks for protection; that it fails is seen by who waits for it.
func (s *siege) protectHome() {
	ctx, cancel := context.WithTimeout(s.ctx, stepMax)
	defer cancel()
	if _, err := s.home.Ctl(ctx, "protect", s.name, "--to", s.Peer(s.home).Name, "--epoch-idle", shortEpoch); err != nil {
		s.t.Logf("protect: %v", err)
	}
}

const (
	qemuName   = "qemu-system-x86" // as the kernel cuts it
	daemonName = "virt-ft"
)

// processes groups what runs on h by command name.
func (s *siege) processes(h *lab.Host) map[string][]int {
	s.t.Helper()
	pids, err := h.Processes()
	s.must(err)
	names := map[string][]int{}
	for _, pid := range pids {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
			name := strings.TrimSpace(string(comm))
			names[name] = append(names[name], pid)
		}
	}
	return names
}

// tidy fails unless what is left of all the fights is one guest, one standby
// and one session in the guest's QEMU.
func (s *siege) tidy() {
	s.t.Helper()
	s.eventually("the guest does not run", func() error {
		if st := s.status(s.home); !strings.Contains(st, `"running"`) {
			return fmt.Errorf("QEMU says %s", st) // save-vm for a moment, if a checkpoint is taken
		}
		return nil
	})
	s.eventually("leftovers", func() error {
		for _, h := range s.Hosts() {
			out, err := h.Virsh(s.ctx, "list", "--all", "--name")
			if err != nil {
				return err
			}
			if got := strings.Fields(out); len(got) != 1 || got[0] != s.name {
				return fmt.Errorf("domains on %s: %q", h.Name, got)
			}
			names := s.processes(h)
			if len(names[qemuName]) != 1 || len(names[daemonName]) != 1 || len(names["libvirtd"]) != 1 {
				return fmt.Errorf("processes on %s: %v", h.Name, names)
			}
		}
		return s.cleanQEMU(1)
	})
}

// cleanQEMU looks for what sessions may have left in the guest's QEMU. One
// that lives has one pipe there.
func (s *siege) cleanQEMU(live int) error {
	pid, err := s.home.QEMU(s.name)
	if err != nil {
		return err
	}
	pipes := pipesOf(pid)
	uffd := strings.Count(strings.Join(linksOf(pid), " "), "userfaultfd")
	n := 0
	for _, times := range pipes {
		n += times
	}
	if len(pipes) > s.pipes+live || n > s.pipes+live || uffd > 0 {
		return fmt.Errorf("QEMU holds pipes %v, without us %d, and %d userfaultfds", pipes, s.pipes, uffd)
	}
	return nil
}

// linksOf lists what a process has open.
func linksOf(pid int) []string {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	var links []string
	for _, n := range names {
		if to, err := os.Readlink(n); err == nil {
			links = append(links, to)
		}
	}
	return links
}

// pipesOf tells how often a process has each of its pipes open.
func pipesOf(pid int) map[string]int {
	pipes := map[string]int{}
	for _, to := range linksOf(pid) {
		if strings.HasPrefix(to, "pipe:") {
			pipes[to]++
		}
	}
	return pipes
}

// neverQuiet fails if the guest was silent for too long since the siege, or its story,
// began, and returns the longest silence on one host.
func (s *siege) neverQuiet() time.Duration {
	s.t.Helper()
	var longest time.Duration
	for _, g := range s.out.Gaps() {
		if g.Before.At.Before(s.began) {
			continue
		}
		if g.Before.Host == g.After.Host {
			longest = max(longest, g.Silence())
		}
		if g.Silence() > mutedMax {
			s.t.Errorf("the guest was not heard for %v, from %s to %s", g.Silence(), g.Before.Host, g.After.Host)
		}
	}
	return longest
}

// lastStand checks the guest's memory, kills its QEMU, and checks that it
// goes on, with the right memory, on the other host.
func (s *siege) lastStand() {
	s.t.Helper()
	s.verified(s.home)
	s.killQEMU(s.home, s.name)
	s.state(s.Peer(s.home), s.name, "active")
	s.livesOn(s.Peer(s.home))
	s.verified(s.home)
}
