package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// diskLoad is what every disk of a guest is written to with: so many times a
// second, so many bytes.
const diskLoad = "disk load 60 8192"

// calm lets these tests, which are about disks, run on a machine that is busy: no
// host counts as lost because its daemon waited for a processor.
const calm = "[heartbeat]\nlimit = \"3s\"\n"

// workload is a guest with disks under load, clients whose answers are given
// only after their record is durable on vda, and the host where it lives.
type workload struct {
	*pair
	g     *lab.Guest
	c     *lab.Client
	disks []lab.GuestDisk
	home  *lab.Host
}

// diskWork boots a guest with disks on A, not protected yet. The first disk is
// vda, raw, and holds what clients are told.
func diskWork(t *testing.T, extra string, disks ...lab.GuestDisk) *workload {
	t.Helper()
	p := newPair(t, extra)
	if len(disks) == 0 {
		disks = []lab.GuestDisk{{Target: "vda"}}
	}
	g := p.guest(small(lab.GuestOptions{Disks: disks, AcceptDisk: disks[0].Target}))
	w := &workload{pair: p, g: g, disks: disks, home: p.A}
	w.load()
	w.c = p.clients()
	return w
}

// protected protects the guest from where it lives, unless it is.
func (w *workload) protected(args ...string) {
	w.t.Helper()
	w.kept(w.home, w.g.Name, args...)
	w.answered(w.c)
}

// command asks the guest, wherever it runs.
func (w *workload) command(line string) map[string]any {
	w.t.Helper()
	answer, err := w.Command(w.step(), line)
	w.must(err)
	return answer
}

// load lets the guest write to all of its disks from now on.
func (w *workload) load() {
	w.t.Helper()
	w.command(diskLoad)
}

// written waits until the guest's load wrote to a disk of records n times from now on.
func (w *workload) written(target string, n float64) {
	w.t.Helper()
	writes := func() float64 {
		all, _ := w.command("disk status")["disks"].(map[string]any)
		disk, _ := all[target].(map[string]any)
		so, ok := disk["writes"].(float64)
		if !ok {
			w.t.Fatalf("the guest does not say how often it wrote to %s: %v", target, all)
		}
		return so
	}
	before := writes()
	w.eventually("the guest writes too little", func() error {
		if now := writes(); now < before+n {
			return fmt.Errorf("%v times to %s, then %v", before, target, now)
		}
		return nil
	})
}

// diskStatus is what status says of a disk.
type diskStatus struct {
	Name         string `json:"name"`
	Path         string `json:"path"`
	SizeBytes    uint64 `json:"size_bytes"`
	WrittenBytes uint64 `json:"written_bytes"`
	SentBytes    uint64 `json:"sent_bytes"`
	EqualBytes   uint64 `json:"equal_bytes"`
}

// report is what status says of a guest with disks on a host.
type report struct {
	State string       `json:"state"`
	Since time.Time    `json:"since"`
	Error string       `json:"error"`
	Disks []diskStatus `json:"disks"`
}

func (p *pair) report(h *lab.Host, domain string) report {
	p.t.Helper()
	r, err := p.tryReport(h, domain)
	p.must(err)
	return r
}

func (p *pair) tryReport(h *lab.Host, domain string) (report, error) {
	ctx, cancel := context.WithTimeout(p.ctx, stepMax)
	defer cancel()
	var all []report
	if err := h.PollInto(ctx, domain, &all); err != nil || len(all) != 1 {
		return report{}, fmt.Errorf("status of %s on %s: %+v (%w)", domain, h.Name, all, err)
	}
	return all[0], nil
}

// anew waits until the guest is protected again by itself, in a session that
// began after the one that was reports of.
func (w *workload) anew(was report) report {
	w.t.Helper()
	var now report
	w.eventually("it is not protected again", func() (err error) {
		if now, err = w.tryReport(w.home, w.g.Name); err == nil && (now.State != "protected" || now.Since.Equal(was.Since)) {
			err = fmt.Errorf("it is %s since %v, and was since %v: %s", now.State, now.Since, was.Since, now.Error)
		}
		return err
	})
	return now
}

// image is where the guest's disk i is on a host: what the domain there says,
// the guest's or its standby's.
func (w *workload) image(h *lab.Host, i int) lab.Image {
	w.t.Helper()
	out, err := h.Virsh(w.step(), "domblklist", w.g.Name)
	w.must(err)
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == w.disks[i].Target {
			return lab.Image{Path: h.ImagePath(f[1]), Format: strings.TrimPrefix(filepath.Ext(f[1]), ".")}
		}
	}
	w.t.Fatalf("the domain on %s has no disk %s:\n%s", h.Name, w.disks[i].Target, out)
	return lab.Image{}
}

// still does something while the guest is suspended, and so writes nothing.
func (w *workload) still(do func()) {
	w.t.Helper()
	_, err := w.home.Virsh(w.step(), "suspend", w.g.Name)
	w.must(err)
	do()
	_, err = w.home.Virsh(w.step(), "resume", w.g.Name)
	w.must(err)
	w.tickFrom(w.home)
}

