package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/replica"
)

// TestNoteStale: what the guest was moved away from is known as its past, also
// by the next daemon; a guest without disks has none, and is elsewhere as well.
func TestNoteStale(t *testing.T) {
	dir := t.TempDir()
	r, err := marker.OpenDisks(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{disks: r}
	if had, err := d.noteStale("u", "web1", "host-b", 2); had || err != nil {
		t.Errorf("a guest without disks became stale: %v, %v", had, err)
	}
	if rec, err := r.Get("u"); err != nil || rec.Active != "host-b" || rec.Since != 2 {
		t.Errorf("nothing says where a guest without disks is: %+v, %v", rec, err)
	}
	img := marker.DiskImage{Path: "/img/vda.raw", Kind: marker.ImageSource, Raw: true}
	if err := r.Change("u", "web1", func(rec *marker.DiskRecord) { rec.Disks["vda"] = img }); err != nil {
		t.Fatal(err)
	}
	if had, err := d.noteStale("u", "web1", "host-b", 2); !had || err != nil {
		t.Fatal(had, err)
	}
	rec, err := marker.DisksAt(dir).Get("u")
	if img.Kind = marker.ImageStale; err != nil || rec.Disks["vda"] != img || rec.Active != "host-b" || rec.Since != 2 || rec.Domain != "web1" {
		t.Errorf("%+v, %v", rec, err)
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
	there := func(kind marker.ImageKind, raw bool, size uint64) marker.DiskImage {
		return marker.DiskImage{Path: path("there.raw"), Kind: kind, Raw: raw, SizeBytes: size}
	}
	b := &backup{base: base{d: &Daemon{cfg: cfg}, name: "web1", uuid: "u"}}
	for _, x := range []struct {
		name   string
		known  marker.DiskImage
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
		{name: "a copy", known: there(marker.ImageCopy, true, 8), disk: replica.Disk{Name: "vda"}, want: path("there.raw")},
		{name: "a part of one", known: there(marker.ImagePart, true, 8), disk: replica.Disk{Name: "vda", Path: path("there.raw")}, want: path("there.raw")},
		{name: "its past", known: there(marker.ImageStale, true, 0), disk: replica.Disk{Name: "vda"}, want: path("there.raw")},
		{name: "its past in a format", known: there(marker.ImageStale, false, 0), disk: replica.Disk{Name: "vda"}, want: path("web1-vda.raw")},
		{name: "its present", known: there(marker.ImageSource, true, 0), disk: replica.Disk{Name: "vda"}, want: path("web1-vda.raw")},
		{name: "its present, named", known: there(marker.ImageSource, true, 0), disk: replica.Disk{Name: "vda", Path: path("there.raw")}, refuse: "what the guest ran on"},
		{name: "elsewhere than known", known: there(marker.ImageCopy, true, 8), disk: replica.Disk{Name: "vda", Path: path("y.raw")}, want: path("y.raw")},
	} {
		rec := marker.DiskRecord{Disks: map[string]marker.DiskImage{}}
		if x.known != (marker.DiskImage{}) {
			rec.Disks[x.disk.Name] = x.known
		}
		got, err := b.d.placeDisk(b.uuid, b.name, rec, x.disk)
		switch {
		case x.refuse == "" && (err != nil || got != x.want):
			t.Errorf("%s: %s, %v; want %s", x.name, got, err, x.want)
		case x.refuse != "" && (err == nil || !strings.Contains(err.Error(), x.refuse)):
			t.Errorf("%s: %s, %v; want an error with %q", x.name, got, err, x.refuse)
		}
	}
}
