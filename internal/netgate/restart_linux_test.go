package netgate

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// victimDir makes this test binary a daemon with a gate that waits to be killed.
const victimDir = "VIRTFT_NETGATE_TEST_VICTIM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		g, err := Open([]NIC{{0, "g0"}}, Options{Dir: dir})
		if err == nil && os.Getenv(victimDir+"_HOLD") != "" {
			err = g.Hold()
		}
		fmt.Println("open:", err)
		select {}
	}
	os.Exit(m.Run())
}

// victim runs a daemon in the namespaces of the test and kills it once its gate
// is there.
func victim(t *testing.T, dir string, hold bool, then func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimDir+"="+dir)
	if hold {
		cmd.Env = append(cmd.Env, victimDir+"_HOLD=1")
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "open: <nil>\n" {
		t.Errorf("%q, %v", line, err)
	}
	then()
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed
}

// TestKilled: a daemon that is killed fails closed; the next one takes over in
// the same mode, and opens.
func TestKilled(t *testing.T) {
	inNamespace(t)
	guest, world, other := plug(t, "g0", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	dir := pins(t)
	victim(t, dir, true, func() { guest.send(1) })
	guest.send(2)
	world.expectNothing(other)

	g := open(t, Options{Dir: dir}, guest)
	if !g.Holding() {
		t.Fatal("the gate came back open")
	}
	guest.send(3)
	fs := g.Cut()
	checkFrames(t, fs, 3) // 1 and 2 are lost, as on any network
	if err := g.Release(fs); !errors.Is(err, ErrLease) {
		t.Errorf("release: %v", err)
	}
	must(t, g.Pass(t.Context(), fs))
	world.expect(3)
	guest.send(4)
	world.expect(4)
	if s := g.Stats(); s.Captured != 3 || s.Passed != 1 {
		t.Errorf("the counters did not go on: %+v", s)
	}
}

// TestKilledPassing: a gate that passes does so without its daemon.
func TestKilledPassing(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	dir := pins(t)
	victim(t, dir, false, func() {})
	guest.send(1)
	world.expect(1)
	g := open(t, Options{Dir: dir}, guest)
	if g.Holding() {
		t.Error("the gate came back shut")
	}
	must(t, g.Hold())
	guest.send(2)
	checkFrames(t, g.Cut(), 2)
}

func TestCloseKeepAndRemove(t *testing.T) {
	inNamespace(t)
	guest, world, other := plug(t, "g0", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	dir := pins(t)
	g := open(t, Options{Dir: dir}, guest)
	must(t, g.Hold())
	must(t, g.Close(true))
	guest.send(1)
	world.expectNothing(other)
	must(t, Remove(dir))
	must(t, Remove(dir))
	guest.send(2)
	world.expect(2)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}

	g = open(t, Options{Dir: dir}, guest)
	must(t, g.Hold())
	must(t, g.Close(false))
	guest.send(3)
	world.expect(3)
	if gates, err := linksOn(linkOf(t, "g0").Attrs().Index); len(gates) > 0 || err != nil {
		t.Errorf("%d gates are left, %v", len(gates), err)
	}
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "ftc") {
			t.Errorf("%s is left", l.Attrs().Name)
		}
	}
}

// TestOtherInterface: pins of a tap that was made anew, under the same name or
// another, are not those of this guest's interface any more.
func TestOtherInterface(t *testing.T) {
	inNamespace(t)
	guest, world := plug(t, "g0", 1), plug(t, "w0", 1)
	dir := pins(t)
	g := open(t, Options{Dir: dir}, guest)
	must(t, g.Hold())
	must(t, g.Close(true))
	guest.unplug()
	guest = plug(t, "g0", 1)
	g = open(t, Options{Dir: dir}, guest)
	if g.Holding() {
		t.Error("the gate of a tap that is gone was taken over")
	}
	guest.send(1)
	world.expect(1)
	must(t, g.Hold())
	guest.send(2)
	checkFrames(t, g.Cut(), 2)
	must(t, g.Close(true))

	renamed := plug(t, "g1", 1)
	g = open(t, Options{Dir: dir}, renamed)
	if g.Holding() {
		t.Error("the gate of another tap was taken over")
	}
	guest.send(3)
	renamed.send(4)
	world.expect(3, 4)
}

