package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const socketPath = "/run/systemd/journal/socket"

// namespaced runs the test that calls it again in a mount namespace of its own,
// whose /run is empty, and reports whether this is that run.
func namespaced(t *testing.T) bool {
	t.Helper()
	if os.Getenv("VIRT_FT_TEST_NAMESPACED") != "" {
		if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
			os.MkdirAll(filepath.Dir(socketPath), 0o755)); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: the journal's socket is at a fixed path, and a mount namespace makes it ours")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "VIRT_FT_TEST_NAMESPACED=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// receiver is a journald of our own: what it is sent, parsed.
type receiver struct {
	t    *testing.T
	conn *net.UnixConn
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socketPath, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &receiver{t, conn}
}

// next returns the fields of the next record, and whether it came in a file.
func (r *receiver) next() (fields map[string]string, byFile bool) {
	r.t.Helper()
	buf, oob := make([]byte, 1<<20), make([]byte, 1024)
	n, oobn, _, _, err := r.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		r.t.Fatal(err)
	}
	data := buf[:n]
	if n == 0 {
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) != 1 {
			r.t.Fatalf("%v, %d control messages", err, len(msgs))
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			r.t.Fatalf("%v, %d descriptors", err, len(fds))
		}
		f := os.NewFile(uintptr(fds[0]), "record")
		defer f.Close()
		if data, err = io.ReadAll(io.NewSectionReader(f, 0, 16<<20)); err != nil {
			r.t.Fatal(err)
		}
		byFile = true
	}
	fields, err = parseRecord(data)
	if err != nil {
		r.t.Fatal(err)
	}
	return fields, byFile
}

// parseRecord reads the native protocol as journald does: NAME=value lines, or
// NAME, a length of 64 bits and a value.
func parseRecord(b []byte) (map[string]string, error) {
	fields := map[string]string{}
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return nil, fmt.Errorf("%q is not ended", b)
		}
		name, value, short := strings.Cut(string(line), "=")
		if !short {
			if len(rest) < 8 {
				return nil, fmt.Errorf("%s has no length", name)
			}
			n := binary.LittleEndian.Uint64(rest)
			if n+9 > uint64(len(rest)) || rest[8+n] != '\n' {
				return nil, fmt.Errorf("%s is %d bytes long, of %d", name, n, len(rest))
			}
			value, rest = string(rest[8:8+n]), rest[9+n:]
		}
		if _, twice := fields[name]; twice || name != strings.ToUpper(name) {
			return nil, fmt.Errorf("field %q", name)
		}
		fields[name], b = value, rest
	}
	return fields, nil
}

func TestNativeRecords(t *testing.T) {
	if !namespaced(t) {
		return
	}
	var fallen bytes.Buffer
	log := slog.New(New(slog.LevelInfo, slog.NewTextHandler(&fallen, nil)))
	guest := log.With("domain", "web1", "role", "primary")
	if Available() {
		t.Fatal("a journal without a socket is available")
	}
	guest.Info("nobody listens", "n", 1)
	if !strings.Contains(fallen.String(), `msg="nobody listens" domain=web1 role=primary n=1`) {
		t.Fatalf("fallback got %q", fallen.String())
	}
	fallen.Reset()
	r := newReceiver(t)
	if !Available() {
		t.Fatal("the journal is not available")
	}

	guest.Info("state", "now", "active", "generation", 7, "peer", "host-b", "reason", "host-b is silent")
	got, byFile := r.next()
	want := map[string]string{"MESSAGE": `state domain=web1 role=primary now=active generation=7 peer=host-b reason="host-b is silent"`,
		"PRIORITY": "6", "MESSAGE_ID": MessageID("state", "active"), "VIRT_FT_DOMAIN": "web1", "VIRT_FT_ROLE": "primary", "VIRT_FT_STATE": "active",
		"VIRT_FT_GENERATION": "7", "VIRT_FT_PEER": "host-b", "VIRT_FT_REASON": "host-b is silent", "SYSLOG_IDENTIFIER": "virt-ft"}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s = %q, want %q", name, got[name], value)
		}
	}
	if filepath.Base(got["CODE_FILE"]) != "journal_linux_test.go" || got["CODE_LINE"] == "" || !strings.HasSuffix(got["CODE_FUNC"], "TestNativeRecords") {
		t.Errorf("from %s:%s %s", got["CODE_FILE"], got["CODE_LINE"], got["CODE_FUNC"])
	}
	if _, named := got["VIRT_FT_NOW"]; named || byFile {
		t.Errorf("%v, by file %v", got, byFile)
	}

	log.Debug("too low")
	log.WithGroup("disk").Error("torn", slog.Group("at", "größe", 3), "why", "two\nlines", "_x y", true)
	got, _ = r.next()
	if got["PRIORITY"] != "3" || got["VIRT_FT_DISK_WHY"] != "two\nlines" || got["VIRT_FT_DISK_AT_GR__E"] != "3" || got["VIRT_FT_DISK__X_Y"] != "true" {
		t.Errorf("%q", got)
	}

	// More than a datagram holds goes by a file; more than anybody wants is cut.
	big := make([]any, 0, 40)
	for i := range 20 {
		big = append(big, fmt.Sprint("blob", i), strings.Repeat("x", valueBytesMax+1))
	}
	log.Warn("large", big...)
	got, byFile = r.next()
	if !byFile || got["PRIORITY"] != "4" || len(got["VIRT_FT_BLOB19"]) != valueBytesMax || len(got["MESSAGE"]) != valueBytesMax {
		t.Errorf("by file %v, %d and %d bytes", byFile, len(got["VIRT_FT_BLOB19"]), len(got["MESSAGE"]))
	}
	if fallen.Len() > 0 {
		t.Errorf("fallback got %q", fallen.String())
	}
}

func TestOnStandardError(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Fstat(2, &st); err != nil {
		t.Fatal(err)
	}
	for stream, want := range map[string]bool{"": false, "1:1": false, "nonsense": false, fmt.Sprintf("%d:%d", st.Dev, st.Ino): true} {
		t.Setenv("JOURNAL_STREAM", stream)
		if got := OnStandardError(); got != want {
			t.Errorf("JOURNAL_STREAM=%q: %v", stream, got)
		}
	}
}

func TestIDs(t *testing.T) {
	var seen []string
	for _, id := range IDs() {
		if len(id.ID) != 32 || strings.Trim(id.ID, "0123456789abcdef") != "" || slices.Contains(seen, id.ID) {
			t.Errorf("%+v", id)
		}
		seen = append(seen, id.ID)
		message := id.Text
		if id.State != "" {
			message = stateMessage
		}
		if MessageID(message, id.State) != id.ID {
			t.Errorf("%+v is not found", id)
		}
	}
	if id := MessageID("another", "active"); id != "" {
		t.Error(id)
	}
}
