package e2e

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/lab"
)

// TestShapes takes guests of every shape through protection: while the guest
// works, epochs commit; then it is suspended, and every RAM block of the
// standby must equal the primary's, byte for byte; then it is resumed, its
// QEMU killed, and it goes on at B with right memory.
func TestShapes(t *testing.T) {
	const thp = "/sys/kernel/mm/transparent_hugepage/enabled"
	for _, s := range []struct {
		name  string
		shape lab.GuestOptions
		thp   string // empty: as the machine has it
	}{
		{name: "q35 rich memfd two vCPUs", shape: lab.GuestOptions{Rich: true, Memory: "memfd", VCPUs: 2}, thp: "never"},
		{name: "pc rich", shape: lab.GuestOptions{Machine: "pc", Rich: true}, thp: "never"},
		{name: "two NUMA cells anonymous", shape: lab.GuestOptions{NUMACells: 2, MemMiB: 320}, thp: "always"},
	} {
		if s.shape.Machine == "pc" && !long() {
			continue // TestOperator has such a guest, too
		}
		t.Run(s.name, func(t *testing.T) {
			if s.thp != "" {
				setKernel(t, thp, s.thp)
			}
			p := newPair(t, "")
			g := p.guest(s.shape)
			p.protect(p.A, g.Name, "--epoch-idle", shortEpoch)
			p.epochs(g.Name, 60)
			_, err := p.A.Virsh(p.step(), "suspend", g.Name)
			p.must(err)
			p.epochs(g.Name, 3) // the suspended guest is what was committed last
			p.sameMemory(g.Name)
			_, err = p.A.Virsh(p.step(), "resume", g.Name)
			p.must(err)
			p.tickFrom(p.A)
			p.killQEMU(p.A, g.Name)
			p.state(p.B, g.Name, "active")
			p.verified(p.B)
		})
	}
}

// setKernel writes a kernel setting for the time of the test.
func setKernel(t *testing.T, path, value string) {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("%s is missing", path)
	}
	old := string(before)
	if i, j := strings.IndexByte(old, '['), strings.IndexByte(old, ']'); i >= 0 && j > i {
		old = old[i+1 : j]
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Skipf("%s cannot be set: %v", path, err)
	}
	t.Cleanup(func() { _ = os.WriteFile(path, []byte(old), 0) })
}

// epochs waits until the backup committed n epochs more than A has captured now.
func (p *pair) epochs(domain string, n uint64) {
	p.t.Helper()
	ps, err := p.A.Protections(p.step(), domain)
	p.must(err)
	goal := ps[0].Epoch.Captured + n
	ctx := p.step()
	for {
		s, err := p.B.WaitState(ctx, domain, "standby")
		p.must(err)
		if s.Epoch.Committed >= goal {
			return
		}
		if ctx.Err() != nil {
			p.t.Fatalf("epoch %d is not committed on B, %d is", goal, s.Epoch.Committed)
		}
		time.Sleep(20 * time.Millisecond) // between two questions
	}
}

// sameMemory compares every RAM block of the guest on A with the standby's.
func (p *pair) sameMemory(domain string) {
	p.t.Helper()
	a, ablocks := p.blocks(p.A, domain)
	b, bblocks := p.blocks(p.B, domain)
	for i, x := range ablocks {
		if !x.Migratable {
			continue
		}
		found := false
		for j, y := range bblocks {
			if y.Name == x.Name {
				found = true
				p.sameBlock(x, a, ablocks[i:i+1], b, bblocks[j:j+1])
			}
		}
		if !found {
			p.t.Errorf("RAM block %s is not in the standby", x.Name)
		}
	}
}

func (p *pair) blocks(h *lab.Host, domain string) (int, []guestram.Block) {
	p.t.Helper()
	pid, err := h.QEMU(domain)
	p.must(err)
	bs, err := guestram.Blocks(p.step(), pid, func(ctx context.Context, cmd string) (string, error) {
		return h.Virsh(ctx, "qemu-monitor-command", domain, "--hmp", cmd)
	})
	p.must(err)
	return pid, bs
}

func (p *pair) sameBlock(x guestram.Block, a int, ab []guestram.Block, b int, bb []guestram.Block) {
	p.t.Helper()
	const chunk = 1024 // pages
	am, bm := make([]byte, chunk*guestram.PageSize), make([]byte, chunk*guestram.PageSize)
	different := 0
	for off := uint64(0); off < x.Used; off += chunk * guestram.PageSize {
		n := uint32(min(chunk, (x.Used-off)/guestram.PageSize))
		r := []guestram.Range{{Pages: n, Off: off}}
		size := r[0].Bytes()
		_, err := guestram.Read(a, ab, r, am)
		p.must(err)
		_, err = guestram.Read(b, bb, r, bm)
		p.must(err)
		if bytes.Equal(am[:size], bm[:size]) {
			continue
		}
		for i := 0; i < size; i += guestram.PageSize {
			if !bytes.Equal(am[i:i+guestram.PageSize], bm[i:i+guestram.PageSize]) {
				if different++; different <= 8 {
					p.t.Errorf("RAM block %s: page at %#x differs", x.Name, off+uint64(i))
				}
			}
		}
	}
	if different > 0 {
		p.t.Errorf("RAM block %s: %d pages differ", x.Name, different)
	}
}
