package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

// part is one program, or the micro-benchmarks.
type part struct {
	name string
	max  time.Duration // after which it is ended
	args []string
}

const micro = "micro"

// allParts are the parts in the order in which they run. Their times, together,
// are what a run may take; their arguments keep a run well below that.
func allParts() []part {
	return []part{
		{micro, 8 * time.Minute, nil},
		{"pause", 8 * time.Minute, nil},
		{"disk", 6 * time.Minute, []string{"-rounds", "3", "-sync", "256"}},
		{"load", 6 * time.Minute, nil},
		{"stream", 6 * time.Minute, nil},
		{"today", 6 * time.Minute, nil},
	}
}

func partNames() (names []string) {
	for _, p := range allParts() {
		names = append(names, p.name)
	}
	return names
}

// endMax is how long a program that was asked to end may take to clean up.
const endMax = 30 * time.Second

// measure runs a part and returns its figures, and how it ended.
func (p part) measure(ctx context.Context, o options) tool.Part {
	ctx, cancel := context.WithTimeoutCause(ctx, p.max, fmt.Errorf("not done after %v", p.max))
	defer cancel()
	got := tool.Part{LoadBefore: loadAverage()}
	began := time.Now()
	var err error
	if p.name == micro {
		got.Result, err = benchmarks(ctx, o.benchtime)
	} else {
		got.Result, err = p.program(ctx, o)
	}
	if err != nil {
		got.OK, got.Error = false, strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	got.Seconds, got.Date = tool.Round3(time.Since(began).Seconds()), time.Now().UTC().Truncate(time.Second)
	return got
}

// program runs the part's program.
func (p part) program(ctx context.Context, o options) (r tool.Result, err error) {
	path := filepath.Join(o.build, "lab-"+p.name)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("%s is not there: run make bench, which builds it", path)
	}
	cmd := exec.Command(path, p.args...)
	cmd.Stderr = os.Stderr
	last, err := watch(ctx, cmd, os.Stdout)
	if jerr := json.Unmarshal(last, &r); jerr != nil || r.Tool == "" {
		return r, errors.Join(fmt.Errorf("%s ended without its closing line, but with %.100q", path, last), err)
	}
	if r.Error != "" { // says more than the exit code
		return r, errors.New(r.Error)
	}
	return r, err
}

// lineMaxBytes bounds a line of a program, details included.
const lineMaxBytes = 16 << 20

// watch runs a command, copies its standard output to w line by line, and keeps
// back the last line, which it returns. When ctx ends, the command and what it
// started are interrupted, and killed if they do not end in time.
func watch(ctx context.Context, cmd *exec.Cmd, w io.Writer) (last []byte, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // go test has children of its own
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go interrupt(ctx, -cmd.Process.Pid, ended)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, lineMaxBytes)
	for more := false; lines.Scan(); more = true {
		if more {
			_, _ = fmt.Fprintf(w, "%s\n", last) // for a person; shows in what is missing
		}
		last = bytes.Clone(lines.Bytes())
	}
	if err = lines.Err(); err != nil {
		_, _ = io.Copy(io.Discard, out) // it must not wait for us
	}
	err = errors.Join(err, cmd.Wait())
	close(ended)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return last, err
}

// interrupt ends a process group when ctx ends, unless it has ended by then.
func interrupt(ctx context.Context, group int, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	_ = syscall.Kill(group, syscall.SIGINT) // gone already, at worst
	select {
	case <-ended:
	case <-time.After(endMax):
		_ = syscall.Kill(group, syscall.SIGKILL)
	}
}

// loadAverage is the first figure of /proc/loadavg; -1 where there is none.
func loadAverage() float64 {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return -1
	}
	return v
}
