// Package e2e tests virt-ft as its users meet it: two hosts of the lab, each
// with a real libvirtd, a real daemon and the real command line, and a Linux
// guest that keeps checksums of its own memory.
package e2e

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// stepMax bounds each wait of these tests. It is generous because the
// machines that run them are small and shared; nothing is asserted about time.
const stepMax = 3 * time.Minute

// hurryMax bounds how long a guest is asked to hurry.
const hurryMax = time.Second

// lookEvery is the pause between two looks at what is waited for.
const lookEvery = 25 * time.Millisecond

var binary string // the virt-ft program under test, built by TestMain

func TestMain(m *testing.M) {
	lab.MaybeHost()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "virt-ft-e2e-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "virt-ft")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/virt-ft/virt-ft/cmd/virt-ft").CombinedOutput(); err != nil {
		os.Stderr.Write(out)
		panic(err)
	}
	return m.Run()
}

// pair is two hosts with daemons, and what watches them from outside.
type pair struct {
	*lab.Lab
	t   *testing.T
	ctx context.Context
	out *lab.Observer
}

// newPair makes two hosts with running daemons. extra is TOML for both
// daemons' configurations.
func newPair(t *testing.T, extra string) *pair {
	t.Helper()
	return newPairWith(t, lab.DaemonOptions{Extra: extra})
}

