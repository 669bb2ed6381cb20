package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// testFiles has done some changes.
func testFiles(t *testing.T) *fileDisk {
	t.Helper()
	d, err := newFileDisk("vdx", filepath.Join(t.TempDir(), "boot-1"))
	if err != nil {
		t.Fatal(err)
	}
	d.uncache = func() error { return nil } // the machine's cache is not ours to drop
	d.rate.Store(1)
	for range 100 {
		d.change()
	}
	if e := d.firstError.Load(); e != nil || d.changes.Load() != 100 {
		t.Fatalf("%d changes, %v", d.changes.Load(), e)
	}
	return d
}

func TestFilesAreFoundOut(t *testing.T) {
	for name, c := range map[string]struct {
		harm                   func(path string, f knownFile) error
		missing, foreign, torn uint64
	}{
		"nothing": {harm: func(string, knownFile) error { return nil }},
		"removed": {harm: func(path string, _ knownFile) error { return os.Remove(path) }, missing: 1},
		"shorter": {harm: func(path string, _ knownFile) error { return os.Truncate(path, 100) }, missing: 1},
		"longer": {harm: func(path string, f knownFile) error {
			return writeChunks(path, os.O_APPEND, f.id, f.chunks, 1)
		}, foreign: 1},
		"another": {harm: func(path string, f knownFile) error { return writeChunks(path+"x", os.O_CREATE, f.id, 0, 1) }, foreign: 1},
		"content": {harm: func(path string, f knownFile) error { return writeChunks(path, 0, f.id+1, 0, 1) }, torn: 1},
	} {
		d := testFiles(t)
		for file, known := range d.files {
			if err := c.harm(filepath.Join(d.dir, file), known); err != nil {
				t.Fatal(err)
			}
			break
		}
		f, err := d.check()
		if err != nil || f.Missing != c.missing || f.Foreign != c.foreign || f.Torn != c.torn {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
}

func TestFilesAreBounded(t *testing.T) {
	d := testFiles(t)
	if len(d.files) == 0 || len(d.files) > filesMax {
		t.Errorf("%d files", len(d.files))
	}
	d.files["f00"] = knownFile{id: 1 << 40, chunks: fileChunksMax - 1}
	if err := os.WriteFile(filepath.Join(d.dir, "f00"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.grow("f00", d.files["f00"]); err != nil || d.files["f00"].chunks != fileChunksMax {
		t.Errorf("%+v, %v", d.files["f00"], err)
	}
	if err := d.quiet(); err != nil {
		t.Error(err)
	}
	before := fmt.Sprint(d.files)
	d.change()
	if fmt.Sprint(d.files) != before {
		t.Error("a quiet disk changes")
	}
}
