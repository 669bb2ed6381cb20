package vmstate

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// golden reads a .hex file of testdata: bytes in hexadecimal, HH*N for N of
// them, comments after '#'.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		for word := range strings.FieldsSeq(line) {
			digits, times, repeated := strings.Cut(word, "*")
			n := 1
			if repeated {
				if n, err = strconv.Atoi(times); err != nil {
					t.Fatalf("%s: %q: %v", name, word, err)
				}
			}
			b, err := strconv.ParseUint(digits, 16, 8)
			if err != nil {
				t.Fatalf("%s: %q: %v", name, word, err)
			}
			out = append(out, bytes.Repeat([]byte{byte(b)}, n)...)
		}
	}
	return out
}

// q35Blob is what QEMU 7.2 wrote for -machine q35 -m 64 -smp 4 -nodefaults.
func q35Blob(t testing.TB) []byte {
	t.Helper()
	f, err := os.Open("testdata/q35.blob.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func same(t *testing.T, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	t.Fatalf("%d bytes instead of %d; they differ from offset %d on: % x instead of % x",
		len(got), len(want), i, got[i:min(len(got), i+16)], want[i:min(len(want), i+16)])
}
