package probe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tree makes files under a new root.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func want(t *testing.T, name string, f Finding, level Level, words ...string) {
	t.Helper()
	if f.Level != level {
		t.Errorf("%s: %+v, want %s", name, f, level)
	}
	if f.Level != OK && f.Remedy == "" {
		t.Errorf("%s: no remedy: %+v", name, f)
	}
	for _, w := range words {
		if !strings.Contains(f.Text+" "+f.Remedy, w) {
			t.Errorf("%s: %+v does not say %q", name, f, w)
		}
	}
}

func TestKernel(t *testing.T) {
	for release, level := range map[string]Level{
		"6.18.1": OK, "6.9.0-1-amd64": OK, "7.0-rc1": OK, "10.1": OK, "6.7.12": Warn, "6.8-generic": Warn,
		"6.6.9": Warn, "5.10": Warn, "6.1.0-28-amd64": Warn, "": Warn, "six": Warn, "6.x": Warn,
	} {
		want(t, release, Kernel(release), level)
	}
	if Release() == "" {
		t.Error("this kernel has no release")
	}
}

func TestMemory(t *testing.T) {
	for _, c := range []struct {
		thp, overcommit string
		levels          [2]Level
	}{
		{"always [madvise] never\n", "0\n", [2]Level{OK, OK}},
		{"always madvise [never]\n", "2\n", [2]Level{OK, Warn}},
		{"???", "1", [2]Level{Warn, OK}},
	} {
		fs := Memory(tree(t, map[string]string{"sys/kernel/mm/transparent_hugepage/enabled": c.thp, "proc/sys/vm/overcommit_memory": c.overcommit}))
		if len(fs) != 2 {
			t.Fatalf("%q: %+v", c.thp, fs)
		}
		for i := range fs {
			want(t, c.thp+c.overcommit, fs[i], c.levels[i])
		}
	}
	if fs := Memory(t.TempDir()); len(fs) != 0 {
		t.Errorf("of a kernel without the files: %+v", fs)
	}
}

func TestRights(t *testing.T) {
	const all = "CapInh:\t0\nCapEff:\t000001ffffffffff\n"
	for name, c := range map[string]struct {
		status, scope string
		nice          int
		id            string
		level         Level
		words         string
	}{
		"all":          {all, "1\n", -12, "host.capabilities", OK, ""},
		"trace":        {all, "1\n", -12, "host.ptrace", OK, "is 1"},
		"no trace":     {all, "3\n", -12, "host.ptrace", Fail, "next boot"},
		"none":         {"CapEff:\t0000000000000000\n", "0", 0, "host.capabilities", Fail, "CAP_SYS_PTRACE"},
		"only nice":    {"CapEff:\t000001ffff7fffff\n", "0", -12, "host.capabilities", Warn, "nice = 0"},
		"nice unused":  {"CapEff:\t000001ffff7fffff\n", "0", 0, "host.capabilities", OK, ""},
		"admin is bpf": {"CapEff:\t0000000000283000\n", "0", 0, "host.capabilities", OK, ""},
		"no bpf":       {"CapEff:\t0000000000083000\n", "0", 0, "host.capabilities", Fail, "CAP_BPF"},
		"no such line": {"Name:\tx\n", "0", 0, "host.capabilities", Warn, "report"},
		"no number":    {"CapEff:\tzz\n", "0", 0, "host.capabilities", Warn, "report"},
	} {
		found := false
		for _, f := range Rights(tree(t, map[string]string{"proc/self/status": c.status, "proc/sys/kernel/yama/ptrace_scope": c.scope}), c.nice) {
			if f.ID == c.id {
				found = true
				want(t, name, f, c.level, c.words)
			}
		}
		if !found {
			t.Errorf("%s: nothing of %s", name, c.id)
		}
	}
	want(t, "few files", openFiles(1024), Warn, "LimitNOFILE")
	want(t, "files", openFiles(1<<20), OK)
}

func TestHook(t *testing.T) {
	const path = "etc/libvirt/hooks/qemu.d/virt-ft"
	root := tree(t, map[string]string{path: "#!/bin/sh\n"})
	want(t, "none", Hook(t.TempDir()), Warn, "restart libvirtd")
	if os.Getuid() == 0 {
		want(t, "good", Hook(root), OK)
		if err := os.Chown(filepath.Join(root, path), 1, 1); err != nil {
			t.Fatal(err)
		}
		want(t, "of somebody", Hook(root), Warn, "chown")
	}
	for mode, says := range map[os.FileMode]string{0o644: "not an executable", 0o777: "changed by others"} {
		if err := os.Chmod(filepath.Join(root, path), mode); err != nil {
			t.Fatal(err)
		}
		want(t, mode.String(), Hook(root), Warn, says)
	}
}

func TestConfinement(t *testing.T) {
	const on, snippet = "sys/module/apparmor/parameters/enabled", "etc/apparmor.d/abstractions/libvirt-qemu.d/virt-ft"
	for name, c := range map[string]struct {
		files map[string]string
		level Level
		words string
	}{
		"nothing":        {nil, OK, "neither"},
		"off":            {map[string]string{on: "N\n"}, OK, "neither"},
		"not told":       {map[string]string{on: "Y\n", "etc/apparmor.d/abstractions/libvirt-qemu": "/dev/kvm rw,\n"}, Warn, "install the package"},
		"told":           {map[string]string{on: "Y\n", snippet: "# rules\n"}, OK, "libvirt-qemu.d"},
		"told in local":  {map[string]string{on: "Y\n", "etc/apparmor.d/local/abstractions/libvirt-qemu": "/run/virt-ft/** rw,\n"}, OK, "local"},
		"SELinux":        {map[string]string{"sys/fs/selinux/enforce": "1"}, Warn, "ausearch"},
		"SELinux, quiet": {map[string]string{"sys/fs/selinux/enforce": "0"}, OK, "neither"},
	} {
		want(t, name, Confinement(tree(t, c.files)), c.level, c.words)
	}
}

// TestHere tries what can be tried on any Linux that runs these tests.
func TestHere(t *testing.T) {
	want(t, "memfd", Memfd(), OK)
	want(t, "pins", Pins(t.TempDir()), Fail, "not a bpffs")
	want(t, "no pins", Pins("/nowhere"), Fail, "/nowhere")
	want(t, "no group", Group("no-such-group-here"), Warn, "groupadd")
	want(t, "group", Group("root"), OK, "root")
	want(t, "nobody", Group(""), OK, "root alone")
	want(t, "space", Space(t.TempDir(), 1), OK)
	want(t, "little space", Space(t.TempDir(), 1<<62), Warn, "journal_bytes_max")
	want(t, "no directory", Space("/nowhere", 1), Fail, "state_dir")
	for _, f := range []Finding{ZeroCopy(), Time()} {
		if f.Level == Fail || f.ID == "" || f.Level == Warn && f.Remedy == "" {
			t.Errorf("%+v", f)
		}
	}
	if b, err := readBounded("/proc/self/status"); err != nil || !strings.Contains(string(b), "CapEff") {
		t.Error(err)
	}
	begun := time.Now() // of an endless file only so much is read
	if b, err := readBounded("/dev/zero"); err != nil || len(b) != settingBytesMax {
		t.Error(len(b), err, time.Since(begun))
	}
}
