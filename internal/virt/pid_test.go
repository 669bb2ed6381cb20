package virt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIsQEMUOf(t *testing.T) {
	const uuid = "5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0001"
	for _, c := range []struct {
		name string
		args []string
		want bool
	}{
		{"uuid", []string{"qemu", "-name", "guest=web1,debug-threads=on", "-uuid", uuid}, true},
		{"uuid in capitals", []string{"qemu", "-uuid", strings.ToUpper(uuid)}, true},
		{"name alone", []string{"qemu", "-name", "guest=web1,debug-threads=on", "-S"}, true},
		{"name without more", []string{"qemu", "-name", "guest=web1"}, true},
		{"another uuid, same name", []string{"qemu", "-name", "guest=web1", "-uuid", "x"}, false},
		{"longer name", []string{"qemu", "-name", "guest=web10,debug-threads=on"}, false},
		{"editor of the XML", []string{"vi", uuid, "web1"}, false},
		{"kernel thread", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmdline := strings.Join(c.args, "\x00") + "\x00"
			if got := isQEMUOf([]byte(cmdline), "web1", uuid); got != c.want {
				t.Errorf("isQEMUOf: %v", got)
			}
		})
	}
}

func TestReadPIDRefusesRubbish(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "text": "none", "zero": "0", "negative": "-5", "init": "1", "long": strings.Repeat("1", 100),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "web1.pid")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if pid, err := readPID(path); err == nil {
				t.Errorf("read %d", pid)
			}
		})
	}
}

func TestStateDirs(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/5")
	if got := stateDirs("qemu:///session"); len(got) != 1 || got[0] != "/run/user/5/libvirt/qemu/run" {
		t.Errorf("session: %v", got)
	}
	if got := stateDirs("qemu:///system"); got[0] != "/run/libvirt/qemu" {
		t.Errorf("system: %v", got)
	}
}
