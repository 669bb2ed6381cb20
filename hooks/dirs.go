package main

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/virt-ft/virt-ft/internal/hookd"
)

// What internal/config has, too; a test compares them.
const (
	configPath      = "/etc/virt-ft/virt-ft.toml"
	defaultStateDir = "/var/lib/virt-ft"
	defaultRunDir   = "/run/virt-ft"
)

// configLineBytesMax bounds a line of the configuration.
const configLineBytesMax = 64 << 10

// dirs is what the hook wants to know of the daemon's configuration.
type dirs struct{ state, run string }

func (d dirs) socket() string { return filepath.Join(d.run, hookd.SocketName) }

// readDirs takes two keys out of the daemon's configuration, line by line: a
// mistake elsewhere in the file keeps the daemon from starting, and must not
// keep us from finding what the one before it left.
func readDirs(path string) dirs {
	d := dirs{defaultStateDir, defaultRunDir}
	f, err := os.Open(path)
	if err != nil {
		return d
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, configLineBytesMax)
	for lines.Scan() {
		line := strings.TrimSpace(strings.TrimPrefix(lines.Text(), "\ufeff"))
		if strings.HasPrefix(line, "[") {
			break // a table: the keys that we look for are in none
		}
		key, value, _ := strings.Cut(line, "=")
		var into *string
		switch strings.Trim(strings.TrimSpace(key), `"'`) {
		case "state_dir":
			into = &d.state
		case "run_dir":
			into = &d.run
		default:
			continue
		}
		if s, ok := tomlString(strings.TrimSpace(value)); ok {
			*into = s
		}
	}
	return d
}

// tomlString reads a TOML string in one line, with what may follow it.
func tomlString(s string) (string, bool) {
	if rest, ok := strings.CutPrefix(s, "'"); ok {
		value, _, ok := strings.Cut(rest, "'")
		return value, ok && value != ""
	}
	quoted, err := strconv.QuotedPrefix(s)
	if err != nil || !strings.HasPrefix(quoted, `"`) {
		return "", false
	}
	value, err := strconv.Unquote(quoted)
	return value, err == nil && value != ""
}
