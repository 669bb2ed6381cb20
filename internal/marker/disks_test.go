package marker

import (
	"os"
	"testing"
)

// TestDisks: what is known of images survives a restart, and a damaged record
// is an error, not an empty one.
func TestDisks(t *testing.T) {
	dir := t.TempDir()
	r, err := OpenDisks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Change("u", "web1", func(*DiskRecord) {}); err != nil {
		t.Fatal(err)
	}
	img := DiskImage{Path: "/img/vda.raw", Kind: ImageSource, Raw: true}
	if err := r.Change("u", "web1", func(rec *DiskRecord) { rec.Disks["vda"] = img }); err != nil {
		t.Fatal(err)
	}
	err = r.Change("u", "web1", func(rec *DiskRecord) {
		rec.Become(ImageStale)
		rec.Active, rec.Since = "host-b", 2
	})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := DisksAt(dir).Get("u")
	if img.Kind = ImageStale; err != nil || rec.Disks["vda"] != img || rec.Active != "host-b" || rec.Since != 2 || rec.Domain != "web1" {
		t.Errorf("%+v, %v", rec, err)
	}
	for _, damage := range []string{"{", `{"version":7}`} {
		if err := os.WriteFile(r.path("u"), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Get("u"); err == nil {
			t.Errorf("%q is a record", damage)
		}
		if err := r.Change("u", "web1", func(*DiskRecord) { t.Error("a damaged record is changed") }); err == nil {
			t.Errorf("%q was replaced", damage)
		}
	}
}
