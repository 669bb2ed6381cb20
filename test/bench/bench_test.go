package main

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

// programs are shell scripts in the place of the measuring programs.
func programs(t *testing.T, scripts map[string]string) options {
	t.Helper()
	dir := t.TempDir()
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(dir, "lab-"+name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return options{build: dir, out: filepath.Join(dir, "bench.json")}
}

func named(name string) part { return part{name: name, max: time.Minute} }

func TestRunMergesPartsOfTheSameSources(t *testing.T) {
	o := programs(t, map[string]string{
		"pause": `echo a table; echo '{"tool":"pause","ok":true,"metrics":{"pause_ratio_10":1.25},"skipped":{"pause_ratio_ram_8g":"no room"}}'`,
		"load":  `echo '{"tool":"load","ok":false,"metrics":{"cpu_ratio_10hz":0.9},"skipped":{},"error":"the guest was lost"}'; exit 1`,
	})
	head := tool.Head{Version: tool.ReportVersion, Commit: "abc"}
	o.parts = []part{named("pause")}
	if err := run(t.Context(), o, head); err != nil {
		t.Fatal(err)
	}
	o.parts = []part{named("load"), named("stream")}
	err := run(t.Context(), o, head)
	for _, want := range []string{"load failed: the guest was lost", "stream failed", "lab-stream is not there"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in error %v", want, err)
		}
	}
	r, err := tool.ReadReport(o.out)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"pause_ratio_10": 1.25, "cpu_ratio_10hz": .9} {
		if v := r.Metrics[name]; v == nil || *v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	for _, f := range figures() {
		v, told := r.Metrics[f.name]
		if !told || v == nil && r.Skipped[f.name] == "" {
			t.Errorf("%s is missing, or null without a reason", f.name)
		}
	}
	if got := r.Skipped["pause_ratio_ram_8g"]; got != "no room" {
		t.Errorf("the program's own reason became %q", got)
	}
	// Other sources begin anew.
	head.Commit, o.parts = "def", nil
	if err := run(t.Context(), o, head); err != nil {
		t.Fatal(err)
	}
	o.parts = []part{named("pause")}
	if err := run(t.Context(), o, head); err != nil {
		t.Fatal(err)
	}
	if r, err = tool.ReadReport(o.out); err != nil || r.Metrics["cpu_ratio_10hz"] != nil || r.Commit != "def" {
		t.Errorf("%+v, %v", r, err)
	}
}

// A part that fails alone fails the run; what it measured before is kept.
func TestProgramWithoutItsLine(t *testing.T) {
	o := programs(t, map[string]string{"pause": `echo half a table`, "load": `exit 3`, "disk": `echo '{"a":1}'`})
	for _, name := range []string{"pause", "load", "disk"} {
		if p := named(name).measure(t.Context(), o); p.OK || !strings.Contains(p.Error, "without its closing line") {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// A program that is asked to end cleans up and says what it has.
func TestProgramIsAskedToEnd(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "ready")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	o := programs(t, map[string]string{"pause": `trap 'echo "{\"tool\":\"pause\",\"ok\":false,\"metrics\":{\"pause_ratio_10\":2},\"error\":\"interrupted\"}"; exit 1' INT
: >` + fifo + `
while :; do sleep 0.05; done`})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		if f, err := os.Open(fifo); err == nil { // when the program opens it too
			_ = f.Close()
		}
		cancel()
	}()
	p := named("pause").measure(ctx, o)
	if p.OK || p.Error != "interrupted" || p.Metrics["pause_ratio_10"] != 2 {
		t.Errorf("%+v", p)
	}
}

func TestParseBenchmarks(t *testing.T) {
	const text = `goos: linux
pkg: github.com/virt-ft/virt-ft/internal/replica
cpu: some
BenchmarkSendPages/4KiB-2         	     100	   1234 ns/op	 0.750 x-memcpy	       0 B/op
BenchmarkWords 	 7 	 5.5 ns/op
a log line of BenchmarkSendPages
BenchmarkBroken-2  many  1 ns/op
BenchmarkBroken-2  1  x ns/op
PASS
pkg: github.com/virt-ft/virt-ft/pkg/zcstream
BenchmarkStream-2   	      10	   99 ns/op
`
	want := []benchmark{
		{"internal/replica", "SendPages/4KiB", 100, map[string]float64{"ns/op": 1234, "x-memcpy": .75, "B/op": 0}},
		{"internal/replica", "Words", 7, map[string]float64{"ns/op": 5.5}},
		{"pkg/zcstream", "Stream", 10, map[string]float64{"ns/op": 99}},
	}
	if got := parseBenchmarks(strings.NewReader(text)); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{"-only", "stream, pause", "-args", "pause=-rounds 20"})
	if err != nil || len(o.parts) != 2 || o.parts[0].name != "pause" || o.parts[1].name != "stream" {
		t.Fatalf("%+v, %v", o, err)
	}
	if want := []string{"-rounds", "20"}; !reflect.DeepEqual(o.parts[0].args, want) {
		t.Errorf("arguments %q", o.parts[0].args)
	}
	for _, bad := range [][]string{{"-only", "speed"}, {"-args", "speed=-x"}, {"-args", "pause"}, {"more"}} {
		if o, err := parseOptions(bad); err == nil {
			t.Errorf("%q: %+v", bad, o)
		}
	}
}

