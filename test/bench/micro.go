package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

// benchmark is one line of go test -bench.
type benchmark struct {
	Package string             `json:"package"` // within the module
	Name    string             `json:"name"`    // without "Benchmark" and the number of cores
	Runs    int                `json:"runs"`
	Values  map[string]float64 `json:"values"` // by unit, as it prints them: "x-memcpy", "ns/op"
}

// benchmarks runs those of all packages that have some. Their figures are
// details: the ratios among them have the floor in their name.
func benchmarks(ctx context.Context, benchtime time.Duration) (r tool.Result, err error) {
	r.Tool = micro
	packages, err := benchPackages(ctx)
	if err != nil {
		return r, err
	}
	args := append([]string{"test", "-run", "^$", "-bench", ".", "-benchmem", "-p", "1", "-benchtime", benchtime.String()}, packages...)
	cmd := exec.Command("go", args...)
	var text bytes.Buffer
	cmd.Stderr = os.Stderr
	last, err := watch(ctx, cmd, io.MultiWriter(os.Stdout, &text))
	text.Write(last)
	fmt.Printf("%s\n", last)
	r.Details = parseBenchmarks(&text)
	if err != nil {
		return r, fmt.Errorf("go test -bench: %w", err)
	}
	r.OK = true
	return r, nil
}

// benchPackages lists the packages with benchmarks: the others need not be
// compiled for this.
func benchPackages(ctx context.Context) ([]string, error) {
	// Files that git does not know yet are the project's too.
	out, err := exec.CommandContext(ctx, "git", "grep", "-l", "--untracked", "-E", "^func Benchmark", "--", "*_test.go").Output()
	if err != nil {
		return nil, fmt.Errorf("git grep, for the packages that have benchmarks: %w", err)
	}
	var dirs []string
	for name := range strings.FieldsSeq(string(out)) {
		dirs = append(dirs, "./"+path.Dir(name))
	}
	slices.Sort(dirs)
	if dirs = slices.Compact(dirs); len(dirs) == 0 {
		return nil, errors.New("git knows no package with benchmarks")
	}
	return dirs, nil
}

const module = "github.com/virt-ft/virt-ft/"

// parseBenchmarks reads what go test prints (golang.org/design/14313). Lines that
// are none of its own are passed over.
func parseBenchmarks(text io.Reader) (all []benchmark) {
	in := ""
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, lineMaxBytes)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "pkg: "); ok {
			in = strings.TrimPrefix(name, module)
			continue
		}
		words := strings.Fields(lines.Text())
		if len(words) < 4 || !strings.HasPrefix(words[0], "Benchmark") {
			continue
		}
		b := benchmark{Package: in, Name: strings.TrimPrefix(words[0], "Benchmark"), Values: map[string]float64{}}
		if i := strings.LastIndexByte(b.Name, '-'); i > 0 {
			if _, err := strconv.Atoi(b.Name[i+1:]); err == nil {
				b.Name = b.Name[:i]
			}
		}
		var err error
		if b.Runs, err = strconv.Atoi(words[1]); err != nil {
			continue
		}
		for ; err == nil && len(words) >= 4; words = words[2:] {
			b.Values[words[3]], err = strconv.ParseFloat(words[2], 64)
		}
		if err == nil {
			all = append(all, b)
		}
	}
	return all
}
