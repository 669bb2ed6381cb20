package virt

import "testing"

func TestPinsMemory(t *testing.T) {
	disk := func(inside string) string {
		return "<domain type='qemu'><name>x</name><devices><disk type='file' device='cdrom'>" + inside + "</disk></devices></domain>"
	}
	for _, c := range []struct {
		name, xml string
		want      bool
	}{
		{"no disk", "<domain type='qemu'><name>x</name></domain>", false},
		{"page cache", disk("<driver name='qemu' type='raw'/><source file='/a.iso'/><target dev='sda'/>"), false},
		{"none", disk("<driver name='qemu' type='raw' cache='none'/><source file='/a.iso'/><target dev='sda'/>"), true},
		{"directsync", disk("<driver name='qemu' type='raw' cache='directsync'/><source file='/a.iso'/><target dev='sda'/>"), true},
		{"empty drive", disk("<driver name='qemu' type='raw' cache='none'/><target dev='sda'/>"), false},
		{"not XML", "<domain", true},
	} {
		if got := PinsMemory(c.xml); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
