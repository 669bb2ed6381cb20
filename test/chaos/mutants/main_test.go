package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../../.."

// TestMutantsBuild makes sure that each mutant still changes the line it was
// made for, and compiles. That chaos finds them out is for `make chaos-mutants`
// to show: it takes minutes.
func TestMutantsBuild(t *testing.T) {
	abs, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range mutants() {
		if names[m.name] || m.kills < 1 || m.old == m.new {
			t.Errorf("mutant %q: a name of its own, kills and a change", m.name)
		}
		names[m.name] = true
		if err := m.compile(t.Context(), abs, t.TempDir()); err != nil {
			t.Error(err)
		}
	}
	for _, must := range []string{"release-early", "drop-a-page", "forget-committed-frame", "ack-without-disk", "write-before-commit", "cut-late"} {
		if !names[must] {
			t.Errorf("there is no mutant %s", must)
		}
	}
}

// TestMutantLineMustBeThereOnce: a mutant whose line is gone, or not the only
// one, is an error and not a program without a fault.
func TestMutantLineMustBeThereOnce(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.go"), []byte("package x\n\none\ntwo\n\ttwo\ntwo\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for line, ok := range map[string]bool{"one": true, "\ttwo": true, "two": false, "three": false, "on": false} {
		m := mutant{name: "m", file: "x.go", old: line, new: "// changed"}
		if _, err := m.overlay(dir, dir); (err == nil) != ok {
			t.Errorf("line %q: %v", line, err)
		}
		if !ok {
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, "m.go"))
		if err != nil || !strings.Contains(string(got), "// changed") || strings.Contains(string(got), "\n"+line+"\n") {
			t.Errorf("line %q: %s, %v", line, got, err)
		}
	}
}
