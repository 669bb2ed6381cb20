package nbd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// storage is a qemu-storage-daemon: QEMU's block layer without a machine. It
// exports a disk as a guest would have it, and can mirror it.
type storage struct {
	t      *testing.T
	qmp    *json.Encoder
	lines  *bufio.Scanner
	events []map[string]any
	uri    string // of the disk
}

func startStorage(t *testing.T, image string) *storage {
	t.Helper()
	program := need(t, "qemu-storage-daemon", qemuUtils)
	dir := t.TempDir()
	ln, err := net.Listen("unix", filepath.Join(dir, "qmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmd := exec.Command(program,
		"--chardev", "socket,id=qmp,path="+ln.Addr().String(), "--monitor", "qmp",
		"--blockdev", "driver=file,node-name=file,discard=unmap,filename="+image,
		"--blockdev", "driver=raw,node-name=disk,discard=unmap,file=file",
		"--nbd-server", "addr.type=unix,addr.path="+filepath.Join(dir, "disk"),
		"--export", "type=nbd,id=guest,node-name=disk,name=disk,writable=on")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	s := &storage{t: t, qmp: json.NewEncoder(nc), lines: bufio.NewScanner(nc), uri: "nbd+unix:///disk?socket=" + filepath.Join(dir, "disk")}
	s.line()
	s.do("qmp_capabilities", nil)
	return s
}

func (s *storage) line() map[string]any {
	s.t.Helper()
	var m map[string]any
	if !s.lines.Scan() {
		s.t.Fatalf("qemu-storage-daemon ended: %v", s.lines.Err())
	}
	if err := json.Unmarshal(s.lines.Bytes(), &m); err != nil {
		s.t.Fatal(err)
	}
	return m
}

func (s *storage) do(command string, args map[string]any) {
	s.t.Helper()
	if args == nil {
		args = map[string]any{}
	}
	if err := s.qmp.Encode(map[string]any{"execute": command, "arguments": args}); err != nil {
		s.t.Fatal(err)
	}
	for {
		m := s.line()
		if m["event"] != nil {
			s.events = append(s.events, m)
			continue
		}
		if m["error"] != nil {
			s.t.Fatalf("%s: %v", command, m["error"])
		}
		return
	}
}

// event returns the data of the next event of that name.
func (s *storage) event(name string) map[string]any {
	s.t.Helper()
	for {
		for len(s.events) > 0 {
			e := s.events[0]
			s.events = s.events[1:]
			if e["event"] == name {
				return e["data"].(map[string]any)
			}
		}
		s.events = append(s.events, s.line())
	}
}

// TestMirror lets QEMU mirror a disk to us as libvirt has it done.
func TestMirror(t *testing.T) {
	for _, discard := range []string{"unmap", "ignore"} {
		t.Run(discard, func(t *testing.T) { testMirror(t, discard) })
	}
}

func testMirror(t *testing.T, discard string) {
	const size = 16<<20 + 512
	image := filepath.Join(t.TempDir(), "image")
	sparse(t, image, size)
	m := newMemory(t, size)
	for i := range m.data {
		m.data[i] = 0xee // an older image
	}
	s := serve(t, Options{}, map[string]Backend{"vda": m})
	q := startStorage(t, image)
	q.do("blockdev-add", map[string]any{"node-name": "target", "driver": "raw", "discard": discard, "file": map[string]any{
		"driver": "nbd", "discard": discard, "export": "vda", "server": map[string]any{"type": "unix", "path": s.socket}}})
	q.do("blockdev-mirror", map[string]any{"job-id": "copy", "device": "disk", "target": "target", "sync": "full",
		"copy-mode": "write-blocking", "auto-dismiss": false})
	q.event("BLOCK_JOB_READY")
	equal := func(when string) {
		t.Helper()
		want, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if !bytes.Equal(m.data, want) {
			t.Fatalf("%s: the copy differs", when)
		}
	}
	equal("ready")
	calls := m.asked()
	t.Logf("the first of %d requests: %q", len(calls), calls[:min(6, len(calls))])
	// With unmap QEMU first makes the whole target zeros: an old image is of no
	// use to it, and whoever wants to keep it must know that these zeros are not
	// the guest's.
	zeroed := calls[0] == fmt.Sprintf("zero 0 %d true false\n", size)
	if zeroed != (discard == "unmap") {
		t.Errorf("discard=%s: whole target zeroed first: %v", discard, zeroed)
	}

	guest := startQemuIO(t, q.uri)
	mirrorWrites(t, guest, m, discard, equal)

	// A connection that ends: the guest does not notice, the job fails with the
	// next write.
	s.Drop()
	<-s.closed
	if out := guest.do("write -P 9 0 4k"); strings.Contains(out, "failed") {
		t.Errorf("the guest's write: %s", out)
	}
	if e := q.event("BLOCK_JOB_COMPLETED"); e["error"] == nil {
		t.Errorf("the job ended with %v", e)
	}
	if slices.Contains(m.asked(), "write 0 4096 false\n") {
		t.Error("a write came after the connection was dropped")
	}
}

// mirrorWrites lets the guest write, and compares after each answer.
func mirrorWrites(t *testing.T, guest *qemuIO, m *memory, discard string, equal func(when string)) {
	t.Helper()
	for _, command := range []string{"write -P 3 0 4k", "write -P 4 1000 3000", "write -z 64k 64k", "write -P 5 1M 2M", "write -P 6 16777216 512", "write -z -u 2M 64k"} {
		if out := guest.do(command); strings.Contains(out, "failed") {
			t.Fatalf("%s: %s", command, out)
		}
		equal(command) // when the guest was answered, not later
	}
	// QEMU 7.2 drops a guest's discards while it mirrors, for both disks, and
	// passes flushes on to the source alone. A later one may do otherwise, and
	// then the target has to have the discards too.
	m.asked()
	for _, command := range []string{"discard 3M 64k", "flush"} {
		if out := guest.do(command); strings.Contains(out, "failed") {
			t.Fatalf("%s: %s", command, out)
		}
	}
	asked := m.asked()
	t.Logf("for a guest's discard and flush we were asked %q", asked)
	if discard == "unmap" {
		equal("discard")
	}
}
