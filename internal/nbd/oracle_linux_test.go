package nbd

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// need returns the path of a program, or skips.
func need(t *testing.T, program, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("%s is missing (Debian package %s)", program, pkg)
	}
	return path
}

// tool runs a program and returns what it printed.
func tool(t *testing.T, pkg, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(need(t, program, pkg), args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", program, args, err, &out, &complaint)
	}
	return out.String()
}

const (
	qemuUtils = "qemu-utils"
	libnbdBin = "libnbd-bin"
)

// sparse writes an image with data in some places, and returns its contents.
func sparse(t *testing.T, name string, size int64) []byte {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	noise := rand.NewChaCha8([32]byte{1})
	for _, at := range []int64{0, size / 3 &^ 4095, size/2&^4095 + 512, size - 777} {
		chunk := make([]byte, min(300_001, size-at))
		_, _ = noise.Read(chunk) // never fails
		if _, err := f.WriteAt(chunk, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// extentOf is one line of qemu-img map.
type extentOf struct {
	Start, Length int64
	Zero, Data    bool
}

func TestQemuImg(t *testing.T) {
	const size = 48<<20 + 1536
	image := filepath.Join(t.TempDir(), "image")
	want := sparse(t, image, size)
	m := newMemory(t, size)
	m.log = false
	s := serve(t, Options{}, map[string]Backend{"vda": m, "plain": blind{m}})

	tool(t, qemuUtils, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, s.uri("vda"))
	if !bytes.Equal(m.data, want) {
		t.Fatal("convert to us: the disk differs")
	}
	for _, export := range []string{"vda", "plain"} {
		tool(t, qemuUtils, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, s.uri(export))
		back := image + ".back"
		tool(t, qemuUtils, "qemu-img", "convert", "-f", "raw", "-O", "raw", s.uri(export), back)
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
			t.Errorf("convert from %s: differs (%v)", export, err)
		}
	}

	var extents []extentOf
	if err := json.Unmarshal([]byte(tool(t, qemuUtils, "qemu-img", "map", "--output=json", "-f", "raw", s.uri("vda"))), &extents); err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	holes := 0
	for _, e := range extents {
		if e.Start != end {
			t.Errorf("map: a gap at %d", end)
		}
		end = e.Start + e.Length
		if e.Zero {
			holes++
			if slices.ContainsFunc(m.data[e.Start:min(end, size)], func(b byte) bool { return b != 0 }) {
				t.Errorf("map: data in the hole %+v", e)
			}
		}
	}
	// QEMU rounds a raw disk's size up to whole sectors.
	if end < size || end >= size+512 || holes < 3 {
		t.Errorf("map: %d bytes with %d holes: %+v", end, holes, extents)
	}
}

func TestQemuIO(t *testing.T) {
	const size = 4<<20 + 100
	m := newMemory(t, size)
	s := serve(t, Options{}, map[string]Backend{"vda": m})
	for i := range m.data {
		m.data[i] = 0x11
	}
	m.mark(0, size, true)
	want := bytes.Clone(m.data)
	fill := func(off, n int, v byte) {
		for i := range want[off : off+n] {
			want[off+i] = v
		}
	}
	for _, test := range []struct {
		command string
		asked   string // something that the backend is asked
		do      func()
	}{
		{"write -P 0xa5 4096 4096", "write 4096 4096 false", func() { fill(4096, 4096, 0xa5) }},
		{"write -P 7 -f 1M 64k", "write 1048576 65536 true", func() { fill(1<<20, 64<<10, 7) }},
		{"write -P 9 1234 567", "write 1234 567 false", func() { fill(1234, 567, 9) }},
		{"write -P 8 4194304 100", "write 4194304 100 false", func() { fill(4<<20, 100, 8) }},
		{"write -z 2M 1M", "zero 2097152 1048576 false false", func() { fill(2<<20, 1<<20, 0) }},
		{"write -z -u 3M 64k", "zero 3145728 65536 true false", func() { fill(3<<20, 64<<10, 0) }},
		{"write -z -u -f 3500k 4k", "zero 3584000 4096 true true", func() { fill(3500<<10, 4096, 0) }},
		{"discard 512k 64k", "trim 524288 65536 false", func() { fill(512<<10, 64<<10, 0) }},
		{"flush", "flush 0 0", func() {}},
		{"aio_write -P 1 0 1M", "write 0 1048576 false", func() { fill(0, 1<<20, 1) }},
	} {
		m.asked()
		tool(t, qemuUtils, "qemu-io", "-f", "raw", "-t", "writeback", "-d", "unmap", "-c", test.command, "-c", "aio_flush", s.uri("vda"))
		test.do()
		if err := <-s.closed; err != nil {
			t.Errorf("%s: closed with %v", test.command, err)
		}
		calls := m.asked()
		if !slices.Contains(calls, test.asked+"\n") {
			t.Errorf("%s: the backend was asked %q", test.command, calls)
		}
		if !bytes.Equal(m.data, want) {
			t.Fatalf("%s: the disk differs", test.command)
		}
	}
	out := tool(t, qemuUtils, "qemu-io", "-f", "raw", "-c", "read -P 1 0 1M", "-c", "read -P 8 4194304 100", "-c", "read -P 0 2M 1M", s.uri("vda"))
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Error(out)
	}
}

// TestQemuBench: many requests in flight, of QEMU's making.
func TestQemuBench(t *testing.T) {
	m := newMemory(t, 8<<20)
	m.log = false
	s := serve(t, Options{}, map[string]Backend{"vda": m})
	for _, args := range [][]string{
		{"-w", "--pattern=90", "-c", "2000", "-d", "16", "-s", "4096", "-S", "4096"},
		{"-w", "--pattern=91", "-c", "200", "-d", "16", "-s", "262144", "--flush-interval=16"},
		{"-c", "200", "-d", "16", "-s", "65536"},
	} {
		tool(t, qemuUtils, "qemu-img", append(append([]string{"bench", "-f", "raw", "-t", "none"}, args...), s.uri("vda"))...)
	}
	if !bytes.Equal(m.data, bytes.Repeat([]byte{91}, len(m.data))) {
		t.Error("the disk is not what was written")
	}
}

func TestNbdInfo(t *testing.T) {
	s := serve(t, Options{}, map[string]Backend{"vda": newMemory(t, 1<<20+1), "vdb": blind{newMemory(t, 512)}})
	var info struct {
		Protocol   string
		Structured bool
		Exports    []struct {
			Name     string   `json:"export-name"`
			Size     int64    `json:"export-size"`
			Contexts []string `json:"contexts"`
			Flush    bool     `json:"can_flush"`
			FUA      bool     `json:"can_fua"`
			Trim     bool     `json:"can_trim"`
			Zero     bool     `json:"can_zero"`
			FastZero bool     `json:"can_fast_zero"`
			DF       bool     `json:"can_df"`
			Multi    bool     `json:"can_multi_conn"`
			ReadOnly bool     `json:"is_read_only"`
			MaxBytes int64    `json:"block_size_maximum"`
		}
	}
	out := tool(t, libnbdBin, "nbdinfo", "--json", "--list", s.uri(""))
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if info.Protocol != "newstyle-fixed" || len(info.Exports) != 2 {
		t.Fatalf("%s", out)
	}
	for i, e := range info.Exports {
		if !e.Flush || !e.FUA || !e.Trim || !e.Zero || !e.FastZero || !e.DF || e.Multi || e.ReadOnly || e.MaxBytes != RequestBytesMax {
			t.Errorf("%+v", e)
		}
		if want := []int64{1<<20 + 1, 512}[i]; e.Size != want {
			t.Errorf("%s has %d bytes, want %d", e.Name, e.Size, want)
		}
		if has := slices.Contains(e.Contexts, allocationContext); has != (e.Name == "vda") {
			t.Errorf("%s: contexts %q", e.Name, e.Contexts)
		}
	}
}

func TestNbdCopy(t *testing.T) {
	const size = 20<<20 + 512
	image := filepath.Join(t.TempDir(), "image")
	want := sparse(t, image, size)
	m, m2 := newMemory(t, size), newMemory(t, size)
	m.log, m2.log = false, false
	s := serve(t, Options{}, map[string]Backend{"vda": m, "vdb": m2})
	tool(t, libnbdBin, "nbdcopy", "--flush", image, s.uri("vda"))
	if !bytes.Equal(m.data, want) {
		t.Error("copied to us: the disk differs")
	}
	back := image + ".back"
	tool(t, libnbdBin, "nbdcopy", s.uri("vda"), back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
		t.Errorf("copied from us: differs (%v)", err)
	}
	tool(t, libnbdBin, "nbdcopy", "--synchronous", s.uri("vda"), s.uri("vdb"))
	if !bytes.Equal(m2.data, want) {
		t.Error("copied from us to us: differs")
	}
}

// TestNbdkit: nbdkit as a client of ours, with a client of its own.
func TestNbdkit(t *testing.T) {
	need(t, "nbdcopy", libnbdBin)
	const size = 6<<20 + 512
	image := filepath.Join(t.TempDir(), "image")
	want := sparse(t, image, size)
	m := newMemory(t, size)
	m.log = false
	s := serve(t, Options{}, map[string]Backend{"vda": m})
	tool(t, "nbdkit", "nbdkit", "-U", "-", "nbd", "socket="+s.socket, "export=vda",
		"--run", "nbdcopy --flush '"+image+"' $uri && nbdcopy $uri '"+image+".back'")
	if !bytes.Equal(m.data, want) {
		t.Error("written through nbdkit: differs")
	}
	if got, err := os.ReadFile(image + ".back"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read through nbdkit: differs (%v)", err)
	}
}