func newPairWith(t *testing.T, o lab.DaemonOptions) *pair {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	l, err := lab.New(ctx, lab.Options{RootA: os.Getenv(rootA), RootB: os.Getenv(rootB), Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	skipIfMissing(t, err)
	p := &pair{Lab: l, t: t, ctx: ctx}
	t.Cleanup(func() {
		p.showLogs()
		l.Close()
	})
	p.must(l.InstallDaemonsWith(binary, o))
	p.must(l.StartDaemons(ctx))
	p.out, err = lab.NewObserver(l, 50*time.Millisecond)
	p.must(err)
	t.Cleanup(p.out.Close)
	return p
}

// configured gives the daemons another configuration, with extra in it as newPair
// has it: a guest's boot takes longer than a daemon's.
func (p *pair) configured(extra string) {
	p.t.Helper()
	for _, h := range p.Hosts() {
		p.must(h.Configure(extra))
		p.must(h.Daemon.Stop())
		p.must(h.Daemon.Start(p.step()))
	}
}

// story is a test of its own, which shares hosts, guest and clients with the
// stories before it: a guest's boot takes longer than many of them. Each finds
// the guest on A and leaves it there, not protected, unless the next one goes on
// with the protection, see kept. Each can be run alone. One that fails ends all.
func (p *pair) story(name string, tell func(*pair)) {
	p.t.Helper()
	if !p.t.Run(name, func(t *testing.T) {
		q := *p
		q.t = t
		tell(&q)
	}) {
		p.t.FailNow()
	}
}

// turn makes the host where the guest lives now A, and the other one B.
func (p *pair) turn() { p.A, p.B = p.B, p.A }

// unprotect runs virt-ft unprotect on A.
func (p *pair) unprotect(domain string) {
	p.t.Helper()
	_, err := p.A.Ctl(p.step(), "unprotect", domain)
	p.must(err)
}

// powerOn boots a host whose power was cut, with its daemon.
func (p *pair) powerOn(h *lab.Host) {
	p.t.Helper()
	p.must(h.PowerOn(p.step()))
	p.must(h.Daemon.Start(p.step()))
}

// skipIfMissing skips on what this machine lacks and fails on the rest.
func skipIfMissing(t *testing.T, err error) {
	t.Helper()
	var missing *lab.MissingError
	if errors.As(err, &missing) {
		t.Skip(missing)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (p *pair) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// step returns a context for one wait.
func (p *pair) step() context.Context {
	ctx, cancel := context.WithTimeout(p.ctx, stepMax)
	p.t.Cleanup(cancel)
	return ctx
}

// guest boots a guest on host A.
func (p *pair) guest(shape lab.GuestOptions) *lab.Guest {
	p.t.Helper()
	assets, err := lab.FindAssets()
	skipIfMissing(p.t, err)
	boot, err := p.InstallBoot(assets)
	p.must(err)
	shape.Kernel, shape.Initrd, shape.NIC = boot.Kernel, boot.Initrd, true
	g, err := p.A.StartGuest(p.step(), shape)
	p.must(err)
	return g
}

// small gives a guest a working set of a quarter of the usual size, which is sent,
// rehearsed and checked sooner: for tests in which it is not what memory is that counts.
func small(shape lab.GuestOptions) lab.GuestOptions {
	shape.Cmdline = strings.TrimSpace(shape.Cmdline + " ft.mem_mb=16")
	return shape
}

// protect runs virt-ft protect on the host from, to the other one. While that is busy
// with the end of what was before, as after a failover, it waits and repeats it, as
// the command says that one should.
func (p *pair) protect(from *lab.Host, domain string, args ...string) {
	p.t.Helper()
	command := append([]string{"protect", domain, "--to", p.Peer(from).Name}, args...)
	for ctx := p.step(); ; {
		_, err := from.Ctl(ctx, command...)
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "(busy)") || !strings.Contains(err.Error(), "wait for its end") {
			p.t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			p.t.Fatal(err)
		case <-time.After(lookEvery):
		}
	}
}

// kept is protect for a story that goes on with the protection of the one before, if
// there was one.
func (p *pair) kept(from *lab.Host, domain string, args ...string) {
	p.t.Helper()
	if ps, err := from.Poll(p.step(), domain); err == nil && len(ps) == 1 && ps[0].Role == "primary" && ps[0].State == "protected" {
		return
	}
	p.protect(from, domain, args...)
}

// state waits for one of states on a host.
func (p *pair) state(h *lab.Host, domain string, states ...string) lab.Protection {
	p.t.Helper()
	s, err := h.WaitState(p.step(), domain, states...)
	p.must(err)
	return s
}

// eventually waits until check finds nothing wrong.
func (p *pair) eventually(what string, check func() error) {
	p.t.Helper()
	end := time.Now().Add(stepMax)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) || p.ctx.Err() != nil {
			p.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(lookEvery)
	}
}

// tickFrom waits for a tick that comes from h after now.
func (p *pair) tickFrom(h *lab.Host) lab.Observation {
	p.t.Helper()
	now := time.Now()
	o, err := p.out.WaitTick(p.step(), func(o lab.Observation) bool { return o.Host == h.Name && o.At.After(now) })
	if err != nil {
		p.t.Fatalf("the guest is not heard from %s: %v", h.Name, err)
	}
	return o
}

// verified waits until the guest on h checked all of its memory twice more
// and fails on any error it found.
func (p *pair) verified(h *lab.Host) lab.Observation {
	p.t.Helper()
	first := p.tickFrom(h)
	p.hurry()
	o, err := p.out.WaitTick(p.step(), func(o lab.Observation) bool { return o.Host == h.Name && o.Passes >= first.Passes+2 })
	p.must(err)
	if o.MemErrors != 0 {
		p.t.Fatalf("the guest found %d wrong pages of its memory", o.MemErrors)
	}
	return o
}

// hurry asks the guest to check all of its memory at once, in place of at its usual
// pace. One that cannot be asked will do so in some seconds.
func (p *pair) hurry() {
	ctx, cancel := context.WithTimeout(p.ctx, hurryMax)
	defer cancel()
	_, _ = p.Command(ctx, "verify 3")
}

// showLogs prints the daemons' logs of a failed test.
func (p *pair) showLogs() {
	if !p.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, h := range p.Hosts() {
		list, err := h.Virsh(ctx, "list", "--all")
		p.t.Logf("domains of %s (%v):\n%s", h.Name, err, list)
		for _, name := range strings.Fields(said(h.Virsh(ctx, "list", "--all", "--name"))) {
			p.t.Logf("%s is %s", name, said(h.Virsh(ctx, "domstate", "--reason", name)))
		}
		logs, _ := h.Root("/var/log/libvirt/qemu")
		files, _ := filepath.Glob(filepath.Join(logs, "*.log"))
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil {
				p.t.Logf("%s, its end:\n%s", filepath.Base(f), b[max(0, len(b)-1500):])
			}
		}
		if h.Daemon == nil {
			continue
		}
		if b, err := os.ReadFile(h.Daemon.LogPath()); err == nil {
			p.t.Logf("daemon of %s:\n%s", h.Name, b[max(0, len(b)-16000):])
		}
	}
}

// said is what a command has to say, be it an error: for what is only shown.
func said(text string, err error) string {
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(text)
}
