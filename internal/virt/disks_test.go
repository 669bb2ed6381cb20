package virt

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"
)

// withDevices is the plain domain with devices more.
func withDevices(t *testing.T, xml string) string {
	t.Helper()
	return strings.Replace(readFile(t, "testdata/plain.xml"), "</devices>", xml+"</devices>", 1)
}

func TestDisks(t *testing.T) {
	got, err := Disks(readFile(t, "testdata/disks.xml"))
	want := []Disk{
		{Target: "vda", Bus: "virtio", Device: "disk", Type: "file", Format: "raw", Path: "/srv/web1.img", Cache: "none", Unmap: true},
		{Target: "vdb", Bus: "virtio", Device: "disk", Type: "file", Format: "qcow2", Path: "/srv/web1-top.qcow2", Backing: true},
		{Target: "sda", Bus: "scsi", Device: "disk", Type: "block", Format: "raw", Path: "/dev/vg/web1", Cache: "writeback"},
		{Target: "sdb", Bus: "sata", Device: "cdrom", Type: "file", Format: "raw", Path: "/srv/a.iso", ReadOnly: true},
		{Target: "sdc", Bus: "sata", Device: "cdrom", Type: "file", ReadOnly: true, Empty: true},
		{Target: "fda", Bus: "fdc", Device: "floppy", Type: "file", Empty: true},
		{Target: "vdc", Bus: "virtio", Device: "disk", Type: "network", Format: "raw", Shareable: true},
		{Target: "vdd", Bus: "virtio", Device: "disk", Type: "volume", Format: "qcow2", Transient: true},
		{Target: "vde", Bus: "virtio", Device: "disk", Type: "file", Format: "raw", Path: "/srv/ro.img", ReadOnly: true},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v\n%+v", err, got)
	}
	var replicated []string
	for _, d := range got {
		if d.Replicated() {
			replicated = append(replicated, d.Target)
		}
	}
	if s := strings.Join(replicated, " "); s != "vda vdb sda vdc vdd" {
		t.Errorf("replicated: %s", s)
	}
	if none, err := Disks(readFile(t, "testdata/plain.xml")); err != nil || len(none) != 0 {
		t.Errorf("no disk: %+v, %v", none, err)
	}
}

