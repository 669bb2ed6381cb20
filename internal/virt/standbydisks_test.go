package virt

import (
	"maps"
	"os"
	"strings"
	"testing"
	"time"
)

// diskSource is the domain of testdata/disks.xml without the disks that are refused.
func diskSource(t *testing.T) string {
	t.Helper()
	doc := readFile(t, "testdata/disks.xml")
	for _, kind := range []string{"network", "volume"} {
		i := strings.Index(doc, "<disk type='"+kind+"'")
		j := i + strings.Index(doc[i:], "</disk>") + len("</disk>")
		doc = doc[:i] + doc[j:]
	}
	return doc
}

func diskImages() map[string]StandbyDisk {
	return map[string]StandbyDisk{
		"vda": {Path: "/ft/web1-vda.raw"}, "vdb": {Path: "/ft/web1-vdb.raw"}, "sda": {Path: "/dev/ft/web1", Block: true},
	}
}

func TestStandbyDisksGolden(t *testing.T) {
	o := StandbyOptions{Protection: "p-1", Generation: 4, PrimaryHost: "host-a", Disks: diskImages()}
	got, err := StandbyXML(diskSource(t), o)
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/standbydisks.golden.xml"
	if *update {
		if err := os.WriteFile(golden, []byte(got+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := readFile(t, golden); got+"\n" != want {
		t.Errorf("got:\n%s", got)
	}
	if again, err := StandbyXML(got, o); err != nil || again != got {
		t.Errorf("a second pass changes something: %v\n%s", err, again)
	}
	for _, trace := range []string{"/srv/web1", "base.qcow2", "mirror", "slice", "reservations", "qcow2", "metadata_cache", "copy_on_read"} {
		if strings.Contains(got, trace) {
			t.Errorf("a trace of the source's images: %s", trace)
		}
	}
	disks, err := Disks(got)
	if err != nil || len(disks) != 7 {
		t.Fatalf("%+v, %v", disks, err)
	}
	for _, d := range disks {
		if image, ours := diskImages()[d.Target]; ours != d.Replicated() || ours && (d.Path != image.Path || d.Format != "raw" || (d.Type == "block") != image.Block) {
			t.Errorf("%+v", d)
		}
	}
}

func TestStandbyDisksRefuses(t *testing.T) {
	without := func(target string) map[string]StandbyDisk {
		images := diskImages()
		delete(images, target)
		return images
	}
	with := func(target, path string) map[string]StandbyDisk {
		images := diskImages()
		images[target] = StandbyDisk{Path: path}
		return images
	}
	src := diskSource(t)
	for _, c := range []struct {
		name, old, new string
		images         map[string]StandbyDisk
		want           string
	}{
		{"no image", "", "", without("vdb"), "disk vdb can be written by the guest and has no image"},
		{"no images", "", "", nil, "has no image"},
		{"an image too many", "", "", with("vdz", "/a"), "no such disk"},
		{"an image for a CD", "", "", with("sdb", "/a"), "no such disk"},
		{"relative", "", "", with("vda", "a/b"), "absolute"},
		{"no path", "", "", with("vda", ""), "absolute"},
		{"shareable", "<serial>S1", "<shareable/><serial>S1", diskImages(), "shareable"},
		{"transient", "<serial>S1", "<transient/><serial>S1", diskImages(), "transient"},
		{"lun", "type='block' device='disk'", "type='block' device='lun'", diskImages(), "passed-through"},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := strings.Replace(src, c.old, c.new, 1)
			if _, err := StandbyXML(changed, StandbyOptions{Protection: "p", Disks: c.images}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error: %v", err)
			}
		})
	}
}

func TestScratchXML(t *testing.T) {
	standby, err := StandbyXML(strings.Replace(diskSource(t), "cache='writeback'", "cache='directsync'", 1),
		StandbyOptions{Protection: "p", Disks: diskImages()})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"vda": "/empty/1", "vdb": "/empty/2", "sda": "/empty/3"}
	got, err := ScratchXML(standby, "web1-rehearsal", standbyUUID, files)
	if err != nil {
		t.Fatal(err)
	}
	disks, err := Disks(got)
	if err != nil {
		t.Fatal(err)
	}
	// the guest sees a write cache with none and writeback, and none with the others
	caches := map[string]string{"vda": "writeback", "vdb": "", "sda": "writethrough"}
	for _, d := range disks {
		if d.Replicated() && (d.Path != files[d.Target] || d.Type != "file" || d.Cache != caches[d.Target]) {
			t.Errorf("%+v", d)
		}
	}
	for _, trace := range []string{"/ft/", "native", "<source path", standbyTitle(t, standby)} {
		if strings.Contains(got, trace) {
			t.Errorf("%q is left:\n%s", trace, got)
		}
	}
	if !strings.Contains(got, "<name>web1-rehearsal</name>") || !strings.Contains(got, standbyUUID) || !strings.Contains(got, `queues="2"`) {
		t.Errorf("got:\n%s", got)
	}
	delete(files, "sda")
	if _, err := ScratchXML(standby, "x", standbyUUID, files); err == nil {
		t.Error("a rehearsal that would open the replica")
	}
	plain := maps.Clone(files)
	clear(plain)
	if _, err := ScratchXML(readFile(t, "testdata/standby.golden.xml"), "x", standbyUUID, plain); err != nil {
		t.Errorf("without disks: %v", err)
	}
	if _, err := ScratchXML("<domain", "x", standbyUUID, nil); err == nil {
		t.Error("no XML")
	}
}

// standbyTitle is the title that StandbyXML made.
func standbyTitle(t *testing.T, standby string) string {
	t.Helper()
	d, err := parseDomain(standby)
	if err != nil {
		t.Fatal(err)
	}
	return d.Title
}

func TestStale(t *testing.T) {
	want := Stale{Generation: 3, ActiveHost: `b<&"'>`, Since: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("x", 3600))}
	got, err := parseStale(want.marshal())
	if err != nil || got.Generation != want.Generation || got.ActiveHost != want.ActiveHost || !got.Since.Equal(want.Since) {
		t.Errorf("%+v, %v of %s", got, err, want.marshal())
	}
	for _, bad := range []string{"", "<stale", "<stale generation='x'/>", "<stale since='noon'/>", Note{}.marshal(noteElement, ""), strings.Repeat(" ", maxNoteBytes+1)} {
		if got, err := parseStale(bad); err == nil {
			t.Errorf("%.40q: %+v", bad, got)
		}
	}
	// a domain that was started from a marked definition, protected again: the mark does not travel
	src := strings.Replace(readFile(t, "testdata/source.xml"), "<metadata>", `<metadata><virtft:stale xmlns:virtft="`+Namespace+`" generation="3" active="b" since="2026-01-02T03:04:05Z"/>`, 1)
	if xml, err := StandbyXML(src, StandbyOptions{Protection: "p"}); err != nil || strings.Contains(xml, "stale") {
		t.Errorf("%v\n%s", err, xml)
	}
}
