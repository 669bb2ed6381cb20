package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

const (
	imagesDir  = "/var/lib/libvirt/images"
	journalDir = "/var/lib/virt-ft/journal"
)

// diskFull fills the backup's storage, that of the images and that of the
// journal. Protection ends with an error that says where; the guest goes on, and
// is protected again by itself when there is room.
func diskFull(w *workload) {
	b := w.Peer(w.home)
	for _, dir := range []string{imagesDir, journalDir} {
		w.must(b.LimitDisk(dir, 128))
	}
	w.protected()
	for _, dir := range []string{imagesDir, journalDir} {
		was := w.report(w.home, w.g.Name)
		w.eventually("nothing says that "+dir+" is full", func() error {
			// Again and again: the journal lets go of what the image has, and
			// could live on that room for long.
			w.must(b.FillDisk(dir))
			r, err := w.tryReport(w.home, w.g.Name)
			if err == nil && (r.State == "protected" || !strings.Contains(r.Error, dir)) {
				err = fmt.Errorf("it is %s: %s", r.State, r.Error)
			}
			return err
		})
		w.answered(w.c)
		w.must(b.FreeDisk(dir))
		w.anew(was)
		w.answered(w.c)
	}
	w.failsOver()
}

// diskFrozen freezes the primary's daemon, which answers no write of QEMU's
// any more, between two checkpoints. The guest's writes go on after
// disks.stall_max. (In a checkpoint the guest waits for the daemon itself.)
func diskFrozen(w *workload) {
	w.protected()
	image, was := w.image(w.home, 0), w.report(w.home, w.g.Name)
	_, err := w.home.Ctl(w.step(), "set", w.g.Name, "--epoch-min", "3s", "--epoch-idle", "3s")
	w.must(err)
	w.committed(2) // the second of them has just been taken after a long wait
	thaw := w.freeze(w.home.Daemon.Process().Pid())
	// More than can be under way at a time: those got their answers.
	const many = 50
	seen := map[time.Time]bool{}
	w.eventually("the guest does not write any more", func() error {
		for end := time.Now().Add(time.Second); time.Now().Before(end) && len(seen) < many; time.Sleep(time.Millisecond) {
			info, err := os.Stat(image.Path)
			if err != nil {
				return err
			}
			seen[info.ModTime()] = true
		}
		if len(seen) < many {
			return fmt.Errorf("%d of %d writes", len(seen), many)
		}
		return nil
	})
	thaw()
	_, err = w.home.Ctl(w.step(), "set", w.g.Name, "--epoch-min", "2ms", "--epoch-idle", "100ms")
	w.must(err)
	w.anew(was)
	w.answered(w.c)
	w.sameDisks()
	w.failsOver()
}

// TestDiskPlaces takes a guest with two disks to a place of its operator's choice, and
// through a power cut.
func TestDiskPlaces(t *testing.T) {
	w := diskWork(t, calm, lab.GuestDisk{Target: "vda"}, lab.GuestDisk{Target: "vdb", SizeMiB: 32})
	w.story("places", diskPlaces) // first: no copy of the guest's disks is known yet
	w.story("power cut", func(w *workload) {
		w.configured(calm + "[disks]\ndurability = \"fsync\"\n")
		diskPowerCut(w)
	})
}

// diskPlaces asks for copies in all sorts of places. What is refused leaves
// nothing behind, and a file that is there is not touched.
func diskPlaces(w *workload) {
	b := w.Peer(w.home)
	w.command("disk vda load 40 1048576")
	w.written("vda", 150) // what clients are told counts, too: far more than there is room for
	w.load()
	const small, mine = imagesDir + "/small", imagesDir + "/mine.raw"
	w.must(b.LimitDisk(small, 4))
	foreign := []byte("somebody else's\n")
	w.must(os.WriteFile(b.ImagePath(imagesDir+"/web1-vda.raw"), foreign, 0o600))
	for _, refused := range []struct{ disks, says string }{
		{"", "--disk vda=PATH"},
		{"vda=" + small + "/vda.raw", small},
		{"vdz=" + mine, "vdz"},
		{"vda=" + mine + ",vdb=" + mine, mine},
		{"vda=mine.raw", "absolute"},
	} {
		args := []string{"protect", w.g.Name, "--to", b.Name}
		if refused.disks != "" {
			args = append(args, "--disk", refused.disks)
		}
		_, err := w.home.Ctl(w.step(), args...)
		if err == nil || !strings.Contains(err.Error(), refused.says) {
			w.t.Errorf("protect --disk %q: %v", refused.disks, err)
		}
		w.answered(w.c)
	}
	for _, dir := range []string{imagesDir, small} {
		files, err := os.ReadDir(b.ImagePath(dir))
		w.must(err)
		for _, f := range files {
			if !f.IsDir() && f.Name() != "web1-vda.raw" {
				w.t.Errorf("a refused protection left %s/%s", dir, f.Name())
			}
		}
	}
	w.protected("--disk", "vda="+mine)
	if image := w.image(b, 0); image.Path != b.ImagePath(mine) {
		w.t.Errorf("the copy is at %s", image.Path)
	}
	w.sameDisks()
	w.failsOver()
	theirs := b.ImagePath(imagesDir + "/web1-vda.raw")
	if got, err := os.ReadFile(theirs); err != nil || !bytes.Equal(got, foreign) {
		w.t.Errorf("a file of somebody else's is now %q, %v", got[:min(len(got), 100)], err)
	}
	w.must(os.Remove(theirs))
}
