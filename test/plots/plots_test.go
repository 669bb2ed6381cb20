package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/virt-ft/virt-ft/internal/plot"
	"github.com/virt-ft/virt-ft/test/tool"
)

// element is one of an SVG, with its attributes and what it holds.
type element struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Text     string     `xml:",chardata"`
	Children []element  `xml:",any"`
}

func (e element) attr(name string) string {
	for _, a := range e.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

func (e element) number(t interface{ Fatalf(string, ...any) }, name string) float64 {
	v, err := strconv.ParseFloat(e.attr(name), 64)
	if err != nil {
		t.Fatalf("%s of %s: %v", name, e.XMLName.Local, err)
	}
	return v
}

// read parses an SVG and makes sure that all of it lies on the page.
func read(t interface{ Fatalf(string, ...any) }, svg []byte) (all []element) {
	var root element
	dec := xml.NewDecoder(bytes.NewReader(bytes.TrimSpace(svg)))
	if err := dec.Decode(&root); err != nil {
		t.Fatalf("%v in\n%s", err, svg)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		t.Fatalf("something behind the end: %v", err)
	}
	w, h := root.number(t, "width"), root.number(t, "height")
	for _, e := range root.Children {
		for _, a := range e.Attrs {
			limit := h
			switch a.Name.Local {
			case "x", "x1", "x2", "cx", "width":
				limit = w
			case "y", "y1", "y2", "cy", "height":
			default:
				continue
			}
			if v, err := strconv.ParseFloat(a.Value, 64); err != nil || !(v >= 0 && v <= limit) {
				t.Fatalf("%s=%q of a %s is off the page of %v by %v", a.Name.Local, a.Value, e.XMLName.Local, w, h)
			}
		}
	}
	return root.Children
}

func of(all []element, name, class string) (found []element) {
	for _, e := range all {
		if e.XMLName.Local == name && slices.Contains(strings.Fields(e.attr("class")), class) {
			found = append(found, e)
		}
	}
	return found
}

func TestStacksAreProportional(t *testing.T) {
	c := &chart{form: stacked, title: "a <title> & more", places: []string{"one", "two"},
		series: []series{{name: "low", v: []float64{1, 2}, colour: 0}, {name: "high", v: []float64{3, math.NaN()}, colour: 1}}}
	all := read(t, c.render())
	low, high := of(all, "rect", "f0"), of(all, "rect", "f1")
	if len(low) != 3 || len(high) != 2 { // one of each is the legend's
		t.Fatalf("%d and %d rectangles", len(low), len(high))
	}
	unit := low[0].number(t, "height")
	if two := low[1].number(t, "height"); math.Abs(two-2*unit) > .2 {
		t.Errorf("2 is %v high, 1 is %v", two, unit)
	}
	if three := high[0].number(t, "height"); math.Abs(three-3*unit) > .2 {
		t.Errorf("3 is %v high, 1 is %v", three, unit)
	}
	if foot := high[0].number(t, "y") + high[0].number(t, "height"); math.Abs(foot-low[0].number(t, "y")) > .2 {
		t.Error("the second does not lie on the first")
	}
}

func TestLinesBreakAtWhatIsMissing(t *testing.T) {
	c := &chart{form: lines, places: []string{"1", "2", "3", "4", "5"},
		series: []series{{name: "a", v: []float64{1, 2, math.NaN(), 4, 2}, colour: 3}}}
	all := read(t, c.render())
	dots, paths := of(all, "circle", "f3"), of(all, "polyline", "s3")
	if len(dots) != 4 || len(paths) != 2 {
		t.Fatalf("%d points and %d lines", len(dots), len(paths))
	}
	if a, b := dots[1].number(t, "cy"), dots[3].number(t, "cy"); a != b {
		t.Errorf("2 is at %v and at %v", a, b)
	}
	if a, b := dots[0].number(t, "cy"), dots[2].number(t, "cy"); a <= b {
		t.Error("4 is not above 1")
	}
}

func TestLogBars(t *testing.T) {
	c := &chart{form: bars, log: true, places: []string{"a", "b", "c", "d"}, floors: []bool{true},
		series: []series{{v: []float64{10, 100, 1000, math.NaN()}, colour: 0}}}
	all := read(t, c.render())
	if n := len(of(all, "rect", "f6")); n != 1 {
		t.Errorf("%d floors", n)
	}
	b := of(all, "rect", "f0")
	if len(b) != 2 {
		t.Fatalf("%d bars", len(b))
	}
	if one, two := b[0].number(t, "width"), b[1].number(t, "width"); math.Abs(two-2*one) > .2 {
		t.Errorf("two powers above the least are %v wide, one is %v", two, one)
	}
}

// Whatever was measured, the file is one, and nothing is off its page.
func TestChartsStayOnThePage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.OneOf(rapid.Float64Range(0, 1e6), rapid.Float64Range(0, 1e-3), rapid.Just(math.NaN()), rapid.Just(math.Inf(1)))
		n := rapid.IntRange(0, 6).Draw(t, "places")
		c := &chart{form: form(rapid.IntRange(0, 2).Draw(t, "form")), log: rapid.Bool().Draw(t, "log"), title: "t",
			aim: rapid.SampledFrom([]float64{0, 1}).Draw(t, "aim")}
		for i := range n {
			c.places = append(c.places, strconv.Itoa(i))
		}
		for i := range rapid.IntRange(1, 6).Draw(t, "series") {
			c.series = append(c.series, series{name: "s", colour: i, v: rapid.SliceOfN(value, n, n).Draw(t, "values")})
		}
		read(t, c.render())
	})
}