func TestDisksRefuses(t *testing.T) {
	const disk = `<disk type='file' device='disk'><source file='/a'/><target dev='%s' bus='virtio'/></disk>`
	var many strings.Builder
	for i := range maxDisks + 1 {
		fmt.Fprintf(&many, disk, fmt.Sprintf("vd%d", i))
	}
	for name, xml := range map[string]string{
		"two of a name": withDevices(t, strings.Repeat(fmt.Sprintf(disk, "vda"), 2)),
		"no target":     withDevices(t, `<disk type='file' device='disk'><source file='/a'/></disk>`),
		"too many":      withDevices(t, many.String()),
		"no XML":        "<domain",
	} {
		if got, err := Disks(xml); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got, err := Copies(withDevices(t, many.String())); err == nil {
		t.Errorf("copies of too many: %+v", got)
	}
}

const ourMirror = `<mirror type='network' job='copy'%s><format type='raw'/>` +
	`<source protocol='nbd' name='vda' index='3'><host transport='unix' socket='/run/virt-ft/vda.sock'/></source><backingStore/></mirror>`

func TestCopies(t *testing.T) {
	const tail = `<target dev='%s' bus='virtio'/></disk>`
	disk := func(target, mirror string) string {
		return `<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/a'/><backingStore/>` + mirror + fmt.Sprintf(tail, target)
	}
	ours := Copy{Target: "vda", Socket: "/run/virt-ft/vda.sock", Export: "vda"}
	for _, ready := range []string{"", "yes", "abort", "pivot"} {
		attr := ""
		if ready != "" {
			attr = " ready='" + ready + "'"
		}
		got, err := Copies(withDevices(t, disk("vda", fmt.Sprintf(ourMirror, attr))+disk("vdb", "")))
		want := ours
		want.Ready = ready
		if err != nil || len(got) != 1 || got[0] != want || !got[0].Ours() {
			t.Errorf("%q: %+v, %v", ready, got, err)
		}
	}
	for name, c := range map[string]struct {
		mirror string
		want   []Copy
	}{
		"to a file":     {`<mirror type='file' file='/b' format='raw' job='copy' ready='yes'><format type='raw'/><source file='/b'/></mirror>`, []Copy{{Target: "vda", Ready: "yes"}}},
		"active commit": {`<mirror type='file' job='active-commit'><format type='raw'/><source file='/b'/></mirror>`, nil},
		"ended":         {`<mirror type='network' job=''><source protocol='nbd' name='vda'><host transport='unix' socket='/s'/></source></mirror>`, nil},
		"by TCP":        {`<mirror type='network' job='copy'><source protocol='nbd' name='vda'><host name='h' port='1'/></source></mirror>`, []Copy{{Target: "vda"}}},
		"another's":     {`<mirror type='network' job='copy'><source protocol='nbd' name='x'><host transport='unix' socket='/s'/></source></mirror>`, []Copy{{Target: "vda", Socket: "/s", Export: "x"}}},
	} {
		got, err := Copies(withDevices(t, disk("vda", c.mirror)))
		if err != nil || !reflect.DeepEqual(got, c.want) || len(got) > 0 && got[0].Ours() {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestJudgeDisks judges a plain domain with one disk.
func TestJudgeDisks(t *testing.T) {
	disk := func(attrs, inside string) string {
		return "<disk " + attrs + ">" + inside + "</disk>"
	}
	const file, vda = "type='file' device='disk'", "<target dev='vda' bus='virtio'/>"
	for _, c := range []struct {
		name, xml string
		level     Level
		text      string
	}{
		{"raw file", disk(file, `<driver name='qemu' type='raw' cache='none'/><source file='/a'/><backingStore/>`+vda), OK, "its copy on the backup is a raw image"},
		{"block device", disk("type='block' device='disk'", `<driver name='qemu' type='raw' werror='stop'/><source dev='/dev/a'/>`+vda), OK, "raw image"},
		{"no device attribute", disk("type='file'", `<source file='/a'/>`+vda), OK, "raw image"},
		{"backing file", disk(file, `<driver name='qemu' type='qcow2' copy_on_read='on'/><source file='/a'/><backingStore type='file'><format type='raw'/><source file='/b'/><backingStore/></backingStore>`+vda), OK, "merged"},
		{"limits", disk(file, `<source file='/a'/><iotune><total_bytes_sec>1</total_bytes_sec></iotune>`+vda), OK, "raw image"},
		{"our copy", disk(file, `<source file='/a'/>`+fmt.Sprintf(ourMirror, " ready='yes'")+vda), OK, "raw image"},
		{"unsafe cache", disk(file, `<driver name='qemu' type='raw' cache='unsafe'/><source file='/a'/>`+vda), Warn, "flushes are ignored"},
		{"shareable", disk(file, `<source file='/a'/><shareable/>`+vda), Fail, "other guests"},
		{"transient", disk(file, `<source file='/a'/><transient/>`+vda), Fail, "thrown away"},
		{"network", disk("type='network' device='disk'", `<source protocol='rbd' name='p/i'><host name='h'/></source>`+vda), Fail, "shared or remote storage"},
		{"volume", disk("type='volume' device='disk'", `<source pool='p' volume='v'/>`+vda), Fail, "storage pool"},
		{"directory", disk("type='dir' device='disk'", `<source dir='/a'/>`+vda), Fail, "directory"},
		{"descriptors", disk(file, `<source fdgroup='g'/>`+vda), Fail, "neither file nor device"},
		{"new kind", disk("type='telepathy' device='disk'", vda), Fail, "does not know"},
		{"LUKS", disk(file, `<source file='/a'><encryption format='luks'/></source>`+vda), Fail, "in clear"},
		{"old LUKS", disk(file, `<source file='/a'/>`+vda+`<encryption format='luks'/>`), Fail, "in clear"},
		{"LUKS below", disk(file, `<source file='/a'/><backingStore type='file'><source file='/b'/><backingStore type='file'><source file='/c'><encryption format='luks'/></source></backingStore></backingStore>`+vda), Fail, "in clear"},
		{"another job", disk(file, `<source file='/a'/><mirror type='file' job='active-commit'><source file='/b'/></mirror>`+vda), Fail, "active-commit"},
		{"another copy", disk(file, `<source file='/a'/><mirror type='file' job='copy' ready='yes'><source file='/b'/></mirror>`+vda), Fail, "block job"},
		{"SD card", disk(file, `<source file='/a'/><target dev='vda' bus='sd'/>`), Fail, `bus "sd"`},
		{"read-only network", disk("type='network' device='disk'", `<source protocol='rbd' name='p/i'><host name='h'/></source><readonly/>`+vda), OK, "read-only"},
		{"read-only NVMe", disk("type='nvme' device='disk'", `<source type='pci' namespace='1'><address domain='0' bus='1' slot='0' function='0'/></source><readonly/>`+vda), Fail, "NVMe"},
	} {
		t.Run(c.name, func(t *testing.T) {
			expect(t, Judge(withDevices(t, c.xml)), "disk vda", c.level, c.text)
		})
	}
}

func TestCopyXML(t *testing.T) {
	got, err := copyXML("/run/a&b's", "v<a>")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`socket='/run/a&amp;b&#39;s'`, `name='v&lt;a&gt;'`, `type='raw'`} {
		if !strings.Contains(got, part) {
			t.Errorf("%s is missing in %s", part, got)
		}
	}
	for _, c := range [][2]string{{"relative", "vda"}, {"", "vda"}, {"/s", ""}} {
		if got, err := copyXML(c[0], c[1]); err == nil {
			t.Errorf("%q: %s", c, got)
		}
	}
}

func TestCopyEvent(t *testing.T) {
	const copyJob = libvirt.DOMAIN_BLOCK_JOB_TYPE_COPY
	for status, want := range map[libvirt.ConnectDomainEventBlockJobStatus]string{
		libvirt.DOMAIN_BLOCK_JOB_READY:     "copyReady vda",
		libvirt.DOMAIN_BLOCK_JOB_COMPLETED: "copyEnded vda completed",
		libvirt.DOMAIN_BLOCK_JOB_FAILED:    "copyEnded vda failed",
		libvirt.DOMAIN_BLOCK_JOB_CANCELED:  "copyEnded vda canceled",
	} {
		if kind, detail, ok := copyEvent("vda", copyJob, status); !ok || string(kind)+" "+detail != want {
			t.Errorf("%d: %s %s", status, kind, detail)
		}
		if kind, _, ok := copyEvent("vda", libvirt.DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT, status); ok {
			t.Errorf("a commit is a %s", kind)
		}
	}
	if kind, _, ok := copyEvent("vda", copyJob, 99); ok {
		t.Errorf("unknown status is a %s", kind)
	}
}
