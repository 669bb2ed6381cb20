package cpulayout

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
	"github.com/virt-ft/virt-ft/internal/vmstate"
)

//go:embed testdata/clock.bin
var clockImage []byte // never written

// stepMax bounds one wait for a guest.
const stepMax = 30 * time.Second

// accelerators are arguments of QEMU.
var (
	underTCG = []string{"-accel", "tcg", "-cpu", "qemu64,tsc-frequency=1000000000"}
	underKVM = []string{"-accel", "kvm", "-cpu", "host,-arch-capabilities"}
)

func needKVM(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no KVM: %v", err)
	}
	f.Close()
}

func needQEMU(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	return path
}

// clockGuest is the guest of testdata/clock.S.
type clockGuest struct {
	*qmptest.Guest
	t    *testing.T
	dir  string
	cpus int
}

// start boots it, or lets a QEMU wait for a migration stream, if args say so.
func start(t *testing.T, machine string, cpus int, accel []string, args ...string) *clockGuest {
	t.Helper()
	dir := t.TempDir()
	kernel := filepath.Join(dir, "clock.bin")
	if err := os.WriteFile(kernel, clockImage, 0o600); err != nil {
		t.Fatal(err)
	}
	all := append([]string{"-m", "16", "-smp", fmt.Sprint(cpus), "-kernel", kernel}, accel...) // QEMU takes the last -kernel
	g := qmptest.Start(t, qmptest.Options{Machine: machine, Args: append(all, args...)})
	return &clockGuest{Guest: g, t: t, dir: dir, cpus: cpus}
}

// until polls, because a guest without devices reports nothing by itself; not all
// the time, as each look at memory makes QEMU interrupt a CPU of the guest.
func (g *clockGuest) until(what string, is func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(stepMax); !is(); {
		if time.Now().After(deadline) {
			g.t.Fatalf("%s: not within %v", what, stepMax)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (g *clockGuest) do(command string, args any, files ...*os.File) json.RawMessage {
	g.t.Helper()
	answer, err := g.QMPWithFiles(g.t.Context(), command, args, files...)
	if err != nil {
		g.t.Fatalf("%s: %v", command, err)
	}
	return answer
}

// tscs returns what each CPU has written last.
func (g *clockGuest) tscs() []uint64 {
	g.t.Helper()
	out := make([]uint64, g.cpus)
	for i := range out {
		want := uint64(0x200000 + 4096*i)
		text, err := g.HMP(g.t.Context(), fmt.Sprintf("xp /1gx %#x", want))
		if err != nil {
			g.t.Fatal(err)
		}
		var at uint64
		if _, err := fmt.Sscanf(text, "%x: 0x%x", &at, &out[i]); err != nil || at != want {
			g.t.Fatalf("xp: %q: %v", text, err)
		}
	}
	return out
}

// beyond waits until every CPU has written more than it had in before, and returns that.
func (g *clockGuest) beyond(before []uint64) (now []uint64) {
	g.t.Helper()
	g.until("the guest's CPUs go on", func() bool {
		now = g.tscs()
		for i := range now {
			if now[i] <= before[i] {
				return false
			}
		}
		return true
	})
	return now
}

// devices takes the device state as capture does; a guest that is stopped stays so.
func (g *clockGuest) devices() ([]byte, vmstate.Devices) {
	g.t.Helper()
	file := filepath.Join(g.dir, "devices")
	g.do("xen-save-devices-state", map[string]any{"filename": file, "live": false})
	blob, err := os.ReadFile(file)
	if err != nil {
		g.t.Fatal(err)
	}
	ds, err := vmstate.ParseDevices(blob)
	if err != nil {
		g.t.Fatal(err)
	}
	return blob, ds
}

// stream lets the guest migrate into a socket of ours.
func (g *clockGuest) stream() []byte {
	g.t.Helper()
	near, far, err := socketPair()
	if err != nil {
		g.t.Fatal(err)
	}
	defer near.Close()
	g.do("getfd", map[string]any{"fdname": "out"}, far)
	far.Close()
	if err := near.SetDeadline(time.Now().Add(stepMax)); err != nil {
		g.t.Fatal(err)
	}
	g.do("migrate", map[string]any{"uri": "fd:out"})
	all, err := io.ReadAll(near)
	if err != nil {
		g.t.Fatal(err)
	}
	return all
}

// moved puts the guest of a migration stream into another QEMU, stopped, with its
// device state changed by edit.
func moved(t *testing.T, whole []byte, g *clockGuest, machine string, accel []string, edit func(blob []byte, ds vmstate.Devices)) *clockGuest {
	t.Helper()
	s, err := vmstate.ReadIncoming(bytes.NewReader(whole), nil)
	if err != nil {
		t.Fatal(err)
	}
	edit(s.Devices, s.Found)
	next := start(t, machine, g.cpus, accel, "-S", "-incoming", "defer")
	near, far, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	next.do("getfd", map[string]any{"fdname": "in"}, far)
	far.Close()
	next.do("migrate-incoming", map[string]any{"uri": "fd:in"})
	if err := near.SetDeadline(time.Now().Add(stepMax)); err != nil {
		t.Fatal(err)
	}
	in := vmstate.NewIncoming(near, s.Machine, s.Blocks)
	zero := make([]byte, vmstate.PageSize)
	_, err = vmstate.ReadIncoming(bytes.NewReader(whole), func(block string, off uint64, page []byte) error {
		if page == nil {
			page = zero
		}
		return in.Pages(block, off, page)
	})
	if err = errors.Join(err, in.Finish(s.Devices), near.Close()); err != nil {
		t.Fatal(err)
	}
	next.until("loading", func() bool {
		var m struct{ Status string }
		if err := json.Unmarshal(next.do("query-migrate", nil), &m); err != nil {
			t.Fatal(err)
		}
		if m.Status == "failed" {
			t.Fatal("QEMU does not load it")
		}
		return m.Status == "completed"
	})
	return next
}