// TestPlugged: an interface that came while another holds makes both hold, and
// one that went leaves no pin.
func TestPlugged(t *testing.T) {
	inNamespace(t)
	a, b, world, other := plug(t, "g0", 1), plug(t, "g1", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	dir := pins(t)
	g := open(t, Options{Dir: dir}, a)
	must(t, g.Hold())
	must(t, g.Close(true))
	g = open(t, Options{Dir: dir}, a, b)
	b.send(1)
	world.expectNothing(other)
	must(t, g.Close(true))
	g = open(t, Options{Dir: dir}, a)
	b.send(2)
	world.expect(2)
	entries, err := os.ReadDir(dir)
	if len(entries) != 2 || err != nil || !g.Holding() {
		t.Errorf("%d pins, %v", len(entries), err)
	}
}

// TestHalfPinned: what a daemon that was killed in Open may leave.
func TestHalfPinned(t *testing.T) {
	inNamespace(t)
	guest := plug(t, "g0", 1)
	dir := pins(t)
	g := open(t, Options{Dir: dir}, guest)
	must(t, g.Hold())
	must(t, g.Close(true))
	must(t, os.Remove(pinPath(dir, 0, pinLink)))
	g = open(t, Options{Dir: dir}, guest)
	if g.Holding() {
		t.Error("a map without a link was taken over")
	}
	// An opening that was not finished: no lease is needed, but frames are held.
	must(t, g.Hold())
	g.ports[0].state.word(wordLease).Store(leaseForever)
	must(t, g.Close(true))
	g = open(t, Options{Dir: dir}, guest)
	guest.send(1)
	if err := g.Release(g.Cut()); !errors.Is(err, ErrLease) {
		t.Errorf("a lease for ever was inherited: %v", err)
	}
	must(t, g.Close(true))

	// A layout of another version.
	m, err := ebpf.LoadPinnedMap(pinPath(dir, 0, pinMap), nil)
	must(t, err)
	s, err := mapState(m)
	must(t, err)
	s.word(wordLayout).Store(layoutVersion + 1)
	s.close()
	if _, err := Open([]NIC{{0, "g0"}}, Options{Dir: dir}); !errors.Is(err, ErrLayout) {
		t.Errorf("an unknown layout: %v", err)
	}
	world, other := plug(t, "w0", 1), plug(t, "w1", 1)
	guest.send(2)
	world.expectNothing(other) // it still holds
	must(t, Remove(dir))
	guest.send(3)
	world.expect(3)
}

func TestNoBPFFS(t *testing.T) {
	inNamespace(t)
	plug(t, "g0", 1)
	if _, err := Open([]NIC{{0, "g0"}}, Options{Dir: t.TempDir()}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

// TestDeadReleasesNothing: frames that lie in the backlog or a socket of a dead
// daemon do not exist; its lease may go on.
func TestDeadReleasesNothing(t *testing.T) {
	inNamespace(t)
	guest, world, other := plug(t, "g0", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	dir := pins(t)
	g := open(t, Options{Dir: dir}, guest)
	g.Lease(boottime(t, time.Hour))
	must(t, g.Hold())
	guest.send(1)
	must(t, g.Close(true))
	guest.send(2)
	world.expectNothing(other)
	g = open(t, Options{Dir: dir}, guest)
	guest.send(3)
	fs := g.Cut()
	checkFrames(t, fs, 3)
	must(t, g.Release(fs)) // the lease is a matter of time, and holds
	world.expect(3)
}
