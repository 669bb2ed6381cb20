package packages

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVersion: versions grow with releases and commits, as dpkg sorts them.
func TestVersion(t *testing.T) {
	need(t, "git", "dpkg")
	dir := t.TempDir()
	put(t, filepath.Join(dir, "packaging/version.sh"), read(t, filepath.Join(root, "packaging/version.sh")))
	put(t, filepath.Join(dir, "file"), "0")
	git := func(at string, args ...string) {
		env := []string{"GIT_COMMITTER_DATE=" + at, "GIT_AUTHOR_DATE=" + at, "GIT_CONFIG_GLOBAL=/dev/null"}
		run(t, dir, env, "git", append([]string{"-c", "user.name=t", "-c", "user.email=t@localhost"}, args...)...)
	}
	commit := func(at string) {
		git(at, "add", "-A")
		git(at, "commit", "-q", "--allow-empty", "-m", at)
	}
	version := func() string {
		return strings.TrimSpace(run(t, dir, nil, "bash", "packaging/version.sh", "version"))
	}
	var all []string
	git("", "init", "-q")
	commit("2026-03-01T10:00:00Z")
	all = append(all, version())
	commit("2026-03-01T10:00:01Z")
	all = append(all, version())
	put(t, filepath.Join(dir, "file"), "1")
	all = append(all, version())
	git("", "tag", "v0.9.0-rc1")
	commit("2026-03-02T10:00:00Z")
	all = append(all, version())
	git("", "tag", "v0.9.0")
	all = append(all, version())
	commit("2026-03-03T10:00:00Z")
	all = append(all, version())
	git("", "tag", "v0.10.0")
	all = append(all, version())
	for i := range all[1:] {
		run(t, dir, nil, "dpkg", "--compare-versions", all[i], "lt", all[i+1])
	}
	if all[4] != "0.9.0" || !strings.HasPrefix(all[5], "0.9.0+1.g") || all[6] != "0.10.0" || !strings.HasSuffix(all[2], "+changes") {
		t.Errorf("%q", all)
	}
	t.Logf("%q", all)
}

// place is a root of files for the scripts' functions.
type place struct {
	t   *testing.T
	dir string
}

func (p place) put(name, text string) {
	p.t.Helper()
	put(p.t, filepath.Join(p.dir, name), text)
}

// sh runs shell with the scripts' functions.
func (p place) sh(script string) (string, error) {
	p.t.Helper()
	functions, err := filepath.Abs(filepath.Join(root, "packaging/maintain.sh"))
	if err != nil {
		p.t.Fatal(err)
	}
	return try(p.t, p.dir, []string{"DPKG_ROOT=" + p.dir}, "sh", "-e", "-c", ". "+functions+"\n"+script)
}

const uuid = "3c3b1e5a-0000-4000-8000-0000000000aa"

func marker(phase string) string {
	return `{"version":1,"domain":"web1","uuid":"` + uuid + `","role":"primary","phase":"` + phase + `"}`
}

// TestProtected: the scripts see what of a protection is there.
func TestProtected(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		found string
	}{
		"nothing": {nil, ""},
		"over":    {map[string]string{"var/lib/virt-ft/" + uuid + ".json": marker("ended"), "var/lib/virt-ft/grants": "{}"}, ""},
		"primary": {map[string]string{"var/lib/virt-ft/" + uuid + ".json": marker("protected")}, "web1"},
		"lost":    {map[string]string{"var/lib/virt-ft/" + uuid + ".json": marker("lost")}, "web1"},
		"spread":  {map[string]string{"var/lib/virt-ft/" + uuid + ".json": strings.ReplaceAll(marker("standby"), `":"`, `": "`)}, "web1"},
		"damaged": {map[string]string{"var/lib/virt-ft/" + uuid + ".json": ""}, uuid},
		"elsewhere": {map[string]string{
			"etc/virt-ft/virt-ft.toml":   "state_dir = '/srv/ft' # ours\n[control]\n",
			"srv/ft/" + uuid + ".json":   marker("armed"),
			"var/lib/virt-ft/other.json": marker("protected"),
		}, "web1"},
		"not a key":    {map[string]string{"etc/virt-ft/virt-ft.toml": "[x]\nstate_dir = \"/srv/ft\"\n", "srv/ft/" + uuid + ".json": marker("armed")}, ""},
		"pinned gate":  {map[string]string{"run/virt-ft/bpf/" + uuid + "/nic0_map": ""}, uuid},
		"pins, marker": {map[string]string{"run/virt-ft/bpf/" + uuid + "/nic0_map": "", "var/lib/virt-ft/" + uuid + ".json": marker("alone")}, "web1"},
	} {
		t.Run(name, func(t *testing.T) {
			p := place{t, t.TempDir()}
			for file, text := range c.files {
				p.put(file, text)
			}
			out, err := p.sh("virt_ft_protected")
			if strings.TrimSpace(out) != c.found || (err == nil) != (c.found != "") {
				t.Errorf("%q, %v; want %q", out, err, c.found)
			}
			out, err = p.sh("virt_ft_refuse 'removing the package'")
			if (err != nil) != (c.found != "") || strings.Contains(out, "is refused") != (c.found != "") {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
}

// TestAppArmorLine: it is added once, to what an administrator wrote, and taken away alone.
func TestAppArmorLine(t *testing.T) {
	const local, line = "etc/apparmor.d/local/abstractions/libvirt-qemu", "include if exists <abstractions/virt-ft-qemu>\n"
	p := place{t, t.TempDir()}
	if out, err := p.sh("virt_ft_apparmor; virt_ft_apparmor_remove"); err != nil || out != "" {
		t.Errorf("without AppArmor: %q, %v", out, err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "etc")); err == nil {
		t.Error("without AppArmor something was written")
	}
	p.put("etc/apparmor.d/abstractions/libvirt-qemu", "")
	for _, before := range []string{"", "/srv/x r,\n"} {
		if before != "" {
			p.put(local, before)
		}
		if out, err := p.sh("virt_ft_apparmor; virt_ft_apparmor"); err != nil || out != "" {
			t.Errorf("%q, %v", out, err)
		}
		if got := read(t, filepath.Join(p.dir, local)); got != before+line {
			t.Errorf("%q", got)
		}
		if out, err := p.sh("virt_ft_apparmor_remove"); err != nil || out != "" {
			t.Errorf("%q, %v", out, err)
		}
		if got := read(t, filepath.Join(p.dir, local)); got != before {
			t.Errorf("%q is left of %q", got, before)
		}
	}
}

// TestReady: the daemon is started by the installation when it can be.
func TestReady(t *testing.T) {
	for name, c := range map[string]struct {
		file, text string
		ready      bool
	}{
		"nothing":      {"etc/virt-ft/virt-ft.toml", "#mode = \"plain\"\n", false},
		"certificate":  {"etc/pki/libvirt/servercert.pem", "x", true},
		"plain":        {"etc/virt-ft/virt-ft.toml", "[transport]\nmode = \"plain\"\n", true},
		"plain dotted": {"etc/virt-ft/virt-ft.toml", "transport.mode = 'plain'\n", true},
		"named":        {"etc/virt-ft/virt-ft.toml", "[transport]\nserver_cert = \"/srv/cert.pem\"\n", true},
	} {
		p := place{t, t.TempDir()}
		p.put(c.file, c.text)
		if out, err := p.sh("virt_ft_ready"); (err == nil) != c.ready || (out == "") != c.ready {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
