package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Every page has its sections, and groff has nothing to say of it.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	root := (&app{in: os.Stdin, out: newTerminal(os.Stdout), err: newTerminal(os.Stderr)}).command()
	if err := writePages(root, dir); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Log("no groff: how the pages are set is not looked at")
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"} {
			if strings.Count(string(b), ".SH "+section+"\n") != 1 {
				t.Errorf("%s: section %s", filepath.Base(page), section)
			}
		}
		if strings.Contains(string(b), "\n\n") {
			t.Errorf("%s: empty lines", filepath.Base(page))
		}
		if groff == "" {
			continue
		}
		// As `man --warnings` runs it, at 80 columns.
		cmd := exec.Command(groff, "-man", "-Tutf8", "-ww", "-rLL=78n", "-z", "-b", page)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", filepath.Base(page), err, out)
		}
	}
}

// An example is a command that there is, with options that it has.
func TestExamples(t *testing.T) {
	root := (&app{in: os.Stdin, out: newTerminal(os.Stdout), err: newTerminal(os.Stderr)}).command()
	for _, cmd := range root.Commands() {
		if cmd.IsAvailableCommand() && cmd.Name() != "help" && !cmd.HasSubCommands() && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.Name())
		}
		for _, line := range strings.Split(cmd.Example, "\n") {
			words := strings.Fields(line)
			for i, w := range words {
				if strings.TrimPrefix(w, "$(") != "virt-ft" || i+1 == len(words) || i > 0 && words[i-1] == "-u" {
					continue
				}
				sub, _, err := root.Find(words[i+1 : i+2])
				if err != nil || sub == root {
					t.Errorf("%s: %q", cmd.Name(), line)
					continue
				}
				for _, option := range words[i+2:] {
					if strings.ContainsAny(option, "|;&>)") {
						break
					}
					name, isLong := strings.CutPrefix(option, "--")
					if isLong && sub.Flags().Lookup(name) == nil && sub.InheritedFlags().Lookup(name) == nil {
						t.Errorf("%s: %q has no --%s", cmd.Name(), line, name)
					}
				}
			}
		}
	}
}
