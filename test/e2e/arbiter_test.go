package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// TestArbiters lets others than a shared directory decide who goes on: an etcd on
// a network of its own, a fence agent that really turns hosts off, and both.
func TestArbiters(t *testing.T) {
	p := newPairWith(t, lab.DaemonOptions{Extra: arbiterExtra, Arbiter: etcdArbiter})
	etcd, err := p.StartEtcd(p.step())
	skipIfMissing(t, err)
	s := p.newSwitch()
	g := p.guest(lab.GuestOptions{MemMiB: 192, Cmdline: "ft.mem_mb=16"})
	for _, x := range []struct {
		name string
		tell func(*pair)
	}{
		{"etcd, link cut", func(p *pair) { etcdLinkCut(p, g) }},
		{"etcd, host lost", func(p *pair) { etcdHostLost(p, g, nil) }},
		{"etcd, host and etcd lost", func(p *pair) { etcd = etcdHostLost(p, g, etcd) }},
		{"fence", func(p *pair) { p.arbiter(fenceArbiter("fence")) }},
		{"fence, link cut", func(p *pair) { fenceLinkCut(p, g, s) }},
		{"fence, frozen host", func(p *pair) { fenceFrozenHost(p, g, s) }},
		{"etcd+fence", func(p *pair) { p.arbiter(fenceArbiter("etcd+fence")) }},
		{"etcd+fence, link cut", func(p *pair) { fenceLinkCut(p, g, s) }},
		{"etcd+fence, host and etcd lost", func(p *pair) { fencedHostLost(p, g, etcd) }},
	} {
		p.story(x.name, x.tell)
	}
}

const arbiterExtra = "reprotect = false\n"

// etcdArbiter asks etcd, and not for long while that is away.
func etcdArbiter(h *lab.Host) string { return lab.EtcdArbiter(h) + "etcd.timeout = \"1s\"\n" }

// arbiter gives the daemons another arbiter.
func (p *pair) arbiter(which func(*lab.Host) string) {
	p.t.Helper()
	for _, h := range p.Hosts() {
		p.must(h.ConfigureWith(lab.DaemonOptions{Extra: arbiterExtra, Arbiter: which}))
		p.must(h.Daemon.Stop())
		p.must(h.Daemon.Start(p.step()))
	}
}

// etcdLinkCut cuts the link between hosts that both see etcd: one goes on.
func etcdLinkCut(p *pair, g *lab.Guest) {
	p.kept(p.A, g.Name)
	p.tickFrom(p.A)
	began, home := time.Now(), p.A
	p.must(p.CutReplication())
	loser := p.decided(g.Name)
	p.verified(p.A)
	p.must(p.HealReplication())
	p.ends(g, home, loser)
	p.heardOnce(began, loser)
}

// etcdHostLost cuts A's power; with etcd, after that was killed. Then nobody goes
// on before it is back, which is returned.
func etcdHostLost(p *pair, g *lab.Guest, etcd *lab.Process) (back *lab.Process) {
	p.kept(p.A, g.Name)
	p.tickFrom(p.A)
	if etcd != nil {
		p.must(etcd.Kill())
	}
	before := p.log(p.B)
	p.A.PowerOff()
	if etcd != nil {
		p.says(p.B, len(before), "msg=claim ", "verdict=unknown") // it asked, and nothing was decided
		p.must(p.mayNotRun(p.B, g.Name))
		var err error
		back, err = p.StartEtcd(p.step())
		p.must(err)
	}
	p.state(p.B, g.Name, "active")
	p.verified(p.B)
	p.powerOn(p.A)
	p.learnsThatItLost(g)
	p.turn()
	return back
}

// log is what a daemon said so far.
func (p *pair) log(h *lab.Host) string {
	p.t.Helper()
	text, err := os.ReadFile(h.Daemon.LogPath())
	p.must(err)
	return string(text)
}

// says waits until a daemon says something, behind so many bytes of its log: one line
// with all of the words.
func (p *pair) says(h *lab.Host, behind int, words ...string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("%s's daemon does not say %q", h.Name, words), func() error {
		for line := range strings.Lines(p.log(h)[behind:]) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return nil
			}
		}
		return errors.New("no such line in its log")
	})
}

// learnsThatItLost waits until A, which was off, says that the guest went on at B;
// it does not run there.
func (p *pair) learnsThatItLost(g *lab.Guest) {
	p.t.Helper()
	p.eventually("A does not know where its guest is", func() error {
		_, err := p.A.Protections(p.step(), g.Name)
		if err == nil || !strings.Contains(err.Error(), "went on at "+p.B.Name) {
			return fmt.Errorf("it says: %w", err)
		}
		return nil
	})
	p.noQEMU(p.A, g.Name)
}

// powerSwitch turns hosts off for fence agents. What they ask comes through a
// FIFO that both hosts see, one question at a time; who was turned off meanwhile
// gets nobody turned off any more.
type powerSwitch struct {
	hosts []*lab.Host
	offs  chan *lab.Host // those that were turned off, when they are
}

// agentScript is a fence agent as ClusterLabs' FenceAgentAPI.md describes it. Who
// asks is the host name of where it runs.
const agentScript = `#!/bin/sh
dir=$(dirname "$0")
while IFS= read -r line; do
	case $line in
	action=*) action=${line#action=} ;;
	plug=*) plug=${line#plug=} ;;
	esac
done
case $action in
metadata)
	echo '<?xml version="1.0" ?><resource-agent name="fence_lab"><parameters>'
	echo '<parameter name="action"/><parameter name="plug"/>'
	echo '</parameters><actions><action name="off"/><action name="status"/></actions></resource-agent>'
	exit 0
	;;
off|status) ;;
*) exit 1 ;;
esac
reply=$dir/reply.$(hostname).$$
mkfifo "$reply" && exec 3<>"$reply" || exit 1
echo "$(hostname) $action $plug $reply" >"$dir/ask"
read -r code <&3
rm -f "$reply"
exit "$code"
`

