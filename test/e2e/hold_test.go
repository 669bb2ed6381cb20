package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// holdKills is how often TestKilledInTheHold kills a daemon. Before the waker ended what
// the daemon had begun, QEMU died at one kill in ten or so.
const holdKills = 4

// TestKilledInTheHold kills A's daemon while it holds the guest, which writes as fast as it
// can, for a mirror to begin. The guest goes on by itself, and the next daemon protects it.
func TestKilledInTheHold(t *testing.T) {
	w := diskWork(t, calm, lab.GuestDisk{Target: "vda", IOThread: true, SizeMiB: 64}, lab.GuestDisk{Target: "vdb", SizeMiB: 16})
	w.command("disk load 2000 4096")
	before := w.tickFrom(w.A)
	held, err := w.A.Root(filepath.Join("/run/virt-ft/held", strings.TrimSpace(w.virsh(w.A, "domuuid", w.g.Name))))
	w.must(err)
	for kill := range holdKills {
		if kill > 0 {
			w.unprotect(w.g.Name)
		}
		for tries := 1; !w.stoppedInTheHold(held); tries++ {
			if tries == 20 {
				t.Fatal("the daemon was never caught while it held the guest")
			}
			w.must(w.A.Daemon.Process().Signal(syscall.SIGCONT))
			w.unprotect(w.g.Name)
		}
		w.must(w.A.Daemon.Kill())
		if now := w.tickFrom(w.A); now.BootID != before.BootID || now.Pid != before.Pid {
			t.Errorf("it is another guest: %+v, then %+v", before, now)
		}
		w.eventually("the waker has not ended", func() error {
			if _, err := os.Stat(held); !errors.Is(err, os.ErrNotExist) {
				return errors.Join(err, errors.New("its note is there"))
			}
			return nil
		})
		w.must(w.A.Daemon.Start(w.step()))
	}
	w.state(w.A, w.g.Name, "protected")
	w.answered(w.c)
}

// stoppedInTheHold begins a protection and stops the daemon as soon as it has a waker;
// it reports whether the guest stands still.
func (w *workload) stoppedInTheHold(held string) bool {
	w.t.Helper()
	w.protect(w.A, w.g.Name, "--detach")
	for ctx := w.step(); ; {
		if _, err := os.Stat(held); err == nil {
			break
		}
		w.must(ctx.Err())
		time.Sleep(time.Millisecond)
	}
	// Not at once: at first it only starts its waker.
	w.virsh(w.A, "domstate", w.g.Name)
	w.must(w.A.Daemon.Process().Signal(syscall.SIGSTOP))
	return strings.TrimSpace(w.virsh(w.A, "domstate", w.g.Name)) == "paused"
}
