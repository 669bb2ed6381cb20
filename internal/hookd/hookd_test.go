package hookd

import (
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
	"time"
)

const uuid = "1f0e9c5a-0000-4000-8000-0000000000aa"

// answerer is a daemon that answers what it was told to, and writes down calls.
type answerer struct {
	answer Answer
	wait   bool // for longer than who asks does

	told chan Call
}

func newAnswerer(a Answer) *answerer { return &answerer{answer: a, told: make(chan Call, 2*connsMax)} }

func (a *answerer) MayStart(ctx context.Context, c Call) Answer {
	a.told <- c
	if a.wait {
		<-ctx.Done()
		time.Sleep(AnswerMax)
	}
	return a.answer
}

func (a *answerer) Told(c Call) { a.told <- c }

func listen(t *testing.T, h Handler) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", SocketName)
	s, err := Listen(path, h, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, path
}

func prepare() Call {
	return Call{Op: OpPrepare, Subop: "begin", Extra: "-", Name: "web1", UUID: uuid}
}

// ask asks again when a busy machine made the answer late.
func ask(t *testing.T, path string) (Answer, error) {
	for {
		a, err := Ask(t.Context(), path, prepare())
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return a, err
		}
		t.Log("late: ", err)
	}
}

// TestAsk: an answer arrives as it was given, but for what would not fit on a
// terminal.
func TestAsk(t *testing.T) {
	for _, x := range []struct{ give, want Answer }{
		{Answer{Allow: true, Reason: "none"}, Answer{Version: 1, Allow: true}},
		{Answer{Reason: "it runs on host-b"}, Answer{Version: 1, Reason: "it runs on host-b"}},
		{Answer{Reason: "two\nlines\x1b[31m\x00 "}, Answer{Version: 1, Reason: "two lines [31m"}},
		{Answer{Version: 7, Reason: strings.Repeat("long ", 1000)}, Answer{Version: 1, Reason: strings.TrimSpace(strings.Repeat("long ", 1000)[:2*fieldBytesMax])}},
	} {
		h := newAnswerer(x.give)
		_, path := listen(t, h)
		got, err := ask(t, path)
		if err != nil || got != x.want {
			t.Errorf("%+v, %v; want %+v", got, err, x.want)
		}
		if c := <-h.told; c.Name != "web1" || c.UUID != uuid || c.Op != OpPrepare || c.Subop != "begin" || c.Extra != "-" {
			t.Errorf("the daemon was asked %+v", c)
		}
	}
}

// TestTell: who tells does not wait, and what is told arrives, the longest names
// too.
func TestTell(t *testing.T) {
	h := newAnswerer(Answer{})
	_, path := listen(t, h)
	for _, c := range []Call{
		{Op: "release", Subop: "end", Extra: "migrated", Name: "web1", UUID: uuid},
		{Op: "started", Subop: "begin", Extra: "-", Name: "web1"},
		{Op: "started", Name: strings.Repeat("\x01", 1<<20), UUID: uuid},
	} {
		if err := Tell(t.Context(), path, c); err != nil {
			t.Fatal(err)
		}
		c.Version, c.Name = 1, c.Name[:min(len(c.Name), fieldBytesMax)]
		if got := <-h.told; got != c {
			t.Errorf("%+v, want %+v", got, c)
		}
	}
}

// TestNoDaemon: nobody there is known at once, and apart from somebody who does
// not answer.
func TestNoDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	if _, err := Ask(t.Context(), path, prepare()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("no socket: %v", err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, err := Ask(t.Context(), path, prepare()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("a socket that was left: %v", err)
	}
	h := newAnswerer(Answer{Allow: true})
	s, err := Listen(path, h, nil)
	if err != nil {
		t.Fatalf("in place of a socket that was left: %v", err)
	}
	defer s.Close()
	h.wait = true
	if _, err := Ask(t.Context(), path, prepare()); err == nil || errors.Is(err, ErrNoDaemon) {
		t.Errorf("a daemon that does not answer in time: %v", err)
	}
	s.Close()
	if err := Tell(t.Context(), path, prepare()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("after its end: %v", err)
	}
}

// TestBadAnswers: whatever a daemon writes, an answer is an answer or an error.
func TestBadAnswers(t *testing.T) {
	for _, line := range []string{"", "\n", "x\n", "{}\n", `{"allow":true}` + "\n", `{"version":2,"allow":true}` + "\n",
		`{"version":1,"allow":"yes"}` + "\n", `{"version":1,"reason":"` + strings.Repeat("x", lineBytesMax) + `"}` + "\n"} {
		path := filepath.Join(t.TempDir(), SocketName)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			conn, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if _, err := readLine(conn); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(conn, line) // who asked may be gone in the middle
		})
		if a, err := Ask(t.Context(), path, prepare()); err == nil || a.Allow {
			t.Errorf("%.40q is an answer: %+v", line, a)
		}
		wg.Wait()
		l.Close()
	}
}

