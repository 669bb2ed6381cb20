// Command plots draws the figures of bench.json as SVG files, with nothing but
// the standard library. A figure whose part was not measured is left as it is.
// docs/PERFORMANCE.md shows them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/virt-ft/virt-ft/test/tool"
)

func main() {
	in := flag.String("in", "bench.json", "what test/bench wrote")
	out := flag.String("out", "docs/plots", "the directory to draw into")
	flag.Parse()
	if flag.NArg() > 0 {
		tool.Usage("plots", fmt.Errorf("unknown argument %q", flag.Arg(0)))
	}
	if err := run(*in, *out); err != nil {
		tool.Say("plots", "%v", err)
		os.Exit(1)
	}
}

func run(in, out string) error {
	r, err := tool.ReadReport(in)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: make bench writes it", err)
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, p := range plots() {
		path := filepath.Join(out, p.file)
		c, err := p.draw(r)
		if err != nil {
			tool.Say("plots", "%s stays as it is: %v", path, err)
			continue
		}
		c.subtitleLines = subtitle(r, p.part)
		if err := os.WriteFile(path, c.render(), 0o644); err != nil {
			return err
		}
		tool.Say("plots", "%s", path)
	}
	return nil
}

// subtitle says what was measured, when and on what.
func subtitle(r *tool.Report, part string) [2]string {
	m, date, changed := r.Machine, r.Date, ""
	if p, there := r.Parts[part]; there {
		date = p.Date
	}
	if r.Changes != "" {
		changed = " and changes"
	}
	return [2]string{
		fmt.Sprintf("%s, commit %.10s%s, guests under TCG", date.Format("2006-01-02"), r.Commit, changed),
		fmt.Sprintf("%d cores of %s, Linux %s, QEMU %s, libvirt %s", m.Cores, m.CPU, m.Kernel, release(m.QEMU), release(m.Libvirt)),
	}
}

// release is the number in what a program says of its version.
func release(text string) string {
	if n := regexp.MustCompile(`\d+(\.\d+)+`).FindString(text); n != "" {
		return n
	}
	return text
}
