package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// Roots of the hosts of every pair: directories with another release of the
// distribution, see lab.Options. Any of these tests can be run with them.
const (
	rootA = "VIRT_FT_ROOT_A"
	rootB = "VIRT_FT_ROOT_B"
	// newRoot is what TestCompat makes its pairs of; test/compat/root.sh makes it.
	newRoot = "VIRT_FT_NEW_ROOT"
)

// release is what a host says of its libvirt and QEMU, and of its distribution.
type release struct {
	System  string `json:"system"`
	Libvirt string `json:"libvirt"`
	QEMU    string `json:"qemu"`
}

// verdict is what TestCompat prints for each of its pairs, as a line of JSON.
type verdict struct {
	Pair    string  `json:"pair"`
	A       release `json:"a"`
	B       release `json:"b"`
	Machine string  `json:"machine"`
	Verdict string  `json:"verdict"`
}

func (p *pair) release(h *lab.Host) (r release) {
	p.t.Helper()
	out, err := h.Virsh(p.step(), "version")
	p.must(err)
	find := func(what string) string {
		m := regexp.MustCompile(what + ` ([0-9.]+)`).FindStringSubmatch(out)
		if m == nil {
			p.t.Fatalf("%s does not say its version of %s:\n%s", h.Name, what, out)
		}
		return m[1]
	}
	r.Libvirt, r.QEMU = find("Using library: libvirt"), find("Running hypervisor: QEMU")
	out, err = h.Run(p.step(), "cat", "/etc/debian_version")
	p.must(err)
	r.System = "Debian " + strings.TrimSpace(out)
	return r
}

// machine is the machine type of a running domain.
func (p *pair) machine(h *lab.Host, domain string) string {
	p.t.Helper()
	out, err := h.Virsh(p.step(), "dumpxml", domain)
	p.must(err)
	m := regexp.MustCompile(`machine='([^']+)'`).FindStringSubmatch(out)
	if m == nil {
		p.t.Fatalf("no machine type in\n%s", out)
	}
	return m[1]
}

// TestCompat takes a guest with a disk through protection, loss of its QEMU, the
// way back, and loss of its host, where both hosts have a newer QEMU and libvirt
// than the machine, and where only the second has; the other way round, protect
// must refuse before anything happened.
func TestCompat(t *testing.T) {
	root := os.Getenv(newRoot)
	if root == "" {
		t.Skipf("%s is not set: make compat makes another Debian and sets it", newRoot)
	}
	for _, c := range []struct {
		name string
		a, b string
		tell func(*workload) string
	}{
		{"both new", root, root, compatWhole},
		{"old to new", "", root, compatWhole},
		{"new to old", root, "", compatRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(rootA, c.a)
			t.Setenv(rootB, c.b)
			w := diskWork(t, again)
			v := verdict{Pair: c.name, A: w.release(w.A), B: w.release(w.B), Machine: w.machine(w.A, w.g.Name), Verdict: "failed"}
			defer func() {
				line, err := json.Marshal(v)
				w.must(err)
				fmt.Println(string(line))
			}()
			v.Verdict = c.tell(w)
		})
	}
}

// compatWhole is a guest's way there and back.
func compatWhole(w *workload) string {
	w.protected()
	w.sameDisks()
	w.killQEMU(w.home, w.g.Name)
	w.moved()
	w.sound()
	w.state(w.home, w.g.Name, "protected") // by itself, to where it came from
	w.movesBack()
	w.sound()
	lost := w.home
	lost.PowerOff()
	w.moved()
	w.sound()
	w.powerOn(lost)
	return "protected, failed over twice, failed back"
}

// compatRefused is a guest that the other host's QEMU does not know the machine
// of.
func compatRefused(w *workload) string {
	_, err := w.A.Ctl(w.step(), "protect", w.g.Name, "--to", w.B.Name)
	if err == nil || !strings.Contains(err.Error(), "machine") {
		w.t.Errorf("protect to a QEMU that does not know the guest's machine: %v", err)
	}
	w.answered(w.c)
	w.verified(w.A)
	return fmt.Sprintf("refused: %v", err)
}