func TestTicks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.Float64Range(1e-6, 1e9).Draw(t, "most")
		v := plot.Ticks(most)
		if v[0] != 0 || v[len(v)-1] < most*(1-1e-6) || len(v) < 3 || len(v) > 8 {
			t.Fatalf("%v: %v", most, v)
		}
	})
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", .12345: "0.123", 1.5: "1.5", 12.345: "12.3", 1234.5: "1235", 1e6: "1000000", 1e-3: "0.001"} {
		if got := plot.Number(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}

func TestRelease(t *testing.T) {
	for text, want := range map[string]string{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)": "7.2.22", "libvirtd (libvirt) 9.0.0": "9.0.0", "unknown": "unknown"} {
		if got := release(text); got != want {
			t.Errorf("%q is of %q, want %q", text, got, want)
		}
	}
}

// measured is a report as the programs write it.
func measured(t *testing.T) *tool.Report {
	t.Helper()
	level := func(mib, pages int, ms float64) map[string]any {
		s := func(v float64) map[string]any { return map[string]any{"p50_ms": v, "p99_ms": 2 * v, "max_ms": 3 * v} }
		return map[string]any{"ram_mib": mib, "dirty_pages": pages, "nothing": s(ms / 10), "stop_cont": s(ms / 2), "save_drained": s(ms / 2),
			"checkpoint": s(ms), "phases": map[string]any{"brake_ms": ms / 4, "scan_ms": ms / 8, "copy_ms": ms / 8, "resume_ms": ms / 2}}
	}
	r := &tool.Report{Head: tool.Head{Version: tool.ReportVersion, Commit: "0123456789abcdef"}, Parts: map[string]tool.Part{
		"pause": {Result: tool.Result{OK: true, Details: map[string]any{
			"levels": []any{level(256, 10, 4), level(256, 8000, 8)}, "ram": []any{level(8192, 500, 6), level(256, 500, 5)}}}},
		"load": {Result: tool.Result{OK: true, Metrics: map[string]float64{"cpu_ratio_10hz": .99, "cpu_ratio_40hz": .9, "cpu_ratio_100hz": .7}}},
		"stream": {Result: tool.Result{OK: true, Details: map[string]any{"host": []any{
			map[string]any{"name": "memcpy", "streams": 1, "gb_per_s": 8}, map[string]any{"name": "stream", "streams": 2, "gb_per_s": 3}}}}},
		"today": {Result: tool.Result{OK: true, Metrics: map[string]float64{"save_stall_ms": 3000, "checkpoint_stall_ms": 5}}},
	}}
	r.Merge(nil)
	return r
}

func TestRunDrawsAll(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "bench.json"), filepath.Join(dir, "docs", "plots")
	if err := run(in, out); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "make bench") {
		t.Errorf("without figures: %v", err)
	}
	if err := measured(t).Write(in); err != nil {
		t.Fatal(err)
	}
	if err := run(in, out); err != nil {
		t.Fatal(err)
	}
	for _, p := range plots() {
		svg, err := os.ReadFile(filepath.Join(out, p.file))
		if err != nil {
			t.Error(err)
			continue
		}
		if read(t, svg); !bytes.Contains(svg, []byte("0123456789")) {
			t.Errorf("%s does not say of what commit it is", p.file)
		}
	}
}

// What was not measured leaves the plot of an earlier run alone.
func TestRunLeavesWhatItCannotDraw(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "bench.json")
	r := measured(t)
	r.Parts = map[string]tool.Part{"pause": r.Parts["pause"]}
	r.Merge(nil)
	if err := r.Write(in); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "today.svg")
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(in, dir); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(old); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "pause-ram.svg")); err != nil {
		t.Error(err)
	}
}

// The plots read test/pause's details by the names that it gives them.
func TestPauseDetailsAreRead(t *testing.T) {
	r := measured(t)
	d, err := readPause(r)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if l := d.Levels[1]; l.Checkpoint.P99 != 16 || l.Phases.Resume != 4 || l.DirtyPages != 8000 || d.RAM[0].RAMMiB != 8192 {
		t.Errorf("%s", b)
	}
}
