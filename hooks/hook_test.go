package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/virt-ft/virt-ft/internal/hookd"
	"github.com/virt-ft/virt-ft/internal/marker"
)

const uuid = "1f0e9c5a-0000-4000-8000-0000000000aa"

const domainXML = "<domain type='kvm' id='1'>\n  <name>web1</name>\n  <uuid>" + uuid + "</uuid>\n</domain>\n"

// place is a host's files of ours.
type place struct {
	t           testing.TB
	config      string
	state, sock string
}

func newPlace(t testing.TB) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{t: t, config: filepath.Join(dir, "virt-ft.toml"), state: filepath.Join(dir, "state")}
	run := filepath.Join(dir, "run")
	p.sock = filepath.Join(run, hookd.SocketName)
	text := fmt.Sprintf("state_dir = %q\nrun_dir = %q\n", p.state, run)
	err := errors.Join(os.Mkdir(run, 0o755), os.WriteFile(p.config, []byte(text), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// mark leaves a marker.
func (p *place) mark(role marker.Role, phase marker.Phase) {
	p.t.Helper()
	s, err := marker.Open(p.state)
	if err == nil {
		err = s.Put(marker.Marker{Domain: "web1", UUID: uuid, Role: role, Phase: phase, PeerName: "host-b"})
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// stale leaves the record of a guest that went on elsewhere.
func (p *place) stale() {
	p.t.Helper()
	d, err := marker.OpenDisks(p.state)
	if err == nil {
		err = d.Change(uuid, "web1", func(rec *marker.DiskRecord) {
			rec.Disks["vda"] = marker.DiskImage{Path: "/x", Kind: marker.ImageStale}
			rec.Active = "host-b"
		})
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// daemon is what answers on the socket, if anything.
type daemon struct {
	name   string
	start  func(t *testing.T, path string)
	allows bool
	says   string // in a refusal for which there is a reason in the files
}

// answers is a daemon that always gives the same answer.
type answers hookd.Answer

func (a answers) MayStart(context.Context, hookd.Call) hookd.Answer { return hookd.Answer(a) }
func (a answers) Told(hookd.Call)                                   {}

func serving(a answers) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		s, err := hookd.Listen(path, a, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
	}
}

// raw is a daemon that does something else to each connection.
func raw(do func(net.Conn)) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer conn.Close()
					do(conn)
				})
			}
		})
		t.Cleanup(func() {
			l.Close()
			wg.Wait()
		})
	}
}

