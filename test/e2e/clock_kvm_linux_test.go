package e2e

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/clock/guest"
)

const (
	// clockEpochs is through how many epochs the guest's clock is followed.
	clockEpochs = 60
	// clockSamples is how many of the guest's reads are looked at to know its clock.
	clockSamples = 500
	// takeoverErrMax is by how much the guest's clock may be wrong after a failover:
	// far less than the time in which nobody runs the guest.
	takeoverErrMax = 2 * time.Millisecond
)

// TestKVMClock protects a guest under KVM that does nothing but read its clock.
// The clock goes on in pauses, and over the failover, as if nothing had been, and
// is never read to go back.
func TestKVMClock(t *testing.T) {
	if err := guest.Lacks(); err != nil {
		t.Skip(err)
	}
	p := newPair(t, "")
	emulator, err := p.InstallKVM()
	skipIfMissing(t, err)
	firmware := filepath.Join(p.Dir, "clock.bin")
	p.must(os.WriteFile(firmware, guest.Payload{Pages: 64, Every: 1000}.Firmware(), 0o644))
	g, err := p.A.StartGuest(p.step(), lab.GuestOptions{Machine: "pc", MemMiB: guest.RAMBytes >> 20, Memory: "memfd",
		Firmware: firmware, Emulator: emulator})
	p.must(err)
	a := p.clockOf(p.A, g.Name)
	bare := a.ahead()

	p.protect(p.A, g.Name, "--epoch-idle", shortEpoch)
	p.epochs(g.Name, clockEpochs)
	lost, paused := bare-a.ahead(), p.paused(g.Name)
	s := p.state(p.A, g.Name, "protected")
	t.Logf("%d epochs: paused for %v in all, of which the clock lost %v: %+v", s.Epoch.Captured, paused, lost, s.Clock)
	if s.Clock.State != "corrected" || s.Clock.Kept == 0 {
		t.Errorf("clock is %q (%s), kept at %d resumes", s.Clock.State, s.Clock.Why, s.Clock.Kept)
	}
	if lost > paused/4 || lost < -paused/4 {
		t.Errorf("the guest's clock lost %v in pauses of %v", lost, paused)
	}
	a.neverBack()

	before := a.ahead()
	p.killQEMU(p.A, g.Name)
	dead := time.Now()
	s = p.state(p.B, g.Name, "active")
	b := p.clockOf(p.B, g.Name)
	wrong, outage := b.ahead()-before, time.Since(dead)
	t.Logf("failover: %.1f ms by status, %v until it was seen; the clock is wrong by %v; %+v", s.FailoverMs, outage, wrong, s.Clock)
	if wrong > takeoverErrMax || wrong < -takeoverErrMax {
		t.Errorf("the guest's clock is wrong by %v after a failover of %v", wrong, outage)
	}
	if s.Clock.State != "corrected" || s.Clock.StepUs <= 0 {
		t.Errorf("on the backup the clock is %q (%s), set forward by %v µs", s.Clock.State, s.Clock.Why, s.Clock.StepUs)
	}
	b.neverBack()
}

// kvmClock looks at the clock of a guest from outside.
type kvmClock struct {
	*pair
	guest.View
}

// clockOf waits until the guest on h reads its clock.
func (p *pair) clockOf(h *lab.Host, domain string) *kvmClock {
	p.t.Helper()
	pid, blocks := p.blocks(h, domain)
	for _, b := range blocks {
		if b.Used != guest.RAMBytes {
			continue
		}
		m, err := guestram.OpenShared(pid, b)
		p.must(err)
		p.t.Cleanup(func() { m.Close() })
		c := &kvmClock{p, m.Bytes()}
		p.eventually("guest under KVM on "+h.Name, func() error {
			if c.CPUs() < 1 || c.CPU(0).State != guest.Running {
				return errors.New("it does not read a clock")
			}
			return nil
		})
		return c
	}
	p.t.Fatalf("none of the RAM blocks is the guest's memory: %v", blocks)
	return nil
}

// ahead is the guest's clock less the machine's CLOCK_MONOTONIC_RAW, which both
// hosts have in common. Each sample is a little old when it is seen: the youngest
// of many tells.
func (c *kvmClock) ahead() time.Duration {
	c.t.Helper()
	best, seen, end := int64(math.MinInt64), c.Seq(0), time.Now().Add(stepMax)
	for n := 0; n < clockSamples; {
		seq := c.Seq(0)
		if seq == seen {
			if time.Now().After(end) {
				c.t.Fatal("the guest does not read its clock any more")
			}
			continue
		}
		_, ns, ok := c.Sample(0)
		var raw unix.Timespec
		c.must(unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &raw))
		if ok {
			best, seen, n = max(best, int64(ns)-raw.Nano()), seq, n+1
		}
	}
	return time.Duration(best)
}

// neverBack fails if the guest has ever read a time before another one.
func (c *kvmClock) neverBack() {
	c.t.Helper()
	for n := range c.CPUs() {
		if cpu := c.CPU(n); cpu.Back+cpu.Behind > 0 || cpu.Reads == 0 {
			c.t.Errorf("processor %d read times before others: %+v", n, cpu)
		}
	}
}

// paused sums up the pauses of the epochs that A tells of.
func (p *pair) paused(domain string) (sum time.Duration) {
	p.t.Helper()
	out, err := p.A.Ctl(p.step(), "epochs", domain, "--last", strconv.Itoa(10*clockEpochs), "-o", "json")
	p.must(err)
	for lines := json.NewDecoder(strings.NewReader(out)); lines.More(); {
		var e struct {
			PausedMs float64 `json:"paused_ms"`
		}
		p.must(lines.Decode(&e))
		sum += time.Duration(e.PausedMs * float64(time.Millisecond))
	}
	return sum
}
