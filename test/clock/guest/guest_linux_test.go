package guest

import (
	"os/exec"
	"testing"
)

// Without KVM the guest comes up all the same, on all of its processors, and says
// that it has no clock to look at.
func TestUpWithoutClock(t *testing.T) {
	if _, err := exec.LookPath(emulator); err != nil {
		t.Skipf("%s is not installed", emulator)
	}
	m, err := Start(t.Context(), Options{CPUs: 3, TCG: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for n := range 3 {
		if c := m.CPU(n); c != (CPU{State: NoClock}) {
			t.Errorf("processor %d: %+v", n, c)
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestReads(t *testing.T) {
	if err := Lacks(); err != nil {
		t.Skip(err)
	}
	const cpus = 4
	m, err := Start(t.Context(), Options{CPUs: cpus})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var before [cpus]CPU
	for n := range cpus {
		before[n] = m.CPU(n)
	}
	for n := range cpus {
		for m.CPU(n).Reads < before[n].Reads+2000 {
			if err := m.pause(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if c := m.CPU(n); c.State != Running || c.Back+c.Behind+c.TSCBack > 0 {
			t.Errorf("processor %d: %+v", n, c)
		}
		if page, ok := m.Page(n); !ok || page == [PageBytes]byte{} {
			t.Errorf("pvclock page of processor %d: % x", n, page)
		}
	}
}
