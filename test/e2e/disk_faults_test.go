package e2e

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// diskMirrorAborted ends the block job that mirrors the disk, as an operator
// may, under load: QEMU does not tell us of writes any more, and no epoch may be
// committed in which one is missing.
func diskMirrorAborted(w *workload) {
	w.protected()
	abort := func() {
		time.Sleep(rand.N(100 * time.Millisecond)) // at no particular moment of an epoch
		_, err := w.home.Virsh(w.step(), "blockjob", w.g.Name, "vda", "--abort")
		w.must(err)
	}
	was := w.report(w.home, w.g.Name)
	abort()
	w.anew(was)
	w.answered(w.c)
	w.sameDisks()
	// Nobody may decide who goes on after the abort, so that the backup's last
	// committed epoch is the guest's only future.
	id := filepath.Join(w.Dir, "shared", arbiterIdentity)
	for range 2 {
		w.protected()
		w.must(os.Rename(id, id+".away"))
		abort()
		w.eventually("it is still protected", func() error {
			if r, err := w.tryReport(w.home, w.g.Name); err != nil || r.State == "protected" {
				return errStillThere
			}
			return nil
		})
		w.killQEMU(w.home, w.g.Name)
		w.must(os.Rename(id+".away", id))
		w.moved()
		w.sound()
	}
}

// diskPowerCut cuts the power of the primary with writes that the backup has
// never seen, and protects back to it: its image is brought up to date, by what
// differs, and the guest goes on there.
func diskPowerCut(w *workload) {
	w.command("disk vdb load 400 8192")
	w.written("vdb", 300)
	w.command("disk vdb quiet")
	w.protected()
	all := w.report(w.home, w.g.Name).Disks[1].SentBytes
	lost := w.home
	lost.PowerOff()
	w.moved()
	w.sound()
	w.must(lost.PowerOn(w.step()))
	w.must(lost.Daemon.Start(w.step()))
	w.protected()
	if d := w.report(w.home, w.g.Name).Disks; d[1].SentBytes > all/8 || d[0].SentBytes == 0 {
		w.t.Errorf("of a disk that nobody wrote to %d bytes were sent first; %s was brought up to date by %+v", all, lost.Name, d)
	}
	w.load()
	w.sameDisks()
	w.failsOver()
}

// diskBackupKilled kills the backup's daemon at random moments under load.
// The next one finishes what its journal holds before the primary is back: the
// copy has all that was ever acknowledged.
func diskBackupKilled(w *workload) {
	w.protected()
	b := w.Peer(w.home)
	for range 2 {
		time.Sleep(rand.N(time.Second)) // when exactly we strike is the experiment
		was, copied := w.report(w.home, w.g.Name), w.image(b, 0)
		w.must(b.Daemon.Kill())
		w.must(w.CutReplication())
		w.must(b.Daemon.Start(w.step()))
		w.recordsIn(copied)
		w.must(w.HealReplication())
		w.anew(was)
		w.answered(w.c)
	}
	w.sameDisks()
	w.failsOver()
}
