package ptracer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A real QEMU answers its monitor as before after many calls into its main
// thread, some of them by injectors killed at random.
func TestQEMU(t *testing.T) {
	t.Parallel()
	callsTotal := rounds(60)
	cmd, mon := startQEMU(t, "-accel", "tcg", "-S")
	pid := cmd.Process.Pid
	all := calls(t, pid)
	names := []string{"getpid", "memfd_create", "dupfd", "userfaultfd"}
	killed, took := 0, 20*time.Millisecond
	for i := range callsTotal {
		c := all[names[i%len(names)]]
		if i%4 < 2 {
			err := killAfter(pid, c, took, rand.IntN(4))
			if errors.Is(err, ErrOutcomeUnknown) {
				killed++
			} else if err != nil && !errors.Is(err, ErrTimeout) {
				t.Fatal(err)
			}
		} else if rep, err := spawn(context.Background(), pid, c, spawnOptions{}); err != nil {
			t.Fatal(err)
		} else if c.Nr != unix.SYS_GETPID {
			mustRemote(t, pid, unix.SYS_CLOSE, uint64(rep.Ret))
		}
		if i%20 == 0 {
			mon.execute("query-status")
		}
	}
	if st, _ := readStatus(pid); st.tracerPid != "0" || strings.ContainsAny(st.state, "tTZX") {
		t.Fatalf("state %s, traced by %s", st.state, st.tracerPid)
	}
	if got := mon.execute("query-status"); !strings.Contains(got, "prelaunch") {
		t.Errorf("query-status: %s", got)
	}
	mon.execute("cont")
	if got := mon.execute("query-status"); !strings.Contains(got, "running") {
		t.Errorf("after cont: %s", got)
	}
	mon.execute("quit")
	if err := cmd.Wait(); err != nil {
		t.Errorf("quit: %v", err)
	}
	t.Logf("%d calls, %d injectors killed", callsTotal, killed)
}

type qmp struct {
	t *testing.T
	w io.Writer
	r *bufio.Reader
}

// reply returns the next line that has the given member; events are skipped.
func (m *qmp) reply(member string) string {
	m.t.Helper()
	for {
		line, err := m.r.ReadString('\n')
		if err != nil {
			m.t.Fatalf("monitor: %v", err)
		}
		var msg map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &msg); err != nil || msg["error"] != nil {
			m.t.Fatalf("monitor says %s", line)
		}
		if v, ok := msg[member]; ok {
			return string(v)
		}
	}
}

func (m *qmp) execute(command string) string {
	m.t.Helper()
	if _, err := io.WriteString(m.w, `{"execute":"`+command+`"}`+"\n"); err != nil {
		m.t.Fatal(err)
	}
	return m.reply("return")
}
