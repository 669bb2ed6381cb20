package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigured: what cannot work is told apart from what may work next time.
func TestConfigured(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "virt-ft.toml")
	for text, why := range map[string]string{
		"host = \"a\"\ntransport.mode = \"plain\"\n":                      "",
		"host = \"a\"\nnonsense = 1\n":                                    "nonsense",
		"host = \"a\"\ntransport.ca = \"" + dir + "/no-authority.pem\"\n": "no-authority.pem",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		says, err := os.Create(filepath.Join(dir, "said"))
		if err != nil {
			t.Fatal(err)
		}
		a := &app{out: newTerminal(says), err: newTerminal(says), config: path}
		_, err = a.configured()
		says.Close()
		said, _ := os.ReadFile(says.Name()) // looked at below
		var code exitError
		if got := errors.As(err, &code) && code == exitConfig; got != (why != "") || !strings.Contains(string(said), why) {
			t.Errorf("%s: %v: %s", text, err, string(said))
		}
	}
}
