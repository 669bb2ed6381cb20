package lab

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCapabilitiesAreLent copies what a host's libvirtd found out to another
// host: whole files only, and the newer content.
func TestCapabilitiesAreLent(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "deep", "to")
	copyCapabilities(from, to) // nothing there: nothing happens
	if _, err := os.Stat(to); err == nil {
		t.Fatal("a directory was made for nothing")
	}
	put := func(dir, name, content string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(from, "new.xml", "<qemuCaps>new"+capabilitiesEnd)
	put(from, "changed.xml", "<qemuCaps>after"+capabilitiesEnd)
	put(to, "changed.xml", "<qemuCaps>before"+capabilitiesEnd)
	put(from, "torn.xml", "<qemuCaps>half")
	put(to, "torn.xml", "<qemuCaps>whole"+capabilitiesEnd)
	put(from, "other.txt", capabilitiesEnd)
	copyCapabilities(from, to)
	want := map[string]string{"new.xml": "new", "changed.xml": "after", "torn.xml": "whole"}
	files, err := os.ReadDir(to)
	if err != nil || len(files) != len(want) {
		t.Errorf("copied: %v, %v", files, err)
	}
	for name, text := range want {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != "<qemuCaps>"+text+capabilitiesEnd {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	copyCapabilities("", to)
	copyCapabilities(to, "")
}
