package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/hookd"
)

// TestDirs: the hook finds in a configuration what the daemon finds.
func TestDirs(t *testing.T) {
	for _, text := range []string{
		"",
		"state_dir = \"/a\"\nrun_dir = \"/b\"\n",
		"  state_dir='/a b'# one\n# run_dir = \"/no\"\nrun_dir=\"/b\\u00e9#\" # two",
		"host = \"x\"\n\"state_dir\" = \"/a\"\n[control]\nsocket = \"/c\"\n[peers]\nstate_dir = \"10.0.0.1\"\nrun_dir = \"10.0.0.2\"\n",
		"\ufeffstate_dir = \"/a\"",
		"state_dir = \"/a\"\r\nrun_dir = \"/b\"\r\n",
		"transport.mode = \"plain\"\nstate_dir = \"/a\"\n",
	} {
		path := filepath.Join(t.TempDir(), "virt-ft.toml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(path)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if got, want := readDirs(path), (dirs{c.StateDir, c.RunDir}); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	none, err := config.Load(config.DefaultPath + "/none")
	if err == nil {
		t.Fatal(none)
	}
	if c := config.Default(); readDirs(filepath.Join(t.TempDir(), "none")) != (dirs{c.StateDir, c.RunDir}) || configPath != config.DefaultPath {
		t.Error("the defaults are not the daemon's")
	}
}

// TestDirsDamaged: a mistake that keeps the daemon from starting hides nothing.
func TestDirsDamaged(t *testing.T) {
	for text, want := range map[string]dirs{
		"stat_dir = \"/x\"\nstate_dir = \"/a\"\nnonsense here": {"/a", defaultRunDir},
		"state_dir = 7\nrun_dir = \"/b\"":                      {defaultStateDir, "/b"},
		"state_dir = \"/a":                                     {defaultStateDir, defaultRunDir},
		"state_dir = \"\"\nrun_dir":                            {defaultStateDir, defaultRunDir},
		strings.Repeat("x", configLineBytesMax+1) + "\n":       {defaultStateDir, defaultRunDir},
	} {
		path := filepath.Join(t.TempDir(), "virt-ft.toml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := readDirs(path); got != want {
			t.Errorf("%.60q: %v, want %v", text, got, want)
		}
	}
}

// TestUUID: as libvirt writes it, and only that of the domain itself.
func TestUUID(t *testing.T) {
	for xml, want := range map[string]string{
		domainXML: uuid,
		"<?xml version='1.0' encoding='latin1'?><!-- <uuid>x</uuid> --><domain><uuid> " + strings.ToUpper(uuid) + "\n</uuid>": uuid,
		"<domain><name>&lt;uuid&gt;</name><uuid>" + uuid + "</uuid><broken":                                                   uuid,
		"<domain xmlns:x='y'><x:uuid>" + strings.ReplaceAll(uuid, "aa", "bb") + "</x:uuid><uuid>" + uuid + "</uuid>":          uuid,
		"<domain><sysinfo><uuid>" + strings.ReplaceAll(uuid, "aa", "bb") + "</uuid></sysinfo><uuid>" + uuid + "</uuid>":       uuid,
		"<domain><uuid></uuid></domain>":         "",
		"<domain><uuid>" + uuid[:35] + "</uuid>": "",
		"<uuid>" + uuid + "</uuid>":              "",
		"":                                       "",
		"<domain>" + strings.Repeat(" ", xmlBytesMax) + "<uuid>" + uuid + "</uuid>": "",
	} {
		if got, err := readUUID(strings.NewReader(xml)); got != want || (err == nil) != (want != "") {
			t.Errorf("%.80q: %q, %v", xml, got, err)
		}
	}
}

// FuzzUUID: no XML makes the hook panic, or find what is no UUID.
func FuzzUUID(f *testing.F) {
	f.Add(domainXML)
	f.Fuzz(func(t *testing.T, xml string) {
		if got, err := readUUID(strings.NewReader(xml)); err == nil && !hookd.IsUUID(got) {
			t.Errorf("%q", got)
		}
	})
}
