package cpulayout

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
	"github.com/virt-ft/virt-ft/internal/vmstate"
)

// clocksOf reads the CPUs of a blob with the layout that was learned from the binary
// that g runs, under TCG and with another CPU model than g's.
func clocksOf(t *testing.T, g *qmptest.Guest, blob []byte, ds vmstate.Devices) []vmstate.CPUClock {
	t.Helper()
	l, err := Learn(t.Context(), fmt.Sprintf("/proc/%d/exe", g.PID), "pc")
	if err != nil {
		t.Fatal(err)
	}
	clocks, err := ds.CPUClocks(blob, l)
	if err != nil {
		t.Fatal(err)
	}
	return clocks
}

// What is read as a CPU's TSC lies between what that CPU read last before the stop,
// and first after it; and that is so for each CPU, machine and stop.
func TestTSCOfKVMGuest(t *testing.T) {
	needKVM(t)
	for machine, cpus := range map[string]int{"pc": 1, "q35": 4} {
		t.Run(machine, func(t *testing.T) {
			g := start(t, machine, cpus, underKVM)
			after := g.beyond(make([]uint64, cpus))
			for range 2 {
				g.do("stop", nil)
				before := g.tscs()
				blob, ds := g.devices()
				clocks := clocksOf(t, g.Guest, blob, ds)
				g.do("cont", nil)
				from := slices.Clone(after)
				after = g.beyond(before)
				if len(clocks) != cpus {
					t.Fatalf("%d CPUs: %+v", len(clocks), clocks)
				}
				for i, c := range clocks {
					if c.Instance != uint32(i) || before[i] > c.TSC || c.TSC > after[i] || c.TSC <= from[i] {
						t.Errorf("CPU %d: %+v; the guest read %d, then %d before and %d after it", i, c, from[i], before[i], after[i])
					}
					if c.TSCkHz == 0 || c.TSCkHz != clocks[0].TSCkHz {
						t.Errorf("CPU %d counts at %d kHz", i, c.TSCkHz)
					}
					if !c.KVMClockOn {
						t.Errorf("CPU %d has not registered a kvmclock page", i)
					}
				}
				t.Logf("%d kHz; at the stop %d ticks after the last that CPU 0 read, %d before the next", clocks[0].TSCkHz, clocks[0].TSC-before[0], after[0]-clocks[0].TSC)
			}
		})
	}
}

// A guest that knows nothing of kvmclock is told from one that does.
func TestNoKVMClockPage(t *testing.T) {
	needKVM(t)
	g := &clockGuest{t: t, dir: t.TempDir()}
	g.Guest = qmptest.Start(t, qmptest.Options{Machine: "q35", Payload: qmptest.Payload{Pages: 1}, Args: append([]string{"-m", "16"}, underKVM...)})
	blob, ds := g.devices()
	for _, c := range clocksOf(t, g.Guest, blob, ds) {
		if c.KVMClockOn || c.TSC == 0 {
			t.Errorf("%+v", c)
		}
	}
	if ns, ok := ds.KVMClock(blob); !ok || ns == 0 {
		t.Errorf("kvmclock %d, %t", ns, ok)
	}
}

// The clocks that are set in device state are those that the guest goes on with
// in another QEMU.
func TestSetClocksOfKVMGuest(t *testing.T) {
	needKVM(t)
	const machine, cpus = "q35", 2
	const ticks = 1 << 50 // days, so that nothing that passes in this test is taken for it
	const days = 30 * 24 * time.Hour
	g := start(t, machine, cpus, underKVM)
	g.beyond(make([]uint64, cpus))
	g.do("stop", nil)
	whole := g.stream()
	g.Kill()
	layout, err := Learn(t.Context(), needQEMU(t), machine)
	if err != nil {
		t.Fatal(err)
	}
	var tsc []uint64
	var clock uint64
	edit := func(blob []byte, ds vmstate.Devices) {
		was := bytes.Clone(blob)
		clocks, err := ds.CPUClocks(blob, layout)
		if err != nil {
			t.Fatal(err)
		}
		tsc = nil
		for _, c := range clocks {
			tsc = append(tsc, c.TSC+ticks)
			if err := ds.SetTSC(blob, layout, c.Instance, c.TSC+ticks); err != nil {
				t.Fatal(err)
			}
		}
		ns, ok := ds.KVMClock(blob)
		clock = ns + uint64(days)
		if err := ds.SetKVMClock(blob, clock); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if changed := differing(was, blob); changed > 8*(cpus+1) {
			t.Errorf("%d bytes were changed", changed)
		}
	}
	near := func(what string, got, set, far uint64) {
		t.Helper()
		if got < set || got-set > far {
			t.Errorf("%s: %d; %d was set", what, got, set)
		}
	}
	loaded := moved(t, whole, g, machine, underKVM, edit)
	blob, ds := loaded.devices()
	for i, c := range clocksOf(t, loaded.Guest, blob, ds) {
		near("TSC as QEMU loaded it", c.TSC, tsc[i], ticks/2)
	}
	loaded.Kill()
	// Another one, as QEMU, where it writes a blob, reads the clock anew from KVM, which
	// it gives the loaded one to only when the guest starts.
	next := moved(t, whole, g, machine, underKVM, edit)
	before := next.tscs()
	next.do("cont", nil)
	seen := next.beyond(before)
	next.do("stop", nil)
	blob, ds = next.devices()
	ns, _ := ds.KVMClock(blob)
	near("kvmclock at the next stop", ns, clock, uint64(days/2))
	t.Logf("kvmclock set to %d, at the next stop %d ns later", clock, ns-clock)
	t.Run("TSC", func(t *testing.T) {
		needTSCOffset(t)
		for i, c := range clocksOf(t, next.Guest, blob, ds) {
			near("TSC that the guest read", seen[i], tsc[i], ticks/2)
			near("TSC at the next stop", c.TSC, seen[i], ticks/2)
		}
	})
}

// needTSCOffset skips the test if this KVM takes a virtual CPU's TSC and does not use
// it: kvm_pvm, which shadows a virtual machine without the processor's help, lets
// the guest read the host's.
func needTSCOffset(t *testing.T) {
	t.Helper()
	const (
		createVM, createVCPU = 0xae01, 0xae41
		setMSRs, getMSRs     = 0x4008ae89, 0xc008ae88
		far                  = 1 << 50
	)
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no KVM: %v", err)
	}
	defer kvm.Close()
	vm, err := unix.IoctlRetInt(int(kvm.Fd()), createVM)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(vm)
	vcpu, err := unix.IoctlRetInt(vm, createVCPU)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(vcpu)
	msrs := struct { // struct kvm_msrs with one entry
		count, _, index, _ uint32
		value              uint64
	}{count: 1, index: 0x10}
	call := func(request uintptr) {
		if n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(vcpu), request, uintptr(unsafe.Pointer(&msrs))); errno != 0 || n != 1 {
			t.Fatalf("ioctl %#x: %d, %v", request, n, errno)
		}
	}
	call(getMSRs)
	was := msrs.value
	msrs.value += far
	call(setMSRs)
	call(getMSRs)
	if msrs.value-was < far/2 {
		t.Skip("this KVM takes a value for a virtual CPU's TSC and ignores it (kvm_pvm does)")
	}
}

// differing counts the bytes that differ.
func differing(a, b []byte) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}
