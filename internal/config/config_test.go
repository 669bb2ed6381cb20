package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestEmptyFileIsDefaults(t *testing.T) {
	got, err := Parse("x", "")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Host, _ = os.Hostname()
	want.Control.Socket = "/run/virt-ft/control.sock"
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

// The example must name every key, commented out, with its default value.
func TestExampleMatchesDefaults(t *testing.T) {
	key := regexp.MustCompile(`(?m)^#([a-zA-Z_]+) = (.*)$`)
	table, seen := "", map[string]bool{}
	for _, line := range strings.Split(Example(), "\n") {
		if strings.HasPrefix(line, "[") {
			table = strings.Trim(line, "[]") + "."
		} else if m := key.FindStringSubmatch(line); m != nil {
			seen[table+m[1]] = true
		} else if line != "" && !strings.HasPrefix(line, "# ") {
			t.Errorf("neither comment, table nor commented key: %q", line)
		}
	}
	for _, k := range knownKeys(reflect.TypeFor[Config](), "") {
		if !seen[k] && k != "peers" {
			t.Errorf("the example lacks %s", k)
		}
	}
	asIs, err := Parse("example", Example())
	if err != nil {
		t.Fatal(err)
	}
	active, err := Parse("example", key.ReplaceAllString(Example(), "$1 = $2"))
	if err != nil {
		t.Fatal(err)
	}
	if active.Peers["hostB"] == "" {
		t.Error("the example's peer was not read")
	}
	active.Peers, asIs.Peers = nil, nil
	if !reflect.DeepEqual(asIs, active) {
		t.Fatalf("the example shows other values than the defaults:\nshown   %+v\ndefault %+v", active, asIs)
	}
}

func TestParse(t *testing.T) {
	c, err := Parse("x", `
host = "hostA"
run_dir = "/run/lab-a"
epoch = { min = "10ms", in_flight = 2 }
[output]
held_max = "3s"
log_inputs = false
queue_frames_max = 1000
[heartbeat]
limit = "2s"
daemon_grace = "0s"
[arbiter]
kind = "file"
dir = "/mnt/shared"
[peers]
hostB = "10.0.0.2"
hostC = "10.0.0.3:99"
hostD = "[fe80::1%eth0]"
`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Epoch.Min != 10*time.Millisecond || c.Epoch.InFlight != 2 || c.Epoch.Idle != 100*time.Millisecond ||
		c.Output != (Output{64 << 20, 1000, 3 * time.Second, false, 1 << 20, 2 * time.Second}) || c.Heartbeat.DaemonGrace != 0 ||
		c.Heartbeat.Limit != 2*time.Second || c.Control.Socket != "/run/lab-a/control.sock" || c.Host != "hostA" {
		t.Fatalf("%+v", c)
	}
	for peer, want := range map[string]string{
		"hostB": "10.0.0.2:7879", "hostC": "10.0.0.3:99", "hostD": "[fe80::1%eth0]:7879",
		"elsewhere": "elsewhere:7879", "::1": "[::1]:7879", "x:1": "x:1",
	} {
		if got := c.PeerAddress(peer); got != want {
			t.Errorf("PeerAddress(%s) = %s, want %s", peer, got, want)
		}
	}
}

func TestMistakesNameTheirLine(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"colour = 1\n", "x:1: colour: unknown key"},
		{"\n[epoch]\nmin = \"10ms\"\npause-max = \"1s\"\n", "x:4: epoch.pause-max: unknown key: did you mean epoch.pause_max?"},
		{"idle = \"5ms\"\n", "x:1: idle: unknown key: did you mean epoch.idle?"},
		{"[epoch]\ninterval = \"5ms\"\n", "x:2: epoch.interval: unknown key"}, // of earlier versions
		{"[wrong]\na = 1\nb = 2\n", "x:1: wrong: unknown key"},
		{"[epoch]\n\nidle = \"1us\"\n", "x:3: epoch.idle: 1µs is below epoch.min (2ms)"},
		{"[epoch]\nidle = \"11s\"\n", "x:2: epoch.idle: 11s is above 10s"},
		{"[epoch]\nmin = 25\n", "x:2: epoch.min: 25ns is below 1ms"},
		{"[epoch]\nmin = \"200ms\"\n", "x:1: epoch.idle: 100ms is below epoch.min (200ms)"},
		{"[epoch]\nidle = \"soon\"\n", "x:2: epoch.idle: "},
		{"[output]\nqueue_bytes_max = 1000\n", "x:2: output.queue_bytes_max: 1000 is not between 1048576 and"},
		{"[output]\n\nqueue_frames_max = -1\n", "x:3: output.queue_frames_max: -1 is not between 256 and"},
		{"[output]\nheld_max = \"-1s\"\n", "x:2: output.held_max: -1s is neither 0"},
		{"[output]\nheld_max = \"20ms\"\n", "x:2: output.held_max: 20ms is neither 0 (wait as long as it takes) nor between 50ms and 1h0m0s"},
		{"[output]\ninput_bytes_max = 0\n", "x:2: output.input_bytes_max: 0 is not between"},
		{"[output]\nopen_within = \"0s\"\n", "x:2: output.open_within: 0s is not between 100ms and 1m0s"},
		{"[output]\nlog-inputs = true\n", "x:2: output.log-inputs: unknown key: did you mean output.log_inputs?"},
		{"[heartbeat]\ndaemon_grace = \"-1s\"\n", "x:2: heartbeat.daemon_grace: -1s is not between 0 (never take over for that) and 10m0s"},
		{"[epoch]\nin_flight = 0\n", "x:2: epoch.in_flight: 0 is not between 1 and 64"},
		{"epoch.pause_share_max = 1.5\n", "x:1: epoch.pause_share_max: 1.5 is not above 0 and at most 0.9"},
		{"[heartbeat]\nlimit = \"200ms\"\n", "x:2: heartbeat.limit: 200ms is less than 3 periods of 100ms"},
		{"[arbiter]\nkind = \"file\"\n", "x:1: arbiter.dir: arbiter.kind \"file\" needs a directory"},
		{"[arbiter]\nkind = \"dice\"\n", "x:2: arbiter.kind: \"dice\" is not one of \"\", \"file\", \"etcd\", \"fence\", \"manual\""},
		{"[transport]\nmode = \"open\"\n", "x:2: transport.mode: "},
		{"[log]\nlevel = \"loud\"\n", "x:2: log.level: "},
		{"listen = \"here\"\n", "x:1: listen: \"here\" is not ADDRESS:PORT"},
		{"[arbiter]\nkind = \"etcd+\"\n", "x:2: arbiter.kind: \"etcd+\": a name is missing"},
		{"[arbiter]\nkind = \"etcd+fence\"\n[arbiter.etcd]\nendpoints = [\"https://x:2379\"]\n", "arbiter.fence.agent: "},
		{"[arbiter.etcd]\ncert_file = \"/x\"\n", "x:2: arbiter.etcd.cert_file: cert_file and key_file belong together"},
		{"libvirt_uri = \"qemu+ssh://far/system\"\n", "x:1: libvirt_uri: "},
		{"state_dir = \"var/lib\"\n", "x:1: state_dir: \"var/lib\" is not an absolute"},
		{"host = \"a b\"\n", "x:1: host: "},
		{"host = \"a\"\n[peers]\na = \"10.0.0.1\"\n", "x:3: peers.a: this host is its own peer"},
		{"[peers]\nb = \"10.0.0.1:x\"\n", "x:2: peers.b: "},
		{"[control]\nsocket = \"/" + strings.Repeat("s", 120) + "\"\n", "x:2: control.socket: path has 121 bytes"},
		{"\nhost = \n", "x:2: "},
	} {
		c, err := Parse("x", tc.text)
		if err == nil {
			t.Errorf("%q accepted: %+v", tc.text, c)
			continue
		}
		var mistake *Error
		if !strings.Contains(err.Error(), tc.want) || !errors.As(err, &mistake) {
			t.Errorf("%q:\ngot  %v\nwant %s", tc.text, err, tc.want)
		}
	}
	_, err := Parse("x", "a = 1\n[epoch]\nmin = \"0s\"\n")
	for _, want := range []string{"x:1: a:", "x:3: epoch.min:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("not all mistakes are reported: %v", err)
		}
	}
}

// What the daemon checks by itself has no file to name.
func TestValidate(t *testing.T) {
	c, err := Parse("x", "")
	if err != nil {
		t.Fatal(err)
	}
	c.Epoch.Idle = time.Minute
	if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), "epoch.idle: 1m0s is above 10s") {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "absent.toml")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a missing file that was asked for: %v", err)
	}
	name := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(name, []byte("host = \"h\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(name); err != nil || c.Host != "h" {
		t.Fatalf("%+v, %v", c, err)
	}
	if err := os.WriteFile(name, make([]byte, maxFileBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(name); err == nil || !strings.Contains(err.Error(), fmt.Sprint(maxFileBytes)) {
		t.Fatalf("an endless file: %v", err)
	}
}

// No text makes the second look at the file panic.
func FuzzParse(f *testing.F) {
	f.Add(Example())
	f.Add("[a\nb.\"c = 1")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := Parse("x", text); err == nil {
			if err := c.Validate(); err != nil {
				t.Fatalf("parsed but invalid: %v", err)
			}
		}
	})
}
