package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"github.com/virt-ft/virt-ft/test/tool"
)

// begin returns the report to add to: the one that is there, if it is of the
// same sources and the same machine, else a new one.
func begin(path string, head tool.Head) (*tool.Report, error) {
	r, err := tool.ReadReport(path)
	switch {
	case err == nil && sameSources(r.Head, head):
		say("%s is of the same sources: parts that are not run now stay as they are there", path)
	case err == nil:
		say("%s is of other sources or another machine: it is replaced", path)
		r = nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if r == nil {
		r = &tool.Report{Head: head}
	}
	if r.Parts == nil {
		r.Parts = map[string]tool.Part{}
	}
	return r, nil
}

// sameSources tells whether figures of both may stand side by side.
func sameSources(a, b tool.Head) bool {
	return a.Commit == b.Commit && a.Changes == b.Changes && a.Machine == b.Machine
}

// newHead looks at sources and machine. What this machine does not tell stays
// "unknown"; without git there is no head, because nothing would say what was
// measured.
func newHead(ctx context.Context) (h tool.Head, err error) {
	h.Version = tool.ReportVersion
	if h.Commit, err = output(ctx, "git", "rev-parse", "HEAD"); err != nil {
		return h, fmt.Errorf("which commit this is: %w", err)
	}
	if h.Changes, err = changes(ctx); err != nil {
		return h, fmt.Errorf("what has changed since %s: %w", h.Commit, err)
	}
	h.Machine = tool.Machine{
		Kernel: orUnknown(firstLine("/proc/sys/kernel/osrelease")),
		CPU:    orUnknown(procField("/proc/cpuinfo", "model name")),
		Go:     runtime.Version(), Cores: runtime.NumCPU(),
	}
	h.Machine.QEMU = orUnknown(version(ctx, "qemu-system-x86_64"))
	h.Machine.Libvirt = orUnknown(version(ctx, "libvirtd"))
	kb, _, _ := strings.Cut(procField("/proc/meminfo", "MemTotal"), " ")
	if n, err := strconv.Atoi(kb); err == nil {
		h.Machine.RAMMiB = n >> 10
	}
	return h, nil
}

// changes is a short digest of the Go sources that differ from the commit, new
// ones included; empty if none do.
func changes(ctx context.Context) (string, error) {
	sources := []string{"--", "*.go", "go.mod", "go.sum"}
	diff, err := exec.CommandContext(ctx, "git", append([]string{"diff", "HEAD"}, sources...)...).Output()
	if err != nil {
		return "", err
	}
	list, err := exec.CommandContext(ctx, "git", append([]string{"ls-files", "-o", "--exclude-standard", "-z"}, sources...)...).Output()
	if err != nil {
		return "", err
	}
	if len(diff) == 0 && len(list) == 0 {
		return "", nil
	}
	sum := sha256.New()
	sum.Write(diff)
	for name := range bytes.SplitSeq(list, []byte{0}) {
		if len(name) == 0 {
			continue
		}
		b, err := os.ReadFile(string(name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%d %s %d ", len(name), name, len(b))
		sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	b, err := exec.CommandContext(ctx, name, args...).Output()
	return strings.TrimSpace(string(b)), err
}

// version is the first line that a program says of itself.
func version(ctx context.Context, program string) string {
	text, err := output(ctx, program, "--version")
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(text, "\n")
	return line
}

func firstLine(path string) string {
	b, _ := os.ReadFile(path) // absent: unknown
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// procField is what stands behind "name:" in a file of /proc, the first time.
func procField(path, name string) string {
	b, _ := os.ReadFile(path) // absent: unknown
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