func TestTable(t *testing.T) {
	r := &tool.Report{Parts: map[string]tool.Part{"pause": {Result: tool.Result{OK: true,
		Metrics: map[string]float64{"pause_ratio_10": 1.25, "pause_ratio_500": 1.75, "odd_ratio": 3}}}}}
	r.Merge(owed())
	var b strings.Builder
	printTable(&b, r)
	rows := map[string]string{}
	for line := range strings.Lines(b.String()) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rows[name] = strings.Join(strings.Fields(rest), " ")
	}
	for name, want := range map[string]string{"pause_ratio_10": "1.250 <= 1.5 yes", "pause_ratio_500": "1.750 <= 1.5 NO", "odd_ratio": "3.000"} {
		if !strings.HasPrefix(rows[name], want) {
			t.Errorf("%s: %q, want %q", name, rows[name], want)
		}
	}
	if text := b.String(); !strings.Contains(text, "stream was not run (bench -only stream):\n") || !strings.Contains(text, ", zc_cpu_ratio") ||
		strings.Contains(text, "busy") {
		t.Error(text)
	}
}

// Figures of a busy machine must not pass for good ones.
func TestTableSaysThatTheMachineWasBusy(t *testing.T) {
	r := &tool.Report{Parts: map[string]tool.Part{"pause": {Result: tool.Result{OK: true,
		Metrics: map[string]float64{"pause_ratio_10": 1.05, "pause_noise_ratio": .7, "pause_pages_500": 600, "pause_pages_8000": 5900}}}}}
	r.Merge(owed())
	var b strings.Builder
	printTable(&b, r)
	if text := b.String(); !strings.Contains(text, "The machine was busy") || !strings.Contains(text, "dirty 8000 pages in an epoch, but 5900") ||
		strings.Contains(text, "dirty 500 pages") {
		t.Error(text)
	}
}

// Figures are owed by parts that exist, and named once.
func TestFigures(t *testing.T) {
	parts := map[string]bool{}
	for _, name := range partNames() {
		parts[name] = true
	}
	for _, f := range figures() {
		if !parts[f.part] {
			t.Errorf("%s is owed by %q", f.name, f.part)
		}
	}
	if n := len(owed()); n != len(figures()) {
		t.Errorf("%d names of %d figures", n, len(figures()))
	}
}

func TestAims(t *testing.T) {
	if !atMost(2).met(2) || atMost(2).met(2.1) || !atLeast(2).met(2) || atLeast(2).met(1.9) {
		t.Error("a bound is not one")
	}
}
