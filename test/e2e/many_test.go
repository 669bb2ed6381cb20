package e2e

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// manyGuests is how many there are, by the environment variable VIRT_FT_GUESTS;
// `make many` takes more. Each is protected twice, which takes a small machine
// seconds.
func manyGuests() int {
	if n := envInt("VIRT_FT_GUESTS"); n > 0 {
		return n
	}
	return 3
}

// many are guests of one host, by their names.
type many struct {
	*pair
	guests []*lab.Guest
}

// TestMany protects some guests of one host at once, restarts the daemon that has
// them all, and cuts the host's power.
func TestMany(t *testing.T) {
	// Two small hosts with a core each, and all that they do for guests at once: a
	// session that is given up because an answer comes late only makes more work.
	p := newPair(t, "reprotect = false\nheartbeat.limit = \"3s\"\nheartbeat.daemon_grace = \"30s\"\nepoch.idle = \"1s\"\n")
	assets, err := lab.FindAssets()
	skipIfMissing(t, err)
	shape, err := p.InstallBoot(assets)
	p.must(err)
	shape.NIC, shape.MemMiB, shape.Name = true, 112, "many"
	shape.Cmdline = "ft.mem_mb=2 ft.dirty_pages_s=50 ft.verify_pages_s=1000 ft.tick_ms=200"
	m := &many{pair: p}
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"booted", func() { m.guests, err = p.A.StartGuests(p.step(), shape, manyGuests(), 2); p.must(err) }},
		{"protected", m.protectAll},
		{"taken up by another daemon", m.daemonRestarted},
		{"went on after a power loss", m.powerLoss},
	} {
		began := time.Now()
		step.do()
		t.Logf("%d guests %s in %.1f s", manyGuests(), step.what, time.Since(began).Seconds())
	}
}

// protectAll protects them all at the same time.
func (m *many) protectAll() {
	m.t.Helper()
	errs := make([]error, len(m.guests))
	var wg sync.WaitGroup
	for i, g := range m.guests {
		wg.Go(func() { _, errs[i] = m.A.Ctl(m.ctx, "protect", g.Name, "--to", m.B.Name) })
	}
	wg.Wait()
	m.must(errors.Join(errs...))
	m.all(m.A, "protected")
	m.all(m.B, "standby")
}

// all waits until a host says of each guest that it is in one of states.
func (m *many) all(h *lab.Host, states ...string) {
	m.t.Helper()
	m.eventually("not all are "+fmt.Sprint(states), func() error {
		ps, err := h.Protections(m.step(), "")
		if err != nil {
			return err
		}
		is := map[string]string{}
		for _, p := range ps {
			is[p.Domain] = p.State
		}
		for _, g := range m.guests {
			if !slices.Contains(states, is[g.Name]) {
				return fmt.Errorf("%s says %v", h.Name, is)
			}
		}
		return nil
	})
}

// daemonRestarted kills A's daemon: the next one takes up all guests, which are
// still those that they were, and where they were.
func (m *many) daemonRestarted() {
	m.t.Helper()
	pids := func() (all []int) {
		for _, g := range m.guests {
			pid, err := m.A.QEMU(g.Name)
			m.must(err)
			all = append(all, pid)
		}
		return all
	}
	before := pids()
	m.must(m.A.Daemon.Restart(m.step()))
	m.all(m.A, "protected")
	m.all(m.B, "standby")
	if now := pids(); !slices.Equal(before, now) {
		m.t.Errorf("QEMUs %v became %v", before, now)
	}
	m.sound(m.A, time.Now(), 1)
}

// powerLoss cuts A's power.
func (m *many) powerLoss() {
	m.t.Helper()
	began := time.Now()
	m.A.PowerOff()
	m.all(m.B, "active")
	m.sound(m.B, began, 2)
}

// sound waits until each guest was heard from h since then, and has checked all
// of its memory there. It was heard from so many hosts in all, one after the
// other, and forgot nothing.
func (m *many) sound(h *lab.Host, since time.Time, hosts int) {
	m.t.Helper()
	for _, g := range m.guests {
		boot := g.Ready.BootID
		v, err := m.out.WaitVoice(m.step(), boot, func(v lab.Voice) bool { return v.Last.Host == h.Name && v.Last.At.After(since) })
		m.must(err)
		passes := v.Last.Passes
		v, err = m.out.WaitVoice(m.step(), boot, func(v lab.Voice) bool { return v.Last.Passes >= passes+2 })
		m.must(err)
		if v.Last.MemErrors != 0 || v.StepsBack != 0 {
			m.t.Errorf("%s has %d wrong pages, and %d times it told what it had told before", g.Name, v.Last.MemErrors, v.StepsBack)
		}
		if len(v.Speeches) != hosts || v.Last.Host != h.Name {
			m.t.Errorf("%s was heard from %+v", g.Name, v.Speeches)
		}
	}
}