const agentName = "fence_lab"

// switchDir is where a host of the lab finds the agent.
func switchDir(h *lab.Host) string { return filepath.Join(filepath.Dir(h.Dir), "fence") }

// fenceArbiter is TOML: the other host's plug, and a head start for host A.
func fenceArbiter(kind string) func(*lab.Host) string {
	return func(h *lab.Host) string {
		peer, delay := "host-b", "0s"
		if h.Name == peer {
			peer, delay = "host-a", "500ms"
		}
		return fmt.Sprintf("kind = %q\nfence.agent = %q\nfence.plug = %q\nfence.delay = %q\netcd.endpoints = [%q]\netcd.timeout = \"1s\"\n",
			kind, filepath.Join(switchDir(h), agentName), peer, delay, lab.EtcdURL)
	}
}

// newSwitch installs the agent and answers it until the test ends.
func (p *pair) newSwitch() *powerSwitch {
	p.t.Helper()
	// Not p.Hosts(): those trade places.
	s := &powerSwitch{hosts: []*lab.Host{p.A, p.B}, offs: make(chan *lab.Host, 16)}
	dir := switchDir(p.A)
	p.must(os.MkdirAll(dir, 0o755))
	p.must(os.WriteFile(filepath.Join(dir, agentName), []byte(agentScript), 0o755))
	p.must(syscall.Mkfifo(filepath.Join(dir, "ask"), 0o666))
	ask, err := os.OpenFile(filepath.Join(dir, "ask"), os.O_RDWR|syscall.O_NONBLOCK, 0)
	p.must(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(ask); lines.Scan(); {
			s.answer(strings.Fields(lines.Text()))
		}
	}()
	p.t.Cleanup(func() { // before the lab is closed
		ask.Close()
		<-done
	})
	return s
}

// answer does what an agent asks for: asker, action, plug, and where it waits.
func (s *powerSwitch) answer(q []string) {
	if len(q) != 4 || s.host(q[0]) == nil || s.host(q[0]).Pid() == 0 {
		return
	}
	reply, err := os.OpenFile(q[3], os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return // it was killed
	}
	defer reply.Close()
	code, plug := 1, s.host(q[2])
	switch {
	case plug == nil:
	case q[1] == "off":
		if plug.Pid() != 0 {
			plug.PowerOff()
			s.offs <- plug
		}
		code = 0
	case plug.Pid() == 0:
		code = 2
	default:
		code = 0
	}
	fmt.Fprintln(reply, code) // an agent that was killed needs none
}

func (s *powerSwitch) host(name string) *lab.Host {
	for _, h := range s.hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// turnsOff waits until an agent turned a host off, and fails if there was another
// one before that nobody asked about.
func (s *powerSwitch) turnsOff(p *pair) *lab.Host {
	p.t.Helper()
	select {
	case h := <-s.offs:
		if len(s.offs) > 0 {
			p.t.Fatalf("both hosts were turned off: %s first", h.Name)
		}
		return h
	case <-time.After(stepMax):
		p.t.Fatal("no agent turned a host off")
	}
	return nil
}

// fenceLinkCut cuts the link between hosts that live: one of them turns the other
// off, and goes on.
func fenceLinkCut(p *pair, g *lab.Guest, s *powerSwitch) {
	p.protect(p.A, g.Name)
	p.tickFrom(p.A)
	began := time.Now()
	p.must(p.CutReplication())
	off := s.turnsOff(p)
	p.state(p.Peer(off), g.Name, "alone", "active")
	if off == p.A {
		p.verified(p.B)
	} else {
		p.verified(p.A)
	}
	p.must(p.HealReplication())
	p.powerOn(off)
	if off == p.A {
		p.learnsThatItLost(g)
		p.turn()
	} else {
		p.state(p.A, g.Name, "protected")
	}
	p.heardOnce(began, off)
	if len(s.offs) > 0 {
		p.t.Errorf("%s was turned off, too", (<-s.offs).Name)
	}
}

// fenceFrozenHost stops all of A: B turns it off before it goes on.
func fenceFrozenHost(p *pair, g *lab.Guest, s *powerSwitch) {
	p.kept(p.A, g.Name)
	p.tickFrom(p.A)
	began := time.Now()
	p.must(p.FreezeHost(p.A))
	p.t.Cleanup(func() { _ = p.ThawHost(p.A) }) // a test that failed ends sooner
	if off := s.turnsOff(p); off != p.A {
		p.t.Fatalf("%s was turned off, and could do nothing wrong", off.Name)
	}
	p.state(p.B, g.Name, "active")
	p.verified(p.B)
	p.powerOn(p.A)
	p.learnsThatItLost(g)
	p.heardOnce(began, p.A)
	p.turn()
}

// fencedHostLost cuts A's power after etcd was killed: B makes sure that A is off,
// and needs no vote for that.
func fencedHostLost(p *pair, g *lab.Guest, etcd *lab.Process) {
	p.kept(p.A, g.Name)
	p.tickFrom(p.A)
	p.must(etcd.Kill())
	p.A.PowerOff()
	p.state(p.B, g.Name, "active")
	p.verified(p.B)
	p.powerOn(p.A)
	p.learnsThatItLost(g)
	p.turn()
}