// TestBadCalls: who does not speak the protocol hears nothing, and no handler
// does; afterwards everything is as before.
func TestBadCalls(t *testing.T) {
	h := newAnswerer(Answer{Allow: true})
	s, path := listen(t, h)
	for _, line := range []string{"", "\n", "x\n", "{}\n", `{"version":2,"op":"started"}` + "\n", `{"version":1,"op":""}` + "\n",
		`{"version":1,"op":"prepare"}` + "\n", `{"version":1,"op":"started","uuid":"../../etc/passwd"}` + "\n",
		`{"version":1,"op":"` + strings.Repeat("x", fieldBytesMax+1) + `"}` + "\n", strings.Repeat("x", lineBytesMax) + "\n"} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, line)     // the server may not read to its end
		_ = conn.(*net.UnixConn).CloseWrite() // or have closed
		if b, err := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("%.40q is answered: %q, %v", line, b, err)
		}
		conn.Close()
	}
	if a, err := ask(t, path); err != nil || !a.Allow {
		t.Errorf("%+v, %v", a, err)
	}
	s.Close()
	close(h.told)
	if c := <-h.told; c.Op != OpPrepare {
		t.Errorf("heard %+v", c)
	}
	if c, more := <-h.told; more {
		t.Errorf("heard %+v, too", c)
	}
}

// TestMany: calls that never come to an end take all room for a while, and no
// memory beyond it; Close ends them.
func TestMany(t *testing.T) {
	h := newAnswerer(Answer{Allow: true})
	s, path := listen(t, h)
	var idle []net.Conn
	for range connsMax {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	if err := Tell(t.Context(), path, prepare()); err != nil { // the kernel takes it
		t.Fatal(err)
	}
	for len(s.room) < connsMax {
		time.Sleep(time.Millisecond) // until the server took them all; fails by the test's own timeout
	}
	idle[0].Close()
	if c := <-h.told; c.Name != "web1" {
		t.Errorf("%+v", c)
	}
	s.Close()
	for _, conn := range idle[1:] {
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a call outlived its server: %d, %v", n, err)
		}
		conn.Close()
	}
}

// TestSocket: it is root's alone, and a daemon that ends late does not take away
// the one of the next.
func TestSocket(t *testing.T) {
	first, path := listen(t, newAnswerer(Answer{}))
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("%v, %v", info, err)
	}
	second, err := Listen(path, newAnswerer(Answer{Allow: true}), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close()
	if a, err := ask(t, path); err != nil || !a.Allow {
		t.Errorf("the next daemon is not reached: %+v, %v", a, err)
	}
	second.Close()
	second.Close()
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := Listen(filepath.Join(path, strings.Repeat("x", 200)), nil, nil); err == nil {
		t.Error("a name that no socket can have")
	}
}

// TestWire: the bytes, which a hook and a daemon of different builds agree on.
func TestWire(t *testing.T) {
	path := filepath.Join(t.TempDir(), SocketName)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var call string
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		line, err := readLine(conn)
		if err != nil {
			t.Error(err)
		}
		call = string(line)
		if _, err := io.WriteString(conn, `{"version":1,"allow":false,"reason":"no","later":[1]}`+"\n"); err != nil {
			t.Error(err)
		}
	})
	a, err := Ask(t.Context(), path, prepare())
	wg.Wait()
	if want := fmt.Sprintf(`{"version":1,"op":"prepare","subop":"begin","extra":"-","name":"web1","uuid":%q}`, uuid); call != want {
		t.Errorf("a call is %s, want %s", call, want)
	}
	if want := (Answer{Version: 1, Reason: "no"}); err != nil || a != want {
		t.Errorf("%+v, %v", a, err)
	}
}

// FuzzCall: no line makes the daemon panic, or hands a handler what it must not
// get.
func FuzzCall(f *testing.F) {
	f.Add([]byte(`{"version":1,"op":"prepare","subop":"begin","extra":"-","name":"web1","uuid":"` + uuid + `"}`))
	f.Add([]byte(`{"version":1,"op":"release","uuid":"x"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		c, err := parseCall(line)
		if err != nil {
			return
		}
		if c.Version != version || c.Op == "" || c.UUID != "" && !IsUUID(c.UUID) || c.Op == OpPrepare && c.UUID == "" || len(c.Name) > fieldBytesMax {
			t.Errorf("%+v", c)
		}
	})
}
