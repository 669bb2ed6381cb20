package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// labTimeMax bounds all scripts of the lab; nothing is asserted about time.
const labTimeMax = 5 * time.Minute

// TestLab runs the scripts of testdata/lab, in order, on two hosts with real
// daemons, libvirtds and a guest: `on-a virt-ft …` is what is typed on host A.
func TestLab(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), labTimeMax)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{})
	skipIfMissing(t, err)
	defer l.Close()
	dir := t.TempDir()
	binary := filepath.Join(dir, "virt-ft")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if err := errors.Join(l.InstallDaemons(binary, ""), l.StartDaemons(ctx)); err != nil {
		t.Fatal(err)
	}
	assets, err := lab.FindAssets()
	skipIfMissing(t, err)
	shape, err := l.InstallBoot(assets)
	if err != nil {
		t.Fatal(err)
	}
	shape.NIC = true
	if _, err := l.A.StartGuest(ctx, shape); err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]*lab.Host{"on-a": l.A, "on-b": l.B} {
		// Its own PATH entry, so that a script's exec, background and signals work.
		text := fmt.Sprintf("#!/bin/sh\nprogram=$1; shift\n[ $program = virt-ft ] && program=%s\nexec nsenter -a -t %d -- $program \"$@\"\n", h.CtlPath(), h.Pid())
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	scripts, err := filepath.Glob(filepath.Join("testdata", "lab", "*.txtar"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	commands := scriptCommands()
	commands["stop-daemon-a"] = func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(l.A.Daemon.Stop()) }
	for _, script := range scripts { // sorted, and each goes on where the last one ended
		if !t.Run(filepath.Base(script), func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Files: []string{script}, Cmds: commands,
				Setup: func(env *testscript.Env) error {
					env.Setenv("PATH", dir+":"+env.Getenv("PATH"))
					env.Setenv("TZ", "UTC")
					return nil
				},
			})
		}) {
			break
		}
	}
	if t.Failed() {
		for _, h := range l.Hosts() {
			if log, err := os.ReadFile(h.Daemon.LogPath()); err == nil {
				t.Logf("daemon of %s:\n%s", h.Name, log[max(0, len(log)-8000):])
			}
		}
	}
}

// skipIfMissing skips on what this machine lacks and fails on the rest.
func skipIfMissing(t *testing.T, err error) {
	t.Helper()
	var missing *lab.MissingError
	if errors.As(err, &missing) {
		t.Skip(missing)
	}
	if err != nil {
		t.Fatal(err)
	}
}
