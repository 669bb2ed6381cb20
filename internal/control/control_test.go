package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// scripted is a Service whose answers a test sets.
type scripted struct {
	protect func(ctx context.Context, req ProtectRequest, progress func(Status)) error
	status  func(domain string) ([]Status, error)
	events  chan Event
	epochs  chan Epoch

	mu    sync.Mutex
	calls []string
}

func (s *scripted) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

func (s *scripted) Protect(ctx context.Context, req ProtectRequest, progress func(Status)) error {
	return s.protect(ctx, req, progress)
}
func (s *scripted) Unprotect(_ context.Context, domain string) error {
	s.note("unprotect %s", domain)
	return nil
}
func (s *scripted) Activate(_ context.Context, domain string, force bool) error {
	s.note("activate %s %v", domain, force)
	return nil
}
func (s *scripted) Failback(_ context.Context, domain string) error {
	s.note("failback %s", domain)
	return nil
}
func (s *scripted) Set(_ context.Context, req SetRequest) (Pacing, error) {
	s.note("set %s", req.Domain)
	return req.Apply(Pacing{MinNs: 2e6, IdleNs: 1e8, PauseShareMax: 0.2, HeldMaxNs: 1e9}), nil
}
func (s *scripted) Status(_ context.Context, domain string) ([]Status, error) {
	return s.status(domain)
}
func (s *scripted) Check(_ context.Context, req CheckRequest) (CheckReport, error) {
	r := CheckReport{DomainName: req.Domain, HostName: req.To, Host: []Finding{{ID: "host.kernel", Item: "kernel", Level: LevelWarn}}}
	if !req.NoBandwidth {
		r.Link = &LinkReport{BandwidthBps: 1}
	}
	return r, nil
}
func (s *scripted) Events(_ context.Context, q EventQuery) (<-chan Event, error) {
	s.note("events %+v", q)
	return s.events, nil
}
func (s *scripted) Domains(context.Context) ([]Domain, error) { return nil, nil }
func (s *scripted) Epochs(_ context.Context, domain string, last int, follow bool) (<-chan Epoch, error) {
	s.note("epochs %s %d %v", domain, last, follow)
	return s.epochs, nil
}
func (s *scripted) Version() Version { return Version{Version: "v1"} }

