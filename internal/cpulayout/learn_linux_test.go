package cpulayout

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/vmstate"
)

// One layout serves all guests of a binary: it depends on neither machine type, nor
// CPU model, nor accelerator.
func TestLearnDependsOnVersionOnly(t *testing.T) {
	qemu := needQEMU(t)
	want, err := Learn(t.Context(), qemu, "q35")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", want)
	for _, machine := range []string{"pc", "q35"} {
		for _, cpu := range []string{anyCPU, "max,tsc-frequency=2000000000", "EPYC,enforce=off,tsc-frequency=2000000000"} {
			if got, err := learn(t.Context(), qemu, machine, tcg, cpu); err != nil || got != want {
				t.Errorf("%s, %s: %+v, %v", machine, cpu, got, err)
			}
		}
	}
	t.Run("KVM", func(t *testing.T) {
		needKVM(t)
		if got, err := learn(t.Context(), qemu, "pc", "kvm", "host,-arch-capabilities"); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// A guest under TCG: its TSC is QEMU's counter of ticks, which section "timer" has.
func TestAdvanceVirtualClockOfTCGGuest(t *testing.T) {
	const machine, cpus = "pc", 2
	const by = time.Hour
	const kHz = 3_000_000
	const ticks = uint64(by/time.Millisecond) * kHz
	g := start(t, machine, cpus, underTCG)
	g.beyond(make([]uint64, cpus))
	g.do("stop", nil)
	blob, ds := g.devices()
	clocks := clocksOf(t, g.Guest, blob, ds)
	if len(clocks) != cpus {
		t.Fatalf("%+v", clocks)
	}
	for i, c := range clocks {
		if c != (vmstate.CPUClock{Instance: uint32(i), TSCkHz: 1_000_000}) {
			t.Errorf("%+v", c)
		}
	}
	if ns, ok := ds.KVMClock(blob); ok {
		t.Errorf("kvmclock %d", ns)
	}
	early, ok := ds.VirtualClock(blob)
	if !ok || early <= 0 {
		t.Fatal(early, ok)
	}
	read := g.tscs()
	g.do("cont", nil)
	g.beyond(read)
	g.do("stop", nil)
	read = g.tscs()
	whole := g.stream()
	g.Kill()
	var late int64
	next := moved(t, whole, g, machine, underTCG, func(blob []byte, ds vmstate.Devices) {
		if late, ok = ds.VirtualClock(blob); !ok || late <= early {
			t.Errorf("virtual clock %d, then %d, %t", early, late, ok)
		}
		if err := ds.AdvanceVirtualClock(blob, by, kHz); err != nil {
			t.Fatal(err)
		}
	})
	blob, ds = next.devices()
	if ns, ok := ds.VirtualClock(blob); !ok || ns != late+int64(by) {
		t.Errorf("virtual clock %d, %t; %d was set", ns, ok, late+int64(by))
	}
	for i := range read {
		read[i] += ticks
	}
	next.do("cont", nil)
	seen := next.beyond(read) // the guest's own reading has advanced
	if seen[0]-read[0] > ticks/2 {
		t.Errorf("the guest reads %d; %d was set", seen[0], read[0])
	}
	t.Logf("virtual clock %v, set to %v; TSC %d ticks beyond what was set", time.Duration(late), time.Duration(late)+by, seen[0]-read[0])
}

func TestLearnRefuses(t *testing.T) {
	qemu := needQEMU(t)
	for _, c := range []struct{ name, emulator, machine, says string }{
		{"no file", "/nonexistent/qemu", "pc", "no such file"},
		{"not QEMU", "/bin/true", "pc", "QEMU has ended"},
		{"unknown machine", qemu, "nonesuch", "unsupported machine type"},
		{"no name", qemu, "", "no name"},
		{"more options", qemu, "pc,dump-guest-core=on", "no name"},
		{"long name", qemu, strings.Repeat("p", maxNameBytes+1), "no name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if l, err := Learn(t.Context(), c.emulator, c.machine); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%+v, %v", l, err)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Learn(ctx, qemu, "pc"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
