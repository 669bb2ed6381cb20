// Command gotest runs `go test -json` with its arguments and prints what a
// person wants to read: the line that closes each package, everything a failed
// test printed, and, at the end, the slowest tests and every skipped one with its
// reason. With -v in
// the arguments it prints all there is. It exits as go test does.
//
// Packages whose tests make labs run one after the other, when all others are
// over: each lab wants the machine for itself. The others run side by side.
// Flags are given as -name=value, so that they can be told from packages.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
)

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// slowest is how many of the slowest tests are named at the end: where the time
// of a run goes. slowS is how slow a test is to be for that, in seconds.
const (
	slowest = 15
	slowS   = 10
)

// What bounds a package, unless the arguments say otherwise. The slowest that makes no lab takes two minutes: one that
// hangs is to leave time for the others, and for what it says of itself.
const (
	besideTimeout = "-timeout=8m"
	aloneTimeout  = "-timeout=25m"
)

// timing is how long a test took.
type timing struct {
	test    string
	elapsed float64
}

// Bounds on what is kept of one test and of one line.
const (
	keepMaxBytes = 4 << 20
	lineMaxBytes = 16 << 20
)

type reporter struct {
	out     io.Writer
	verbose bool
	output  map[string]*strings.Builder // of tests that still run, and of packages
	skips   []string
	slow    []timing
	failed  []string
	passed  int
}

func main() {
	// Ctrl-C reaches go test as well; it ends first and we report.
	signal.Ignore(os.Interrupt)
	flags, patterns := split(os.Args[1:])
	list, err := tested(patterns)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(2)
	}
	r := &reporter{out: os.Stdout, output: map[string]*strings.Builder{}, verbose: slices.Contains(flags, "-v")}
	beside, alone := groups(list)
	err = errors.Join(r.run(besideTimeout, flags, beside), r.run(aloneTimeout, append(flags, "-p=1"), alone))
	r.close()
	if err != nil {
		os.Exit(1)
	}
}

// split tells flags from patterns of packages.
func split(args []string) (flags, patterns []string) {
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			flags = append(flags, a)
		} else {
			patterns = append(patterns, a)
		}
	}
	return flags, patterns
}

// labPackage is what the tests of a package import that make labs.
const labPackage = "github.com/virt-ft/virt-ft/internal/lab"

// tested lists the packages that patterns name: each in a line, with what its tests
// import behind it.
func tested(patterns []string) (string, error) {
	args := []string{"list", "-e", "-f", `{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}`}
	cmd := exec.Command("go", append(args, patterns...)...)
	cmd.Stderr = os.Stderr
	list, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	return string(list), nil
}

// groups parts the packages of a list that tested made: those that can run beside
// each other, and those that make labs.
func groups(list string) (beside, alone []string) {
	for line := range strings.Lines(list) {
		switch f := strings.Fields(line); {
		case len(f) == 0:
		case slices.Contains(f, labPackage): // also the lab itself
			alone = append(alone, f[0])
		default:
			beside = append(beside, f[0])
		}
	}
	return beside, alone
}

// run runs the tests of packages, if there are any.
func (r *reporter) run(timeout string, flags, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	cmd := exec.Command("go", slices.Concat([]string{"test", "-json", timeout}, flags, packages)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, lineMaxBytes)
	for lines.Scan() {
		r.line(lines.Bytes())
	}
	return errors.Join(lines.Err(), cmd.Wait())
}

func (r *reporter) line(b []byte) {
	var e event
	if err := json.Unmarshal(b, &e); err != nil {
		fmt.Fprintf(r.out, "%s\n", b) // go itself, not a test
		return
	}
	key := e.Package + " " + e.Test
	if e.Elapsed >= slowS && e.Test != "" && !strings.Contains(e.Test, "/") {
		r.slow = append(r.slow, timing{short(e.Package) + " " + e.Test, e.Elapsed})
	}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.keep(key, e.Output)
		if r.verbose || e.Test == "" && closing(e.Output) {
			fmt.Fprint(r.out, e.Output)
		}
	case "pass":
		if e.Test != "" {
			r.passed++
		}
		delete(r.output, key)
	case "skip":
		if e.Test != "" { // else a package without tests
			r.skips = append(r.skips, fmt.Sprintf("%s %s: %s", short(e.Package), e.Test, reason(r.text(key))))
		}
		delete(r.output, key)
	case "fail":
		r.failed = append(r.failed, strings.TrimSpace(short(e.Package)+" "+e.Test))
		if !r.verbose {
			fmt.Fprint(r.out, r.text(key))
		}
		delete(r.output, key)
	}
}

func (r *reporter) keep(key, s string) {
	b := r.output[key]
	if b == nil {
		b = &strings.Builder{}
		r.output[key] = b
	}
	if b.Len()+len(s) <= keepMaxBytes {
		b.WriteString(s)
	}
}

func (r *reporter) text(key string) string {
	if b := r.output[key]; b != nil {
		return b.String()
	}
	return ""
}

// closing says whether a package's line is one that go test ends it with.
func closing(line string) bool {
	return strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "FAIL\t") ||
		strings.HasPrefix(line, "---") || strings.HasPrefix(line, "panic:")
}

// reason is what a skipped test logged, without the frame around it.
func reason(output string) string {
	var said []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		said = append(said, line)
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}

func short(pkg string) string {
	return strings.TrimPrefix(pkg, "github.com/virt-ft/virt-ft/")
}

func (r *reporter) close() {
	slices.SortFunc(r.slow, func(a, b timing) int { return cmp.Compare(b.elapsed, a.elapsed) })
	for _, t := range r.slow[:min(slowest, len(r.slow))] {
		fmt.Fprintf(r.out, "%5.0f s  %s\n", t.elapsed, t.test)
	}
	fmt.Fprintf(r.out, "\n%d tests passed, %d failed, %d skipped\n", r.passed, len(r.failed), len(r.skips))
	for _, s := range r.skips {
		fmt.Fprintln(r.out, "SKIP", s)
	}
	for _, s := range r.failed {
		fmt.Fprintln(r.out, "FAIL", s)
	}
}
