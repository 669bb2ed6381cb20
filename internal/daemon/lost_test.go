package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/marker"
)

const testUUID = "7c1f8d1e-0c54-4a6b-9d0f-0f6a4c1f2b11"

// recovered is a daemon without libvirt that has taken up everything.
func recovered(t *testing.T) *Daemon {
	t.Helper()
	c := config.Default()
	c.Host, c.StateDir, c.RunDir = "host-a", t.TempDir(), t.TempDir()
	d, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if d.store, err = marker.Open(c.StateDir); err != nil {
		t.Fatal(err)
	}
	if d.disks, err = marker.OpenDisks(c.StateDir); err != nil {
		t.Fatal(err)
	}
	d.ctx, d.cancel = t.Context(), func() {}
	d.recovered = true
	return d
}

func mark(t *testing.T, d *Daemon, role marker.Role, phase marker.Phase) {
	t.Helper()
	if err := d.store.Put(marker.Marker{Domain: "web1", UUID: testUUID, Role: role, Phase: phase, Generation: 3, PeerName: "host-b", Reason: "it ended unseen"}); err != nil {
		t.Fatal(err)
	}
}

// What the hook is told: no domain is started that is, or may be, somewhere else.
func TestMayStart(t *testing.T) {
	for _, x := range []struct {
		name  string
		leave func(*testing.T, *Daemon)
		want  string // in the refusal; empty: it may start
	}{
		{"nothing", func(*testing.T, *Daemon) {}, ""},
		{"ended", func(t *testing.T, d *Daemon) { mark(t, d, marker.RolePrimary, marker.PhaseEnded) }, ""},
		{"alone", func(t *testing.T, d *Daemon) { mark(t, d, marker.RolePrimary, marker.PhaseAlone) }, ""},
		{"cut off", func(t *testing.T, d *Daemon) { mark(t, d, marker.RolePrimary, marker.PhaseProtected) }, "host-b is not known"},
		{"told", func(t *testing.T, d *Daemon) { mark(t, d, marker.RolePrimary, marker.PhaseTold) }, "host-b is not known"},
		{"lost", func(t *testing.T, d *Daemon) {
			mark(t, d, marker.RolePrimary, marker.PhaseLost)
			d.lostOnes[testUUID] = true
		}, "it ended unseen"},
		{"elsewhere", func(t *testing.T, d *Daemon) {
			mark(t, d, marker.RolePrimary, marker.PhaseEnded)
			if _, err := d.noteStale(testUUID, "web1", "host-b", 4); err != nil {
				t.Fatal(err)
			}
		}, "went on at host-b"},
		{"here again", func(t *testing.T, d *Daemon) {
			if _, err := d.noteStale(testUUID, "web1", "host-b", 4); err != nil {
				t.Fatal(err)
			}
			d.noteHere(testUUID, "web1")
		}, ""},
		{"not taken up", func(_ *testing.T, d *Daemon) { d.untaken[testUUID] = true }, "being looked at"},
		{"not recovered", func(_ *testing.T, d *Daemon) { d.recovered = false }, "being looked at"},
		{"damaged", func(t *testing.T, d *Daemon) {
			if err := os.WriteFile(filepath.Join(d.cfg.StateDir, testUUID+".json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "damaged"},
		{"our own standby", func(t *testing.T, d *Daemon) {
			mark(t, d, marker.RoleBackup, marker.PhaseStandby)
			t.Cleanup(d.making(testUUID))
		}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			d := recovered(t)
			x.leave(t, d)
			err := d.mayStart(t.Context(), testUUID, "web1")
			if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
				t.Errorf("%v, want %q", err, x.want)
			}
		})
	}
	d := recovered(t)
	mark(t, d, marker.RolePrimary, marker.PhaseProtected)
	d.making(testUUID)() // and it is made
	if d.mayStart(t.Context(), testUUID, "web1") == nil {
		t.Error("a standby's pass outlives its making")
	}
}

// A person's word lets a domain be started from what is of the past, and only with
// --force; what is settled already is not claimed again.
func TestReleaseStale(t *testing.T) {
	d := recovered(t)
	mark(t, d, marker.RolePrimary, marker.PhaseEnded)
	if err := d.disks.Change(testUUID, "web1", func(rec *marker.DiskRecord) {
		rec.Disks["vda"] = marker.DiskImage{Path: "/x", Kind: marker.ImageSource, Raw: true}
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.noteStale(testUUID, "web1", "host-b", 4); err != nil {
		t.Fatal(err)
	}
	err := d.release(t.Context(), "web1", false)
	if e, ok := err.(*control.Error); !ok || e.Code != control.CodeConflict || !strings.Contains(err.Error(), "--force") {
		t.Errorf("%v", err)
	}
	if d.mayStart(t.Context(), testUUID, "web1") == nil {
		t.Error("it may be started although nobody insisted")
	}
	if done, err := d.trySettle(t.Context(), marker.Marker{UUID: testUUID}, false); !done || err != nil {
		t.Errorf("what is not lost is settled: %v, %v", done, err)
	}
}
