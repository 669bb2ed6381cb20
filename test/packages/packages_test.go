// Package packages tests what is installed: the .deb and the .rpm, what is in
// them and what their scripts do. With VIRT_FT_LONG=1 (`make package-test`) it
// also uses them, on machines with systemd that it makes for that.
package packages

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// root is the module's directory, seen from here.
const root = "../.."

// stepMax bounds every command of these tests; nothing is asserted about time.
const stepMax = 10 * time.Minute

// need skips the test if a program is not there.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is missing: test/scripts/deps.sh packages", p)
		}
	}
}

func long(t *testing.T) {
	t.Helper()
	if os.Getenv("VIRT_FT_LONG") == "" {
		t.Skip("long: make package-test")
	}
}

// try runs a program in dir, with env added, and returns what it printed.
func try(t *testing.T, dir string, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stepMax)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	out, err := try(t, dir, env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// build makes a package of the tree at top and returns where it is.
func build(t *testing.T, top, what string, env ...string) string {
	t.Helper()
	lines := strings.Fields(run(t, top, env, "packaging/build.sh", what))
	path, err := filepath.Abs(lines[len(lines)-1])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// quick builds with what go has compiled for the other tests: neither
// position-independent nor without paths, which the long tests are about.
const quick = "GOFLAGS_BUILD="

// loose packs as quickly as xz can; its best takes longer than all else.
const loose = "DEB_COMPRESS=-Zxz -z0"

// TestDeb builds the package and looks into it.
func TestDeb(t *testing.T) {
	need(t, "dh", "dpkg-buildpackage", "pkg-config")
	deb := build(t, root, "deb", quick, loose)
	dir := t.TempDir()
	run(t, dir, nil, "dpkg-deb", "-R", deb, ".")
	t.Run("files", func(t *testing.T) { checkFiles(t, run(t, dir, nil, "dpkg-deb", "-c", deb)) })
	t.Run("scripts", func(t *testing.T) { checkScripts(t, filepath.Join(dir, "DEBIAN")) })
	t.Run("version", func(t *testing.T) {
		version := strings.TrimSpace(run(t, root, nil, "packaging/version.sh", "version"))
		if got := run(t, dir, nil, "dpkg-deb", "-f", deb, "Version"); strings.TrimSpace(got) != version+"-1" {
			t.Errorf("the package is %s, the tree %s", got, version)
		}
		got := run(t, dir, []string{"VIRT_FT_SOCKET=" + dir + "/none"}, "usr/sbin/virt-ft", "version")
		if !strings.HasPrefix(got, "virt-ft "+version+" (") {
			t.Errorf("its program is %q, the tree %s", got, version)
		}
	})
	t.Run("configuration", func(t *testing.T) { checkConfig(t, dir) })
	t.Run("unit", func(t *testing.T) { checkUnit(t, dir) })
	t.Run("lintian", func(t *testing.T) {
		need(t, "lintian")
		// A quick build is not position-independent; see quick.
		checkLintian(t, deb, "--suppress-tags=hardening-no-pie,statically-linked-binary,mismatched-override,unused-override")
	})
}

// checkFiles looks at the package's list of files: what must be there, and that
// all of it is root's and nobody else's to write.
func checkFiles(t *testing.T, list string) {
	modes := map[string]string{}
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "root/root" {
			t.Errorf("not root's: %s", line)
			continue
		}
		mode, name := f[0], f[5]
		if mode[0] != 'l' && (mode[5] == 'w' || mode[8] == 'w' || strings.ContainsAny(mode, "st")) {
			t.Errorf("too open: %s", line)
		}
		modes[name] = mode
	}
	for name, mode := range map[string]string{
		"./usr/sbin/virt-ft":                                 "-rwxr-xr-x",
		"./usr/sbin/virt-ft-hook":                            "-rwxr-xr-x",
		"./etc/libvirt/hooks/qemu.d/virt-ft":                 "lrwxrwxrwx",
		"./etc/virt-ft/virt-ft.toml":                         "-rw-r--r--",
		"./etc/apparmor.d/abstractions/virt-ft-qemu":         "-rw-r--r--",
		"./usr/lib/virt-ft/maintain.sh":                      "-rw-r--r--",
		"./usr/lib/sysusers.d/virt-ft.conf":                  "-rw-r--r--",
		"./usr/lib/tmpfiles.d/virt-ft.conf":                  "-rw-r--r--",
		"./usr/share/man/man8/virt-ft.8.gz":                  "-rw-r--r--",
		"./usr/share/man/man8/virt-ft-protect.8.gz":          "-rw-r--r--",
		"./usr/share/man/man8/virt-ft-hook.8.gz":             "-rw-r--r--",
		"./usr/share/man/man5/virt-ft.toml.5.gz":             "-rw-r--r--",
		"./usr/share/bash-completion/completions/virt-ft":    "-rw-r--r--",
		"./usr/share/zsh/vendor-completions/_virt-ft":        "-rw-r--r--",
		"./usr/share/fish/vendor_completions.d/virt-ft.fish": "-rw-r--r--",
		"./usr/share/doc/virt-ft/copyright":                  "-rw-r--r--",
		"./usr/share/doc/virt-ft/changelog.gz":               "-rw-r--r--",
		unitDir(modes) + "/virt-ft.service":                  "-rw-r--r--",
		unitDir(modes) + `/run-virt\\x2dft-bpf.mount`:        "-rw-r--r--",
	} {
		if modes[name] != mode {
			t.Errorf("%s is %q, should be %s", name, modes[name], mode)
		}
	}
}

// unitDir is where this distribution has units: it moved once.
func unitDir(modes map[string]string) string {
	if modes["./lib/systemd/system/virt-ft.service"] != "" {
		return "./lib/systemd/system"
	}
	return "./usr/lib/systemd/system"
}

// checkScripts: they are shell, and what they rely on is in them.
func checkScripts(t *testing.T, dir string) {
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		path := filepath.Join(dir, name)
		run(t, dir, nil, "sh", "-n", path)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if m := regexp.MustCompile(`(?m)^#(DEBHELPER|FUNCTIONS)#`).Find(text); m != nil {
			t.Errorf("%s: %s was not replaced", name, m)
		}
	}
	conffiles, err := os.ReadFile(filepath.Join(dir, "conffiles"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/etc/apparmor.d/abstractions/virt-ft-qemu", "/etc/virt-ft/virt-ft.toml"}
	if got := strings.Fields(string(conffiles)); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("conffiles are %q", got)
	}
}

// checkConfig: the packaged configuration is the default but for the group.
func checkConfig(t *testing.T, dir string) {
	text, err := os.ReadFile(filepath.Join(dir, "etc/virt-ft/virt-ft.toml"))
	if err != nil {
		t.Fatal(err)
	}
	var set []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != '[' {
			set = append(set, line)
		}
	}
	if !slices.Equal(set, []string{`group = "virt-ft"`}) {
		t.Errorf("the packaged configuration sets %q", set)
	}
	users, err := os.ReadFile(filepath.Join(dir, "usr/lib/sysusers.d/virt-ft.conf"))
	if err != nil || !regexp.MustCompile(`(?m)^g virt-ft `).Match(users) {
		t.Errorf("no such group is made: %v\n%s", err, users)
	}
}

