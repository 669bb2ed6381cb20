package virt

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"
)

func TestNeedsOf(t *testing.T) {
	source := withInterfaces(t, `<interface type='network'><source network='default'/></interface>
		<interface type='bridge'><source bridge='br0'/></interface><interface type='bridge'><source bridge='br0'/></interface><interface type='ethernet'/>`)
	live := withInterfaces(t, `<interface type='bridge'><source network='default' bridge='virbr0'/></interface>`)
	n, err := NeedsOf(source, live)
	if err != nil || n.Name == "" || n.UUID == "" || n.Type != "qemu" || n.Arch != "x86_64" || n.Machine != "pc-q35-7.2" {
		t.Errorf("%+v, %v", n, err)
	}
	// What libvirt made of a network here says nothing of the other host.
	if !slices.Equal(n.Networks, []string{"default"}) || !slices.Equal(n.Bridges, []string{"br0"}) {
		t.Errorf("networks %q, bridges %q", n.Networks, n.Bridges)
	}
	if !strings.HasPrefix(n.CPU, "<cpu ") || !strings.Contains(n.CPU, "mode=\"custom\"") {
		t.Errorf("CPU %q", n.CPU)
	}
	for _, x := range [][2]string{{"<", live}, {source, "<"}} {
		if n, err := NeedsOf(x[0], x[1]); err == nil {
			t.Errorf("%+v of no XML", n)
		}
	}
}

func TestConfinement(t *testing.T) {
	plain := readFile(t, "testdata/plain.xml")
	for label, want := range map[string]string{
		"": "",
		"<seclabel type='dynamic' model='dac' relabel='yes'/>":                                                        "",
		"<seclabel type='none' model='apparmor'/>":                                                                    "",
		"<seclabel type='dynamic' model='dac'/><seclabel type='dynamic' model='apparmor'><label>l</label></seclabel>": "apparmor",
		"<seclabel type='static' model='selinux'><label>l</label></seclabel>":                                         "selinux",
	} {
		if got, err := Confinement(strings.Replace(plain, "</domain>", label+"</domain>", 1)); err != nil || got != want {
			t.Errorf("%s: %q, %v", label, got, err)
		}
	}
}

func TestDirtyRate(t *testing.T) {
	for raw, want := range map[string]struct {
		rate  float64
		known bool
	}{
		`{"status":"measured","dirty-rate":12,"start-time":1,"calc-time":1}`: {12, true},
		`{"status":"measured","dirty-rate":0}`:                               {0, true},
		`{"status":"measuring","start-time":1}`:                              {0, false},
		`{"status":"unstarted"}`:                                             {0, false},
		`{"status":"measured"}`:                                              {0, false},
		`{"status":"measured","dirty-rate":-1}`:                              {0, false},
		`[]`:                                                                 {0, false},
		``:                                                                   {0, false},
	} {
		if rate, known := dirtyRate(json.RawMessage(raw)); rate != want.rate || known != want.known {
			t.Errorf("%s: %v, %v", raw, rate, known)
		}
	}
}

// TestEveryDeviceIsJudged walks the kinds of devices that the XML library knows:
// each must be judged by name, or its element be refused as unknown.
func TestEveryDeviceIsJudged(t *testing.T) {
	silent := map[string]string{ // in no finding, with the reason
		"emulator":    "is compared on the peer",
		"input":       "emulated ones are state of QEMU's like any other; what is passed through is refused",
		"audio":       "a backend on the host; the sound device is judged",
		"nvram":       "of other architectures than x86_64, which are refused",
		"redirfilter": "filters what redirdev brings, which is refused",
		"vsock":       "", "memballoon": "", "crypto": "", "pstore": "",
	}
	devices := reflect.TypeOf(libvirtxml.DomainDeviceList{})
	for i := range devices.NumField() {
		f := devices.Field(i)
		element, _, _ := strings.Cut(f.Tag.Get("xml"), ",")
		if element == "" || element == "-" {
			continue
		}
		if !knownDevice(element) {
			t.Errorf("libvirt's <%s> is refused as unknown, and the XML library knows it: judge it", element)
			continue
		}
		if why, ok := silent[element]; ok && why != "" {
			continue
		}
		list := reflect.New(devices).Elem()
		field := list.Field(i)
		switch f.Type.Kind() {
		case reflect.Slice:
			field.Set(reflect.MakeSlice(f.Type, 1, 1))
		case reflect.Pointer:
			field.Set(reflect.New(f.Type.Elem()))
		default:
			t.Errorf("<%s> is a %s, for which this test has no value", element, f.Type)
			continue
		}
		v := &verdicts{}
		judgeDevices(v, list.Addr().Interface().(*libvirtxml.DomainDeviceList))
		if len(v.list) == 0 {
			t.Errorf("nothing is said of <%s>", element)
		}
	}
}
