package virt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	maxPIDFileBytes = 32
	maxCmdlineBytes = 2 << 20 // the kernel's limit for arguments and environment, by default
	pidMax          = 5 * time.Second
)

// PID returns the process id of the domain's QEMU, as libvirtd noted it, after checking that the process is
// that domain's. Otherwise the error is ErrNoProcess, or ErrOutcomeUnknown when /proc does not say for pidMax: what it
// says of a process that hangs in the kernel may never be read. libvirtd must share our PID namespace. The process may
// end at any time: whoever needs more certainty opens a pidfd and calls PID again.
func (d *Domain) PID() (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), pidMax)
	defer cancel()
	pid, err := fly(ctx, d.findPID, nil)
	if err != nil {
		return 0, &CallError{"find QEMU process", d.name, err}
	}
	return pid, nil
}

func (d *Domain) findPID() (int, error) {
	var first error
	for _, dir := range stateDirs(d.conn.uri) {
		pid, err := readPID(filepath.Join(dir, d.name+".pid"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = verifyPID(pid, d.name, d.uuid)
		}
		if err == nil {
			return pid, nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = fmt.Errorf("no pid file in %s", strings.Join(stateDirs(d.conn.uri), ", "))
	}
	return 0, fmt.Errorf("%w: %w", ErrNoProcess, first)
}

// stateDirs lists where libvirt's QEMU driver keeps pid files: see virQEMUDriverConfigNew.
func stateDirs(uri string) []string {
	u, err := url.Parse(uri)
	if err == nil && strings.HasSuffix(u.Path, "/session") {
		base := os.Getenv("XDG_RUNTIME_DIR")
		if base == "" {
			base = filepath.Join("/run/user", strconv.Itoa(os.Getuid()))
		}
		return []string{filepath.Join(base, "libvirt/qemu/run")}
	}
	return []string{"/run/libvirt/qemu", "/var/run/libvirt/qemu"}
}

func readPID(path string) (int, error) {
	b, err := readBounded(path, maxPIDFileBytes)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s does not hold a process id", path)
	}
	return pid, nil
}

// verifyPID guards against a stale pid file whose number was given to another process.
func verifyPID(pid int, name, uuid string) error {
	b, err := readBounded(fmt.Sprintf("/proc/%d/cmdline", pid), maxCmdlineBytes)
	if err != nil {
		return err
	}
	if !isQEMUOf(b, name, uuid) {
		return fmt.Errorf("process %d is not this domain's QEMU: the pid file is stale", pid)
	}
	return nil
}

// isQEMUOf looks for "-uuid UUID", else for "-name guest=NAME", in a NUL-separated command line.
func isQEMUOf(cmdline []byte, name, uuid string) bool {
	args := bytes.Split(bytes.TrimSuffix(cmdline, []byte{0}), []byte{0})
	named := false
	for i := 0; i+1 < len(args); i++ {
		value := string(args[i+1])
		switch string(args[i]) {
		case "-uuid":
			return strings.EqualFold(value, uuid)
		case "-name":
			// libvirt doubles the commas of a name
			guest := "guest=" + strings.ReplaceAll(name, ",", ",,")
			named = value == guest || strings.HasPrefix(value, guest+",debug-threads=")
		}
	}
	return named
}

func readBounded(path string, maxBytes int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > maxBytes {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxBytes)
	}
	return b, nil
}