// exposureMax is systemd's own judgement of the unit, times ten: 96 is one with
// nothing set. Half of what is left is that the daemon has root's capabilities.
const exposureMax = "60"

// checkUnit has systemd look at the unit.
func checkUnit(t *testing.T, dir string) {
	need(t, "systemd-analyze")
	at := filepath.Join(dir, "lib/systemd/system")
	if _, err := os.Stat(at); err != nil {
		at = filepath.Join(dir, "usr/lib/systemd/system")
	}
	unit := filepath.Join(at, "virt-ft.service")
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	// It is installed here, and nowhere else.
	here := strings.ReplaceAll(string(text), "ExecStart=/usr", "ExecStart="+filepath.Join(dir, "usr"))
	if err := os.WriteFile(unit, []byte(here), 0o644); err != nil {
		t.Fatal(err)
	}
	env := []string{"SYSTEMD_UNIT_PATH=" + at + ":"}
	out, err := try(t, dir, env, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit, filepath.Join(at, `run-virt\x2dft-bpf.mount`))
	for line := range strings.Lines(out) { // others' units are none of our business
		if strings.Contains(line, "virt") && !strings.Contains(line, "libvirt") && !strings.Contains(line, "virtlog") && !strings.Contains(line, "virtlock") {
			t.Errorf("%s", line)
		}
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = try(t, dir, env, "systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold="+exposureMax, unit)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log(out)
}

// TestLintian: of what is shipped, nothing is complained of but what packaging/deb
// overrides, with a reason.
func TestLintian(t *testing.T) {
	long(t)
	need(t, "dh", "dpkg-buildpackage", "lintian")
	checkLintian(t, build(t, root, "deb"))
}

func checkLintian(t *testing.T, deb string, args ...string) {
	t.Helper()
	args = append([]string{"--allow-root", "--tag-display-limit", "0", "--fail-on=error,warning"}, append(args, deb)...)
	out, err := try(t, root, nil, "lintian", args...)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log(out)
}

// TestRPM builds the other package and looks into it.
func TestRPM(t *testing.T) {
	long(t)
	need(t, "rpmbuild", "rpm", "rpmlint")
	rpm := build(t, root, "rpm")
	out, err := try(t, root, nil, "rpmlint", "--config", "packaging/rpm/rpmlint.toml", rpm)
	if err != nil || !strings.Contains(out, " 0 errors, 0 warnings") {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log(out)
	dir := t.TempDir()
	// The scripts need what an empty root has not; they are tested in the .deb.
	run(t, dir, nil, "rpm", "--root", dir, "--initdb")
	run(t, dir, nil, "rpm", "--root", dir, "-i", "--nodeps", "--noscripts", rpm)
	run(t, dir, nil, "rpm", "--root", dir, "-V", "--nodeps", "--noscripts", "virt-ft")
	version := strings.TrimSpace(run(t, root, nil, "packaging/version.sh", "version"))
	if got := run(t, dir, []string{"VIRT_FT_SOCKET=" + dir + "/none"}, "usr/sbin/virt-ft", "version"); !strings.HasPrefix(got, "virt-ft "+version+" (") {
		t.Errorf("its program is %q, the tree %s", got, version)
	}
	run(t, dir, nil, "rpm", "--root", dir, "-e", "--nodeps", "--noscripts", "virt-ft")
	if left := run(t, dir, nil, "find", ".", "-name", "*virt-ft*"); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// copyTree puts a copy of the tree, with its history, at dir.
func copyTree(t *testing.T, dir string) {
	t.Helper()
	run(t, root, nil, "git", "clone", "-q", ".", dir)
	files := run(t, root, nil, "git", "ls-files", "-mo", "--exclude-standard")
	for name := range strings.Lines(files) {
		name = strings.TrimSpace(name)
		if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
			continue // removed, and not committed
		}
		run(t, root, nil, "cp", "-a", "--parents", name, dir)
	}
	run(t, dir, nil, "git", "add", "-A")
	run(t, dir, nil, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "what is not committed yet")
}

// TestSame: two builds in different directories are the same, bit for bit.
func TestSame(t *testing.T) {
	long(t)
	need(t, "dh", "dpkg-buildpackage", "rpmbuild")
	one, other := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "a", "longer", "name")
	copyTree(t, one)
	run(t, root, nil, "git", "clone", "-q", one, other)
	for _, what := range []string{"deb", "rpm"} {
		a, b := build(t, one, what), build(t, other, what)
		if filepath.Base(a) != filepath.Base(b) {
			t.Errorf("%s and %s", a, b)
		}
		if out, err := try(t, root, nil, "cmp", a, b); err != nil {
			t.Errorf("%s: %v: %s", what, err, out)
		}
	}
}

// TestDist: the source tarball builds a package without a network and without git.
func TestDist(t *testing.T) {
	long(t)
	need(t, "dh", "dpkg-buildpackage")
	tarball := build(t, root, "dist")
	dir := t.TempDir()
	run(t, dir, nil, "tar", "-xf", tarball)
	tree := filepath.Join(dir, strings.TrimSuffix(filepath.Base(tarball), ".tar.gz"))
	run(t, tree, []string{"GOFLAGS=-mod=vendor", "GOPROXY=off", "GOMODCACHE=" + t.TempDir(), "GOCACHE=" + goCache(t)},
		"dpkg-buildpackage", "-b", "-uc", "-us", "-d")
	version := strings.TrimSpace(run(t, root, nil, "packaging/version.sh", "version"))
	if _, err := os.Stat(filepath.Join(dir, "virt-ft_"+version+"-1_amd64.deb")); err != nil {
		t.Error(err)
	}
}

func goCache(t *testing.T) string {
	return strings.TrimSpace(run(t, root, nil, "go", "env", "GOCACHE"))
}