func daemons() []daemon {
	return []daemon{
		{name: "none", start: func(*testing.T, string) {}, says: "virt-ft's daemon does not run: start it"},
		{name: "yes", start: serving(answers{Allow: true}), allows: true},
		{name: "no", start: serving(answers{Reason: "it runs on host-b"}), says: "it runs on host-b"},
		{name: "no, for no reason", start: serving(answers{}), says: "host-b"},
		{name: "silent", start: raw(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), says: "virt-ft's daemon does not answer"},
		{name: "closes", start: raw(func(net.Conn) {}), says: "virt-ft's daemon does not answer"},
		{name: "garbage", start: raw(func(c net.Conn) { _, _ = io.WriteString(c, "\x00\xff\n") }), says: "virt-ft's daemon does not answer"},
		{name: "endless", start: raw(func(c net.Conn) {
			for {
				if _, err := c.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}), says: "virt-ft's daemon does not answer"},
	}
}

// otherOps are what libvirt 9.0 calls a qemu hook for, besides prepare.
func otherOps() [][3]string {
	return [][3]string{{"start", "begin", "-"}, {"started", "begin", "-"}, {"stopped", "end", "-"}, {"release", "end", "shutdown"},
		{"migrate", "begin", "-"}, {"restore", "begin", "-"}, {"reconnect", "begin", "-"}, {"attach", "begin", "-"}, {"prepare", "end", "-"}, {"", "", ""}}
}

// result is what libvirt sees of a run.
type result struct {
	status int
	stderr string
}

// late is a refusal that a busy machine may be the reason of.
func (r result) late() bool {
	return r.status != 0 && (strings.Contains(r.stderr, "does not answer") || strings.Contains(r.stderr, "try again"))
}

// run runs the hook in this process, but for its own watch over itself.
func (p *place) run(xml io.Reader, args ...string) result {
	h := newHook(append([]string{"-config", p.config}, args...))
	var stderr bytes.Buffer
	h.stdin, h.stderr = xml, &stderr
	return result{h.run(), stderr.String()}
}

// start runs the hook as before a start, again when the daemon answers and its
// answer was late.
func (p *place) start(xml string, answers bool) result {
	got := p.run(strings.NewReader(xml), "web1", "prepare", "begin", "-")
	for tries := 0; answers && got.late() && tries < 100; tries++ {
		p.t.Logf("late: %+v", got)
		got = p.run(strings.NewReader(xml), "web1", "prepare", "begin", "-")
	}
	return got
}

// TestOperations: every operation, with whatever is in the files, whatever the
// daemon does. Only a start that the files speak against is refused, and only if
// the daemon does not allow it.
func TestOperations(t *testing.T) {
	for _, files := range []struct {
		name    string
		leave   func(*place)
		refused bool
	}{
		{"nothing", func(*place) {}, false},
		{"a protection that ended", func(p *place) { p.mark(marker.RolePrimary, marker.PhaseEnded) }, false},
		{"alone", func(p *place) { p.mark(marker.RolePrimary, marker.PhaseAlone) }, false},
		{"protected", func(p *place) { p.mark(marker.RolePrimary, marker.PhaseProtected) }, true},
		{"standby", func(p *place) { p.mark(marker.RoleBackup, marker.PhaseStandby) }, true},
		{"stale", func(p *place) { p.mark(marker.RolePrimary, marker.PhaseHandedOver); p.stale() }, true},
	} {
		for _, d := range daemons() {
			t.Run(files.name+"/"+d.name, func(t *testing.T) {
				p := newPlace(t)
				files.leave(p)
				d.start(t, p.sock)
				got := p.start(domainXML, !strings.Contains(d.says, "daemon"))
				if files.refused && !d.allows {
					if got.status != 1 || !strings.Contains(got.stderr, d.says) || !strings.Contains(got.stderr, "host-b") ||
						strings.Count(got.stderr, "\n") != 1 || !strings.HasPrefix(got.stderr, "virt-ft: web1 must not be started here: ") {
						t.Errorf("%+v", got)
					}
				} else if got != (result{}) {
					t.Errorf("%+v", got)
				}
				for _, op := range otherOps() {
					if got := p.run(strings.NewReader(domainXML), "web1", op[0], op[1], op[2]); got != (result{}) {
						t.Errorf("%v: %+v", op, got)
					}
				}
			})
		}
	}
}

// TestDamage: what cannot be read may say anything, until a daemon knows better;
// what is of another guest says nothing.
func TestDamage(t *testing.T) {
	for _, x := range []struct{ file, text string }{
		{uuid + ".json", "{"}, {uuid + ".json", ""}, {uuid + ".json", `{"version":2}`}, {"disks/" + uuid + ".json", "["},
	} {
		p := newPlace(t)
		path := filepath.Join(p.state, x.file)
		if err := errors.Join(os.MkdirAll(filepath.Join(p.state, "disks"), 0o700), os.WriteFile(path, []byte(x.text), 0o600)); err != nil {
			t.Fatal(err)
		}
		if got := p.start(domainXML, false); got.status != 1 || !strings.Contains(got.stderr, "cannot be read") || !strings.Contains(got.stderr, path) {
			t.Errorf("%v: %+v", x, got)
		}
		if got := p.start(strings.ReplaceAll(domainXML, "aa<", "bb<"), true); got != (result{}) {
			t.Errorf("%v: another guest: %+v", x, got)
		}
		serving(answers{Allow: true})(t, p.sock)
		if got := p.start(domainXML, true); got != (result{}) {
			t.Errorf("%v: the daemon knows better: %+v", x, got)
		}
	}
}

// endless is an XML that never says which domain it is of.
type endless struct{ read int }

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	if e.read == 0 {
		copy(b, "<domain>")
	}
	e.read += len(b)
	return len(b), nil
}

// TestWithoutUUID: then the name counts, no daemon is asked, and a guest that has
// nothing to do with us starts.
func TestWithoutUUID(t *testing.T) {
	p := newPlace(t)
	p.mark(marker.RolePrimary, marker.PhaseProtected)
	serving(answers{Allow: true})(t, p.sock)
	text := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
	for name, xml := range map[string]func() io.Reader{
		"none": text(""), "garbage": text("\x00<<&"), "huge": func() io.Reader { return &endless{} },
		"nested": text("<domain><metadata><uuid>" + uuid + "</uuid></metadata></domain>"),
		"wrong":  text("<domain><uuid>../../etc/x</uuid></domain>"),
	} {
		if got := p.run(xml(), "web1", "prepare", "begin", "-"); got.status != 1 || !strings.Contains(got.stderr, "try again") {
			t.Errorf("%s: %+v", name, got)
		}
		if got := p.run(xml(), "other", "prepare", "begin", "-"); got != (result{}) {
			t.Errorf("%s: another guest: %+v", name, got)
		}
		if got := p.run(xml(), "web1", "reconnect", "begin", "-"); got != (result{}) {
			t.Errorf("%s: reconnect: %+v", name, got)
		}
	}
	huge := &endless{}
	if got, err := readUUID(huge); err == nil || huge.read > 2*xmlBytesMax {
		t.Errorf("%q after %d bytes, %v", got, huge.read, err)
	}
}

