package virt

import (
	"strings"
	"testing"
)

func TestSameHardware(t *testing.T) {
	doc := readFile(t, "testdata/disks.xml")
	for _, c := range []struct {
		name, old, new string
		same           bool
	}{
		{"nothing", "", "", true},
		{"white space", "<devices>", "<devices>\n\n", true},
		{"order of attributes", "type='file' device='cdrom'", `device="cdrom" type="file"`, true},
		{"id", "id='7'", "id='8'", true},
		{"node index", "index='5'", "index='11'", true},
		{"alias", "<alias name='virtio-disk0'/>", "", true},
		{"label", "+64055:+109", "+1:+1", true},
		{"disk's label", "<seclabel model='dac' relabel='no'/>", "", true},
		{"ready", "ready='yes'", "ready='abort'", true},
		{"backing file's index", "index='6'", "index='66'", true},
		{"no backing store", "<backingStore/>", "", true},
		{"balloon", "131072</currentMemory>", "65536</currentMemory>", true},
		{"clock", "adjustment='0'", "adjustment='-3600'", true},
		{"agent", "state='disconnected'", "state='connected'", true},
		{"tray", " tray='open'", "", true},
		{"title", "<memory ", "<title>x</title><description>y</description><metadata><a:b xmlns:a='c'><title/></a:b></metadata><memory ", true},

		{"medium", "/srv/a.iso", "/srv/b.iso", false},
		{"image", "/srv/web1.img", "/srv/web1.snap", false},
		{"cache", "cache='none'", "cache='directsync'", false},
		{"serial", "<serial>S1", "<serial>S2", false},
		{"memory", "131072</memory>", "262144</memory>", false},
		{"vcpu", ">1</vcpu>", ">2</vcpu>", false},
		{"address", "bus='0x03'", "bus='0x05'", false},
		{"disk more", "<controller", "<disk type='file'><target dev='vdz'/></disk><controller", false},
		{"disk less", "<memballoon model='virtio'>", "<memballoon model='none'>", false},
		{"unknown device", "<controller", "<telepathy/><controller", false},
		{"a title elsewhere", "<controller", "<title/><controller", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := strings.Replace(doc, c.old, c.new, 1)
			if changed == doc && c.old != c.new {
				t.Fatalf("testdata/disks.xml has no %q", c.old)
			}
			for _, pair := range [][2]string{{doc, changed}, {changed, doc}} {
				if same, err := SameHardware(pair[0], pair[1]); err != nil || same != c.same {
					t.Errorf("%v, %v", same, err)
				}
			}
		})
	}
}

func TestSameHardwareMirror(t *testing.T) {
	doc := readFile(t, "testdata/disks.xml")
	i, j := strings.Index(doc, "<mirror"), strings.Index(doc, "</mirror>")+len("</mirror>")
	if same, err := SameHardware(doc, doc[:i]+doc[j:]); err != nil || !same {
		t.Errorf("a copy changes the hardware: %v, %v", same, err)
	}
}

func TestSameHardwareRefuses(t *testing.T) {
	good := readFile(t, "testdata/plain.xml")
	for _, bad := range []string{"", "text", "<domain>", "<network/>", good + good, strings.Repeat(" ", maxDomainXMLBytes+1), "<domain/></domain>"} {
		for _, pair := range [][2]string{{good, bad}, {bad, good}} {
			if same, err := SameHardware(pair[0], pair[1]); err == nil {
				t.Errorf("%.20q: %v", bad, same)
			}
		}
	}
}
