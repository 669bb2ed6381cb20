package virt

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// withInterfaces is the plain domain with interfaces.
func withInterfaces(t *testing.T, xml string) string {
	t.Helper()
	return strings.Replace(readFile(t, "testdata/plain.xml"), "</devices>", xml+"</devices>", 1)
}

func TestNICs(t *testing.T) {
	got, err := NICs(withInterfaces(t, `
<interface type='network'><mac address='52:54:00:00:00:02'/><source network='default' bridge='virbr0'/><target dev='vnet3'/><model type='e1000'/><alias name='net1'/></interface>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><bandwidth><inbound average='1000'/><outbound average='128' peak='256' burst='256'/></bandwidth><target dev='vnet0'/><model type='virtio'/><alias name='net0'/></interface>
<interface type='ethernet'><target dev='tap9' managed='no'/></interface>`))
	want := []NIC{
		{Dev: "vnet3", MAC: "52:54:00:00:00:02", Model: "e1000", Alias: "net1"},
		{Dev: "vnet0", MAC: "52:54:00:00:00:01", Model: "virtio", Alias: "net0"},
		{Dev: "tap9"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	if none, err := NICs(withInterfaces(t, "")); err != nil || len(none) != 0 {
		t.Errorf("no interface: %+v, %v", none, err)
	}
}

// TestNICsRefuses: an interface whose frames could leave unheld is never left out silently.
func TestNICsRefuses(t *testing.T) {
	const tap = `<interface type='bridge'><source bridge='br0'/><target dev='vnet0'/></interface>`
	for _, other := range []string{"direct", "user", "server", "client", "mcast", "udp", "internal", "null", "vds", "vhostuser", "vdpa", "hostdev", "telepathy"} {
		if got, err := NICs(withInterfaces(t, tap+"<interface type='"+other+"'><target dev='x'/></interface>")); !errors.Is(err, ErrNotHeld) {
			t.Errorf("%s: %+v, %v", other, got, err)
		}
	}
	for name, xml := range map[string]string{
		"no target": `<interface type='bridge'><source bridge='br0'/></interface>`,
		"too many":  strings.Repeat(tap, maxNICs+1),
	} {
		if got, err := NICs(withInterfaces(t, xml)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if _, err := NICs("<domain"); err == nil {
		t.Error("no XML")
	}
}