// serve runs a server for svc until the test ends and returns its client.
func serve(t *testing.T, svc Service, log *slog.Logger) (*Client, *Server) {
	t.Helper()
	s := NewServer(svc, ServerOptions{Socket: filepath.Join(t.TempDir(), "c.sock"), Log: log})
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background()) }()
	c := NewClient(s.o.Socket)
	t.Cleanup(func() {
		c.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c, s
}

func TestRoundTrips(t *testing.T) {
	want := []Status{{Domain: "web1", Role: RolePrimary, State: StateProtected, Generation: 3,
		Epoch: EpochStatus{3, 2, 1}, Sync: &SyncStatus{DoneBytes: 1}, Pacing: Pacing{1, 2, 0.5, 3}, Output: &OutputStatus{Mode: OutputHolding, Stalled: "x"}, Since: time.Unix(1, 0).UTC(), Warnings: []string{"w"}}}
	svc := &scripted{status: func(domain string) ([]Status, error) {
		if domain == "" {
			return nil, nil
		}
		return want, nil
	}}
	var logged syncBuffer
	c, _ := serve(t, svc, slog.New(slog.NewTextHandler(&logged, nil)))
	ctx := t.Context()
	if got, err := c.Status(ctx, "web1"); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err := c.Status(ctx, ""); err != nil || got == nil || len(got) != 0 {
		t.Fatalf("%#v, %v", got, err)
	}
	if r, err := c.Check(ctx, CheckRequest{Domain: "a b&c", To: "host/B", NoBandwidth: true}); err != nil || r.Link != nil || r.DomainName != "a b&c" || r.HostName != "host/B" || r.Worst() != LevelWarn {
		t.Fatalf("%+v, %v", r, err)
	}
	if v, err := c.Version(ctx); err != nil || v.Version != "v1" {
		t.Fatalf("%+v, %v", v, err)
	}
	if err := errors.Join(c.Unprotect(ctx, "x"), c.Activate(ctx, "y", true), c.Failback(ctx, "z")); err != nil {
		t.Fatal(err)
	}
	share, zero := 0.5, int64(0)
	for _, tc := range []struct {
		change PacingChange
		want   Pacing
	}{
		{PacingChange{}, Pacing{2e6, 1e8, 0.2, 1e9}},
		{PacingChange{PauseShareMax: &share, HeldMaxNs: &zero}, Pacing{2e6, 1e8, 0.5, 0}}, // 0 is a value, not an absence
	} {
		if got, err := c.Set(ctx, SetRequest{Domain: "z", PacingChange: tc.change}); err != nil || got != tc.want {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if _, err := c.Set(ctx, SetRequest{}); !isCode(err, CodeInvalid) {
		t.Fatalf("set of no domain: %v", err)
	}
	if got := strings.Join(svc.calls, ", "); got != "unprotect x, activate y true, failback z, set z, set z" {
		t.Fatal(got)
	}
	if got := logged.String(); !strings.Contains(got, fmt.Sprintf("uid=%d pid=%d", os.Getuid(), os.Getpid())) {
		t.Fatalf("the log does not say who asked:\n%s", got)
	}
	if err := c.Unprotect(ctx, ""); !isCode(err, CodeInvalid) {
		t.Fatalf("no domain: %v", err)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func isCode(err error, code Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

func TestErrorsTravel(t *testing.T) {
	for code, c := range codes {
		svc := &scripted{status: func(string) ([]Status, error) {
			return nil, fmt.Errorf("status: %w", Errorf(code, "do this", "%w", os.ErrClosed))
		}}
		client, _ := serve(t, svc, nil)
		_, err := client.Status(t.Context(), "x")
		var e *Error
		if !errors.As(err, &e) || e.Code != code || e.Remedy != "do this" || e.Message != "status: file already closed" || e.ExitCode() != c.exit {
			t.Errorf("%s: %#v", code, err)
		}
	}
	plain, _ := serve(t, &scripted{status: func(string) ([]Status, error) { return nil, os.ErrClosed }}, nil)
	if _, err := plain.Status(t.Context(), "x"); !isCode(err, CodeInternal) {
		t.Errorf("%v", err)
	}
	if cause := Errorf(CodeRefused, "", "x: %w", os.ErrClosed); !errors.Is(cause, os.ErrClosed) {
		t.Error("the cause is lost")
	}
}

func TestProtectStreams(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		say  int
	}{
		{"success", nil, 3},
		{"fails after progress", Errorf(CodeRefused, "r", "no"), 2},
		{"fails at once", Errorf(CodeRefused, "r", "no"), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := &scripted{protect: func(_ context.Context, req ProtectRequest, progress func(Status)) error {
				for i := range tc.say {
					progress(Status{Domain: req.Domain, Generation: uint64(i)})
				}
				return tc.err
			}}
			c, _ := serve(t, svc, nil)
			var seen []uint64
			err := c.Protect(t.Context(), ProtectRequest{Domain: "d", To: "h"}, func(s Status) { seen = append(seen, s.Generation) })
			if (err == nil) != (tc.err == nil) || tc.err != nil && !isCode(err, CodeRefused) {
				t.Fatalf("%v", err)
			}
			if len(seen) != tc.say {
				t.Fatalf("saw %v", seen)
			}
		})
	}
}

func TestProtectIsCancelledByItsCaller(t *testing.T) {
	undone := make(chan error, 1)
	svc := &scripted{protect: func(ctx context.Context, _ ProtectRequest, progress func(Status)) error {
		progress(Status{State: StateSyncing})
		<-ctx.Done()
		undone <- ctx.Err()
		return ctx.Err()
	}}
	c, _ := serve(t, svc, nil)
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Protect(ctx, ProtectRequest{Domain: "d", To: "h"}, func(Status) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	if err := <-undone; !errors.Is(err, context.Canceled) {
		t.Fatalf("the service saw %v", err)
	}
}

func TestDetachedProtectGoesOn(t *testing.T) {
	release, ended := make(chan struct{}), make(chan error, 1)
	svc := &scripted{protect: func(ctx context.Context, _ ProtectRequest, progress func(Status)) error {
		progress(Status{State: StateSyncing})
		<-release
		ended <- ctx.Err()
		return nil
	}}
	c, _ := serve(t, svc, nil)
	if err := c.Protect(t.Context(), ProtectRequest{Domain: "d", To: "h", Detach: true}, func(Status) {}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	close(release)
	if err := <-ended; err != nil {
		t.Fatalf("cancelled although detached: %v", err)
	}
}

// Closing the server ends what is under way and waits for it.
func TestCloseCancelsRequests(t *testing.T) {
	started, over := make(chan struct{}), make(chan struct{})
	svc := &scripted{protect: func(ctx context.Context, _ ProtectRequest, _ func(Status)) error {
		close(started)
		<-ctx.Done()
		close(over)
		return ctx.Err()
	}}
	c, s := serve(t, svc, nil)
	answer := make(chan error, 1)
	go func() {
		answer <- c.Protect(context.Background(), ProtectRequest{Domain: "d", To: "h"}, func(Status) {})
	}()
	<-started
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	default:
		t.Fatal("Close returned before the request ended")
	}
	if err := <-answer; !isCode(err, CodeCancelled) {
		t.Fatalf("%v", err)
	}
	if _, err := os.Lstat(s.o.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the socket is still there: %v", err)
	}
}

func TestEvents(t *testing.T) {
	svc := &scripted{events: make(chan Event, 2)}
	c, _ := serve(t, svc, nil)
	svc.events <- Event{Domain: "a"}
	svc.events <- Event{Domain: "b"}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen []string
	listening := func() error { seen = append(seen, "listening"); return nil }
	since := time.Unix(1, 5).UTC()
	if err := c.Events(ctx, EventQuery{Domain: "a b", Last: 3, Since: since, Follow: true}, listening, func(e Event) error {
		if seen = append(seen, e.Domain); len(seen) == 3 {
			cancel()
		}
		return nil
	}); err != nil || !slices.Equal(seen, []string{"listening", "a", "b"}) {
		t.Fatalf("%v, %v", seen, err)
	}
	if want := fmt.Sprintf("events %+v", EventQuery{Domain: "a b", Last: 3, Since: since, Follow: true}); !slices.Equal(svc.calls, []string{want}) {
		t.Fatalf("%q, want %q", svc.calls, want)
	}
	close(svc.events)
	nothing := func(Event) error { return nil }
	if err := c.Events(t.Context(), EventQuery{Follow: true}, nil, nothing); !isCode(err, CodeUnavailable) {
		t.Fatalf("ended stream: %v", err)
	}
	if err := c.Events(t.Context(), EventQuery{}, nil, nothing); err != nil {
		t.Fatalf("all of what there is: %v", err)
	}
	if list, err := c.Domains(t.Context()); err != nil || list == nil {
		t.Fatalf("%v, %v", list, err)
	}
}

func TestEpochs(t *testing.T) {
	svc := &scripted{epochs: make(chan Epoch, 2)}
	c, _ := serve(t, svc, nil)
	svc.epochs <- Epoch{Epoch: 7, Phases: Phases{StopMs: 1.5}}
	svc.epochs <- Epoch{Epoch: 8}
	close(svc.epochs)
	var seen []Epoch
	if err := c.Epochs(t.Context(), "web1", 20, true, func(e Epoch) error { seen = append(seen, e); return nil }); !isCode(err, CodeUnavailable) {
		t.Errorf("a stream that ends: %v", err)
	}
	if len(seen) != 2 || seen[0].Epoch != 7 || seen[0].StopMs != 1.5 || seen[1].Epoch != 8 {
		t.Errorf("got %+v", seen)
	}
	if err := c.Epochs(t.Context(), "web1", -1, false, func(Epoch) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := c.Epochs(t.Context(), "", -1, false, func(Epoch) error { return nil }); !isCode(err, CodeInvalid) {
		t.Errorf("no domain: %v", err)
	}
	if want := []string{"epochs web1 20 true", "epochs web1 -1 false"}; !reflect.DeepEqual(svc.calls, want) {
		t.Errorf("asked for %q, want %q", svc.calls, want)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, name := range []string{stale, filepath.Join(dir, "absent")} {
		_, err := NewClient(name).Status(t.Context(), "")
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeNoDaemon || e.ExitCode() != ExitNoDaemon || !strings.Contains(e.Remedy, "systemctl start virt-ft") {
			t.Errorf("%#v", err)
		}
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "c.sock")
	first, err := listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|socketMode {
		t.Fatalf("%v, %v", info, err)
	}
	_, err = listen(path, "")
	if !isCode(err, CodeConflict) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Fatalf("two daemons: %v", err)
	}
	// The daemon is killed: its lock goes, the socket file stays.
	first.lock.Close()
	first.UnixListener.Close()
	second, err := listen(path, "")
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	first.once.Do(func() {}) // it cannot clean up any more
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	third, err := listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	second.Close() // again: must not touch its successor's socket
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	third.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path, ""); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Fatalf("replaced a file: %v", err)
	}
	if _, err := listen(path, "no-such-group-here"); err == nil || !strings.Contains(err.Error(), "no-such-group-here") {
		t.Fatalf("%v", err)
	}
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Fatalf("%q, %v", b[:n], err)
	}
}