// TestTold: the daemon hears what happened.
func TestTold(t *testing.T) {
	p := newPlace(t)
	told := make(chan hookd.Call, 16)
	s, err := hookd.Listen(p.sock, listener(told), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := hookd.Call{Version: 1, Op: "release", Subop: "end", Extra: "shutdown", Name: "web1", UUID: uuid}
	for {
		if got := p.run(strings.NewReader(domainXML), "web1", "release", "end", "shutdown"); got != (result{}) {
			t.Errorf("%+v", got)
		}
		select {
		case c := <-told:
			if c != want {
				t.Errorf("%+v, want %+v", c, want)
			}
			return
		case <-time.After(time.Second):
			t.Log("late: the machine is busy")
		}
	}
}

type listener chan hookd.Call

func (listener) MayStart(context.Context, hookd.Call) hookd.Answer { return hookd.Answer{} }
func (l listener) Told(c hookd.Call)                               { l <- c }

// TestBounds: however long others take, libvirt waits no longer than waitMax, and
// what the files say counts. Time is the bubble's: exact.
func TestBounds(t *testing.T) {
	for _, x := range []struct {
		name           string
		xml, daemon    bool // is it there?
		op             string
		role           marker.Role
		status         int
		say            string
		took           time.Duration
		daemonIgnoring bool // its context, as a call that hangs would
	}{
		{name: "all there", xml: true, daemon: true, op: "prepare", role: marker.RoleBackup},
		{name: "no XML, ours", op: "prepare", role: marker.RoleBackup, status: 1, say: "try again", took: waitMax},
		{name: "no XML, not ours", op: "prepare", took: waitMax},
		{name: "no daemon, ours", xml: true, op: "prepare", role: marker.RoleBackup, status: 1, say: "does not answer", took: waitMax},
		{name: "a call that hangs", xml: true, op: "prepare", role: marker.RoleBackup, status: 1, say: "does not answer", took: waitMax, daemonIgnoring: true},
		{name: "no daemon, not ours", xml: true, op: "prepare"},
		{name: "told, no XML", op: "reconnect", role: marker.RoleBackup, took: waitMax},
		{name: "told, no daemon", xml: true, op: "reconnect", role: marker.RoleBackup, took: waitMax},
		{name: "told, a call that hangs", xml: true, op: "reconnect", role: marker.RoleBackup, took: waitMax, daemonIgnoring: true},
	} {
		p := newPlace(t)
		if x.role != "" {
			p.mark(x.role, marker.PhaseStandby)
		}
		synctest.Test(t, func(t *testing.T) {
			var stderr bytes.Buffer
			h := newHook([]string{"-config", p.config, "web1", x.op, "begin", "-"})
			in, out := io.Pipe()
			h.stdin, h.stderr = in, &stderr
			if x.xml {
				h.stdin = strings.NewReader(domainXML)
			}
			end := make(chan struct{})
			hang := func(ctx context.Context) error {
				if x.daemon {
					return nil
				}
				if x.daemonIgnoring {
					<-end
				}
				<-ctx.Done()
				return ctx.Err()
			}
			h.ask = func(ctx context.Context, _ string, _ hookd.Call) (hookd.Answer, error) {
				return hookd.Answer{Allow: true}, hang(ctx)
			}
			h.tell = func(ctx context.Context, _ string, _ hookd.Call) error { return hang(ctx) }
			begin := time.Now()
			status := h.run()
			if took := time.Since(begin); status != x.status || !strings.Contains(stderr.String(), x.say) || took != x.took {
				t.Errorf("%s: status %d after %v: %q", x.name, status, took, stderr.String())
			}
			close(end)
			out.Close()
			synctest.Wait()
		})
	}
}

// TestGiveUp: a hook that is caught in itself refuses a start with a word, and
// nothing else.
func TestGiveUp(t *testing.T) {
	for _, op := range append(otherOps(), [3]string{"prepare", "begin", "-"}) {
		h := newHook([]string{"web1", op[0], op[1], op[2]})
		var stderr bytes.Buffer
		h.stderr = &stderr
		status := h.giveUp()
		if ask := op[0] == "prepare" && op[1] == "begin"; (status != 0) != ask || (stderr.Len() > 0) != ask {
			t.Errorf("%v: %d, %q", op, status, stderr.String())
		}
	}
}