// sameDisks compares every disk's images on both hosts at a moment in the middle
// of the load: after the suspended guest's epoch is committed, the copies
// become equal, and stay so.
func (w *workload) sameDisks() {
	w.t.Helper()
	w.still(func() {
		w.committed(3)
		for i, d := range w.disks {
			here, there := w.image(w.home, i), w.image(w.Peer(w.home), i)
			w.eventually("disk "+d.Target+" does not become equal", func() error {
				return lab.CompareImages(w.ctx, here, there)
			})
		}
	})
}

// committed waits until the backup committed n epochs more than are captured
// now.
func (w *workload) committed(n uint64) {
	w.t.Helper()
	ps, err := w.home.Protections(w.step(), w.g.Name)
	w.must(err)
	goal := ps[0].Epoch.Captured + n
	w.eventually("no epochs are committed", func() error {
		ps, err := w.Peer(w.home).Poll(w.ctx, w.g.Name)
		if err != nil {
			return err
		}
		if ps[0].State != "standby" || ps[0].Epoch.Committed < goal {
			return fmt.Errorf("%s, %d of %d: %s", ps[0].State, ps[0].Epoch.Committed, goal, ps[0].Error)
		}
		return nil
	})
}

// sound asks the guest and its clients, and looks at the images it runs on:
// nothing that was acknowledged is missing, and nothing is there from an epoch
// that was discarded.
func (w *workload) sound() {
	w.t.Helper()
	w.answered(w.c)
	w.faithful(w.c)
	found := w.command("disk check")
	for _, bad := range []string{"missing", "foreign", "torn", "failures"} {
		if n, ok := found[bad].(float64); !ok || n != 0 {
			w.t.Errorf("the guest on %s finds its disks wrong: %v", w.home.Name, found)
			break
		}
	}
	w.still(w.recorded)
	w.verified(w.home)
}

// recorded looks at the images that the guest, suspended, runs on.
func (w *workload) recorded() {
	w.t.Helper()
	for i, d := range w.disks {
		image := w.image(w.home, i)
		switch {
		case d.FS == "ext4":
			if err := lab.Fsck(w.step(), image); err != nil {
				w.t.Errorf("disk %s: %v", d.Target, err)
			}
		case i == 0:
			w.recordsIn(image)
		}
	}
}

// recordsIn looks for what clients were told in an image of vda, raw, that
// nobody writes to.
func (w *workload) recordsIn(image lab.Image) {
	w.t.Helper()
	r, err := lab.CheckRecords(image.Path, 0, w.c.Journal)
	w.must(err)
	if err := r.Err(); err != nil || r.Acked == 0 {
		w.t.Errorf("%s: %d acknowledged records looked for: %v", image.Path, r.Acked, err)
	}
}

// moved waits until the guest goes on at the other host, which is its home then.
func (w *workload) moved() {
	w.t.Helper()
	w.home = w.Peer(w.home)
	w.state(w.home, w.g.Name, "active")
	w.answered(w.c)
}

// failsOver kills the guest's QEMU, and asks on the other host for all that was
// acknowledged.
func (w *workload) failsOver() {
	w.t.Helper()
	w.killQEMU(w.home, w.g.Name)
	w.moved()
	w.sound()
}

// story is pair.story for a guest with disks. Its stories find the guest on home,
// wherever that is.
func (w *workload) story(name string, tell func(*workload)) {
	w.t.Helper()
	w.pair.story(name, func(p *pair) {
		whole := w.pair
		w.pair = p
		defer func() { w.pair = whole }()
		tell(w)
	})
}

// TestDisk takes one guest with a disk under load there and back: moved in order, and
// through losses of a host, of its QEMU, of what mirrors its disk, of either host's
// daemon, and of the room for its copy. Then it is ended.
func TestDisk(t *testing.T) {
	const patient = "[heartbeat]\ndaemon_grace = \"60s\"\nlimit = \"60s\"\n"
	w := diskWork(t, again)
	settings := again
	for _, s := range []struct {
		name, settings string
		tell           func(*workload)
	}{
		{"failback", again, failback},
		{"host lost", again, comesBackAfterLoss},
		{"failover", calm, diskFailover},
		{"mirror aborted", calm, diskMirrorAborted},
		{"frozen", patient + "[disks]\nstall_max = \"1s\"\n", diskFrozen},
		// Nobody decides that the guest goes on alone: what clients are told
		// meanwhile, the backup had.
		{"backup killed", patient, diskBackupKilled},
		{"full", calm + "[disks]\njournal_bytes_max = 16777216\n", diskFull},
		{"last words", calm + "[disks]\njournal_bytes_max = 16777216\n", lastWords},
	} {
		w.story(s.name, func(w *workload) {
			if s.settings != settings {
				w.configured(s.settings)
				settings = s.settings
			}
			s.tell(w)
		})
	}
}

// diskFailover loses QEMU with its disk under load. What the backup has is the
// disk of the last committed checkpoint.
func diskFailover(w *workload) {
	w.protected()
	w.command("disk trim")
	w.command("disk zero")
	w.sameDisks()
	w.failsOver()
}
