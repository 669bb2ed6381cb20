package vmstate

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const qemuBinary = "qemu-system-x86_64"

// qemuStepMax bounds one wait for QEMU.
const qemuStepMax = 60 * time.Second

// qemu is a real QEMU under TCG with a QMP monitor, killed at the test's end.
type qemu struct {
	t      *testing.T
	dir    string
	events []string // names of events seen since the last wait
	mon    *os.File
	in     *bufio.Reader
}

// needQEMU skips the test where there is no QEMU.
func needQEMU(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath(qemuBinary)
	if err != nil {
		t.Skipf("%s is not installed", qemuBinary)
	}
	return path
}

// startQEMU starts QEMU; file i of files is its descriptor 4+i.
func startQEMU(t *testing.T, args []string, files ...*os.File) *qemu {
	t.Helper()
	path := needQEMU(t)
	ours, theirs := socketPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, append([]string{
		"-accel", "tcg", "-display", "none", "-nodefaults", "-S",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
	}, args...)...)
	cmd.ExtraFiles = append([]*os.File{theirs}, files...)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() {
		cancel()
		cmd.Wait() //nolint:errcheck // killed by cancel
	})
	dir, err := os.MkdirTemp("", "vmstate") // shorter than TempDir's: a socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	q := &qemu{t: t, dir: dir, mon: ours, in: bufio.NewReader(ours)}
	q.read() // greeting
	q.do("qmp_capabilities", nil)
	return q
}

type qmpMessage struct {
	Return json.RawMessage
	Error  json.RawMessage
	Event  string
	Data   struct{ Status string }
}

func (q *qemu) read() qmpMessage {
	q.t.Helper()
	if err := q.mon.SetReadDeadline(time.Now().Add(qemuStepMax)); err != nil {
		q.t.Fatal(err)
	}
	line, err := q.in.ReadBytes('\n')
	if err != nil {
		q.t.Fatalf("QMP: %v", err)
	}
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		q.t.Fatalf("QMP: %q: %v", line, err)
	}
	return m
}

// do executes a QMP command and returns its answer.
func (q *qemu) do(command string, args any) json.RawMessage {
	q.t.Helper()
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	line, err := json.Marshal(request)
	if err != nil {
		q.t.Fatal(err)
	}
	if _, err := q.mon.Write(append(line, '\n')); err != nil {
		q.t.Fatal(err)
	}
	for {
		m := q.read()
		switch {
		case m.Event != "":
			q.events = append(q.events, m.Event+" "+m.Data.Status)
		case m.Error != nil:
			q.t.Fatalf("%s: %s", command, m.Error)
		default:
			return m.Return
		}
	}
}

// await reads events up to one of that name and status.
func (q *qemu) await(event, status string) {
	q.t.Helper()
	want := event + " " + status
	for {
		for i, e := range q.events {
			if e == want {
				q.events = q.events[i+1:]
				return
			}
			if e == "MIGRATION failed" {
				q.t.Fatalf("migration failed while waiting for %q", want)
			}
		}
		q.events = nil
		m := q.read()
		q.events = append(q.events, m.Event+" "+m.Data.Status)
	}
}

func (q *qemu) file(name string) []byte {
	q.t.Helper()
	b, err := os.ReadFile(filepath.Join(q.dir, name))
	if err != nil {
		q.t.Fatal(err)
	}
	return b
}

// devices takes the device state, as capture does; the guest is stopped before
// and stays so.
func (q *qemu) devices() []byte {
	q.t.Helper()
	q.do("xen-save-devices-state", map[string]any{"filename": filepath.Join(q.dir, "devices"), "live": false})
	return q.file("devices")
}

// migrationEvents makes QEMU report how far a migration is.
func (q *qemu) migrationEvents() {
	q.t.Helper()
	q.do("migrate-set-capabilities", map[string]any{
		"capabilities": []map[string]any{{"capability": "events", "state": true}}})
}

// stream lets the stopped guest migrate to us and returns all it sent, up to the end of
// the connection: QEMU reports completion before its last bytes have arrived.
func (q *qemu) stream() []byte {
	q.t.Helper()
	path := filepath.Join(q.dir, "stream")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		q.t.Fatal(err)
	}
	defer l.Close()
	q.migrationEvents()
	q.do("migrate", map[string]any{"uri": "unix:" + path})
	deadline := time.Now().Add(qemuStepMax)
	if err := l.SetDeadline(deadline); err != nil {
		q.t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		q.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		q.t.Fatal(err)
	}
	all, err := io.ReadAll(c)
	if err != nil {
		q.t.Fatal(err)
	}
	q.await("MIGRATION", "completed")
	return all
}

// ram returns the first size bytes of guest memory.
func (q *qemu) ram(size uint64) []byte {
	q.t.Helper()
	q.do("pmemsave", map[string]any{"val": 0, "size": size, "filename": filepath.Join(q.dir, "ram")})
	return q.file("ram")
}

// word reads the guest's 32-bit word at address.
func (q *qemu) word(address uint64) (v uint32) {
	q.t.Helper()
	var text string
	answer := q.do("human-monitor-command", map[string]any{"command-line": fmt.Sprintf("xp /1wx %#x", address)})
	if err := json.Unmarshal(answer, &text); err != nil {
		q.t.Fatal(err)
	}
	var at uint64
	if _, err := fmt.Sscanf(text, "%x: 0x%x", &at, &v); err != nil || at != address {
		q.t.Fatalf("xp: %q: %v", text, err)
	}
	return v
}
