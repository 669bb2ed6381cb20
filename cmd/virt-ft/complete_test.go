package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/control"
)

// The completion script, in a real bash, with Tab pressed behind each of these.
func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "c.sock")
	server(t, socket, &scenario{
		Answers: []control.Status{{Domain: "web1", Role: control.RolePrimary, State: control.StateProtected}, {Domain: "db1", Role: control.RoleBackup, State: control.StateStandby}},
		Known:   []control.Domain{{Name: "web1", Active: true}, {Name: "fresh", Active: true}},
	})
	// What the bash-completion package has for such scripts, as far as ours needs it.
	const press = `
compopt() { :; } # only bash itself may call it, while it completes
_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]}; prev=${COMP_WORDS[COMP_CWORD-1]}; words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; }
source <(virt-ft completion bash)
COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_KEY=9
__start_virt-ft
printf '%s\n' "${COMPREPLY[@]}"
`
	if err := os.Symlink(os.Args[0], filepath.Join(dir, "virt-ft")); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"virt-ft unpro":         "unprotect",
		"virt-ft unprotect we":  "web1",
		"virt-ft protect fr":    "fresh",
		"virt-ft status -o ya":  "yaml",
		"virt-ft wait --for un": "unprotected undecided",
		"virt-ft events --fo":   "--follow",
	} {
		cmd := exec.Command(bash, append([]string{"--norc", "-c", press, "bash"}, strings.Fields(line)...)...)
		cmd.Env = append(os.Environ(), "VIRT_FT_TEST_RUN=1", "VIRT_FT_SOCKET="+socket, "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		var words []string
		for _, word := range strings.Split(strings.TrimSpace(string(out)), "\n") {
			words = append(words, strings.Fields(word + " ")[:1]...) // without its description
		}
		if got := strings.Join(words, " "); err != nil || got != want {
			t.Errorf("%s⇥ is %q, want %q (%v): %s", line, got, want, err, out)
		}
	}
}
