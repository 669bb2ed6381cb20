package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/replica"
)

// TestDiskRecords: what is known of images survives a restart, and a damaged
// record is an error, not an empty one.
func TestDiskRecords(t *testing.T) {
	dir := t.TempDir()
	r, err := openDiskRecords(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{disks: r}
	if had, err := d.noteStale("u", "web1", "host-b", 2); had || err != nil {
		t.Errorf("a guest without disks became stale: %v, %v", had, err)
	}
	if _, err := os.Stat(r.path("u")); !os.IsNotExist(err) {
		t.Errorf("nothing is known, and written down: %v", err)
	}
	img := diskImage{Path: "/img/vda.raw", Kind: imageSource, Raw: true}
	if err := r.change("u", "web1", func(rec *diskRecord) { rec.Disks["vda"] = img }); err != nil {
		t.Fatal(err)
	}
	if had, err := d.noteStale("u", "web1", "host-b", 2); !had || err != nil {
		t.Fatal(had, err)
	}
	again, err := openDiskRecords(dir)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := again.get("u")
	if img.Kind = imageStale; err != nil || rec.Disks["vda"] != img || rec.Active != "host-b" || rec.Since != 2 || rec.Domain != "web1" {
		t.Errorf("%+v, %v", rec, err)
	}
	for _, damage := range []string{"{", `{"version":7}`} {
		if err := os.WriteFile(r.path("u"), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := r.get("u"); err == nil {
			t.Errorf("%q is a record", damage)
		}
		if err := r.change("u", "web1", func(*diskRecord) { t.Error("a damaged record is changed") }); err == nil {
			t.Errorf("%q was replaced", damage)
		}
	}
}

// TestPlaceDisk: an image that is not known as a copy of the disk, or as its
// past, is never written over.
func TestPlaceDisk(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"there.raw", "web1-vdb.raw"} {
		if err := os.WriteFile(path(name), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config.Default()
	cfg.Host, cfg.Disks.Place = "host-b", filepath.Join(dir, "{domain}-{disk}.raw")
	b := &backup{base: base{d: &Daemon{cfg: cfg}, name: "web1", uuid: "u"}}
	for _, x := range []struct {
		name   string
		known  diskImage
		disk   replica.Disk
		want   string
		refuse string
	}{
		{name: "by the rule", disk: replica.Disk{Name: "vda"}, want: path("web1-vda.raw")},
		{name: "named", disk: replica.Disk{Name: "vda", Path: path("x.raw")}, want: path("x.raw")},
		{name: "a device", disk: replica.Disk{Name: "vda", Path: "/dev/null"}, want: "/dev/null"},
		{name: "a foreign file by the rule", disk: replica.Disk{Name: "vdb"}, refuse: "not known to be a copy"},
		{name: "a foreign file, named", disk: replica.Disk{Name: "vda", Path: path("there.raw")}, refuse: "not known to be a copy"},
		{name: "relative", disk: replica.Disk{Name: "vda", Path: "x.raw"}, refuse: "absolute"},
		{name: "not clean", disk: replica.Disk{Name: "vda", Path: dir + "/../x.raw"}, refuse: "clean"},
		{name: "a copy", known: diskImage{path("there.raw"), imageCopy, true, 8, 0}, disk: replica.Disk{Name: "vda"}, want: path("there.raw")},
		{name: "a part of one", known: diskImage{path("there.raw"), imagePart, true, 8, 0}, disk: replica.Disk{Name: "vda", Path: path("there.raw")}, want: path("there.raw")},
		{name: "its past", known: diskImage{path("there.raw"), imageStale, true, 0, 0}, disk: replica.Disk{Name: "vda"}, want: path("there.raw")},
		{name: "its past in a format", known: diskImage{path("there.raw"), imageStale, false, 0, 0}, disk: replica.Disk{Name: "vda"}, want: path("web1-vda.raw")},
		{name: "its present", known: diskImage{path("there.raw"), imageSource, true, 0, 0}, disk: replica.Disk{Name: "vda"}, want: path("web1-vda.raw")},
		{name: "its present, named", known: diskImage{path("there.raw"), imageSource, true, 0, 0}, disk: replica.Disk{Name: "vda", Path: path("there.raw")}, refuse: "what the guest ran on"},
		{name: "elsewhere than known", known: diskImage{path("there.raw"), imageCopy, true, 8, 0}, disk: replica.Disk{Name: "vda", Path: path("y.raw")}, want: path("y.raw")},
	} {
		rec := diskRecord{Disks: map[string]diskImage{}}
		if x.known != (diskImage{}) {
			rec.Disks[x.disk.Name] = x.known
		}
		got, err := b.placeDisk(rec, x.disk)
		switch {
		case x.refuse == "" && (err != nil || got != x.want):
			t.Errorf("%s: %s, %v; want %s", x.name, got, err, x.want)
		case x.refuse != "" && (err == nil || !strings.Contains(err.Error(), x.refuse)):
			t.Errorf("%s: %s, %v; want an error with %q", x.name, got, err, x.refuse)
		}
	}
}
