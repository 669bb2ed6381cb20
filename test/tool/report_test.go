package tool

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func report() *Report {
	r := &Report{
		Head: Head{Version: ReportVersion, Date: time.Unix(1e9, 0).UTC(), Commit: "abc", Machine: Machine{Kernel: "6", Cores: 2}},
		Parts: map[string]Part{
			"pause": {Result: Result{Tool: "pause", OK: true, Metrics: map[string]float64{"pause_ratio_10": 1.5},
				Skipped: map[string]string{"pause_ratio_ram_8g": "too small"}, Details: map[string]any{"epoch_ms": 50.}}, Seconds: 3},
			"load": {Result: Result{Tool: "load", Metrics: map[string]float64{"cpu_ratio_10hz": .9}, Skipped: map[string]string{}, Error: "no guest"}},
		},
	}
	r.Merge(map[string]string{"pause_ratio_10": "pause", "pause_ratio_500": "pause", "cpu_ratio_40hz": "load", "zc_cpu_ratio": "stream"})
	return r
}

func TestMerge(t *testing.T) {
	r := report()
	if v := r.Metrics["pause_ratio_10"]; v == nil || *v != 1.5 {
		t.Errorf("pause_ratio_10: %v", v)
	}
	if v := r.Metrics["cpu_ratio_10hz"]; v == nil || *v != .9 {
		t.Errorf("what a failed part did measure: %v", v)
	}
	want := map[string]string{
		"pause_ratio_ram_8g": "too small",
		"pause_ratio_500":    "pause ran, and did not tell it",
		"cpu_ratio_40hz":     "load failed: no guest",
		"zc_cpu_ratio":       "stream was not run (bench -only stream)",
	}
	if !reflect.DeepEqual(r.Skipped, want) {
		t.Errorf("skipped %v, want %v", r.Skipped, want)
	}
	for name := range want {
		if v, told := r.Metrics[name]; !told || v != nil {
			t.Errorf("%s is %v, %v: it must be there as null", name, v, told)
		}
	}
}

func TestReportIsWrittenAndRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.json")
	if _, err := ReadReport(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	want := report()
	for range 2 { // the second time over the first
		if err := want.Write(path); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadReport(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read   %+v\nwrote  %+v", got, want)
	}
	var details struct {
		EpochMs float64 `json:"epoch_ms"`
	}
	if err := got.Parts["pause"].ReadDetails(&details); err != nil || details.EpochMs != 50 {
		t.Errorf("details %+v, %v", details, err)
	}
	if names, err := filepath.Glob(path + "*"); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

// Whoever reads the file finds the figures at its top.
func TestReportIsFlat(t *testing.T) {
	b, err := json.Marshal(report())
	if err != nil {
		t.Fatal(err)
	}
	var flat map[string]any
	if err := json.Unmarshal(b, &flat); err != nil {
		t.Fatal(err)
	}
	missing, told := flat["zc_cpu_ratio"]
	if flat["pause_ratio_10"] != 1.5 || missing != nil || !told || flat["commit"] != "abc" {
		t.Errorf("%s", b)
	}
}

func TestReadReportRefuses(t *testing.T) {
	for _, text := range []string{"", "[]", `{"version":0}`, `{"version":1,"date":"2000-01-01T00:00:00Z","x_ratio":"fast"}`} {
		path := filepath.Join(t.TempDir(), "bench.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := ReadReport(path); err == nil {
			t.Errorf("%q: %+v", text, r)
		}
	}
}
