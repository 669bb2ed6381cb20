package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"sigs.k8s.io/yaml"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/daemon"
	"github.com/virt-ft/virt-ft/internal/lab"
)

func TestMain(m *testing.M) {
	daemon.Early()
	lab.MaybeHost()
	if os.Getenv("VIRT_FT_TEST_RUN") != "" {
		os.Exit(run()) // on a terminal of a test
	}
	testscript.Main(m, map[string]func(){"virt-ft": func() { os.Exit(run()) }})
}

// scenario is a control.Service which answers what a script's JSON file says.
// It stands for the daemon only where the command line is what is tested.
type scenario struct {
	Answers    []control.Status    `json:"status"`
	Steps      []control.Status    `json:"progress"`
	Hang       bool                `json:"hang"` // protect waits for its cancellation
	CheckWords control.CheckReport `json:"check"`
	Happened   []control.Event     `json:"events"`
	Quiet      bool                `json:"quiet"` // nothing happens to those who follow events
	Known      []control.Domain    `json:"domains"`
	Taken      []control.Epoch     `json:"epochs"`
	Pacing     control.Pacing      `json:"pacing"`
	Failure    *control.Error      `json:"failure"` // of every request but version

	mu     sync.Mutex
	calls  []string
	called chan struct{} // closed and replaced at each call
}

// call notes a request and returns the scripted failure.
func (s *scenario) call(words ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, strings.Join(words, " "))
	close(s.called)
	s.called = make(chan struct{})
	if s.Failure != nil {
		return s.Failure
	}
	return nil
}

// await waits until a call with this text was made n times.
func (s *scenario) await(ctx context.Context, text string, n int) bool {
	for {
		s.mu.Lock()
		count, next := 0, s.called
		for _, c := range s.calls {
			if c == text {
				count++
			}
		}
		s.mu.Unlock()
		if count >= n {
			return true
		}
		select {
		case <-next:
		case <-ctx.Done():
			return false
		}
	}
}

func (s *scenario) Protect(ctx context.Context, req control.ProtectRequest, progress func(control.Status)) error {
	b, _ := json.Marshal(req)
	if err := s.call("protect", string(b)); err != nil {
		return err
	}
	for _, st := range s.Steps {
		progress(st)
	}
	if s.Hang {
		<-ctx.Done()
		_ = s.call("undone")
		return ctx.Err()
	}
	return nil
}

func (s *scenario) Unprotect(_ context.Context, domain string) error {
	return s.call("unprotect", domain)
}

func (s *scenario) Activate(_ context.Context, domain string, force bool) error {
	if force {
		return s.call("activate", domain, "force")
	}
	return s.call("activate", domain)
}

func (s *scenario) Failback(_ context.Context, domain string) error {
	return s.call("failback", domain)
}

func (s *scenario) Set(_ context.Context, req control.SetRequest) (control.Pacing, error) {
	b, _ := json.Marshal(req)
	return req.Apply(s.Pacing), s.call("set", string(b))
}

func (s *scenario) Status(_ context.Context, domain string) ([]control.Status, error) {
	return s.Answers, s.call(strings.TrimSpace("status " + domain))
}

func (s *scenario) Check(_ context.Context, req control.CheckRequest) (control.CheckReport, error) {
	words := []string{req.Domain, req.To}
	if req.NoBandwidth {
		words = append(words, "quiet")
	}
	return s.CheckWords, s.call(append([]string{"check"}, words...)...)
}

func (s *scenario) Events(ctx context.Context, q control.EventQuery) (<-chan control.Event, error) {
	if err := s.call(strings.Fields(fmt.Sprint("events ", q.Domain, " ", q.Last, " ", q.Follow))...); err != nil || !q.Follow || !s.Quiet {
		return sent(s.Happened), err
	}
	c := make(chan control.Event)
	context.AfterFunc(ctx, func() { close(c) })
	return c, nil
}

func (s *scenario) Domains(context.Context) ([]control.Domain, error) {
	return s.Known, s.call("domains")
}

func (s *scenario) Epochs(_ context.Context, domain string, last int, follow bool) (<-chan control.Epoch, error) {
	return sent(s.Taken), s.call("epochs", domain, fmt.Sprint(last, follow))
}

// sent is a channel that brings vs and ends.
func sent[T any](vs []T) <-chan T {
	ch := make(chan T, len(vs))
	for _, v := range vs {
		ch <- v
	}
	close(ch)
	return ch
}

func (s *scenario) Version() control.Version {
	return control.Version{Version: "v9.9.9", Go: "go0", Host: "hostA"}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           filepath.Join("testdata", "script"),
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("VIRT_FT_SOCKET", filepath.Join(env.WorkDir, "c.sock"))
			env.Setenv("TZ", "UTC")
			env.Values[scenarioKey{}] = &scenario{called: make(chan struct{})}
			return nil
		},
		Cmds: scriptCommands(),
	})
}

// scriptCommands are what scripts can say beside testscript's own words.
func scriptCommands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"serve":  serve,
		"await":  await,
		"isjson": func(ts *testscript.TestScript, _ bool, args []string) { isOf(ts, args, splitJSON, json.Unmarshal) },
		"isyaml": func(ts *testscript.TestScript, _ bool, args []string) {
			isOf(ts, args, splitYAML, func(b []byte, v any) error { return yaml.UnmarshalStrict(b, v) })
		},
	}
}

// scenarioKey is where a script keeps its *scenario among its values.
type scenarioKey struct{}

// serve FILE answers on the script's socket until the script ends.
func serve(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value(scenarioKey{}).(*scenario)
	if len(args) != 1 {
		ts.Fatalf("usage: serve SCENARIO.json")
	}
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	dec.DisallowUnknownFields()
	ts.Check(dec.Decode(s))
	server := control.NewServer(s, control.ServerOptions{Socket: ts.Getenv("VIRT_FT_SOCKET")})
	ts.Check(server.Open())
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background()) }()
	ts.Defer(func() {
		if err := server.Close(); err != nil {
			ts.Logf("close: %v", err)
		}
		<-served
	})
}

// await N CALL... waits until the daemon got this request N times.
func await(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 || len(args[0]) != 1 {
		ts.Fatalf("usage: await DIGIT CALL...")
	}
	s := ts.Value(scenarioKey{}).(*scenario)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if !s.await(ctx, strings.Join(args[1:], " "), int(args[0][0]-'0')) {
		s.mu.Lock()
		defer s.mu.Unlock()
		ts.Fatalf("the daemon got only: %q", s.calls)
	}
}

// isOf checks that standard output is of a type, strictly: each of what split makes of it.
func isOf(ts *testscript.TestScript, args []string, split func(string) []string, parse func([]byte, any) error) {
	types := map[string]func() any{
		"status": func() any { return &[]control.Status{} },
		"check":  func() any { return &control.CheckReport{} },
		"pacing": func() any { return &control.Pacing{} },
		"dryrun": func() any { return &dryRunAnswer{} },
		"events": func() any { return &control.Event{} },
		"epochs": func() any { return &control.Epoch{} },
	}
	of, ok := types[strings.Join(args, " ")]
	if !ok {
		ts.Fatalf("usage: isjson|isyaml status|check|pacing|dryrun|events|epochs")
	}
	whole := split(ts.ReadFile("stdout"))
	if args[0] != "events" && args[0] != "epochs" {
		whole = []string{ts.ReadFile("stdout")}
	}
	for _, text := range whole {
		v := of()
		ts.Check(parse([]byte(text), v))
		if again, err := json.Marshal(v); err != nil || !sameFields(text, again, parse) {
			ts.Fatalf("%s has other fields than %T", text, v)
		}
	}
}

// sameFields reports whether text says nothing that again, made of what was
// understood of it, does not say.
func sameFields(text string, again []byte, parse func([]byte, any) error) bool {
	var a, b any
	if parse([]byte(text), &a) != nil || json.Unmarshal(again, &b) != nil {
		return false
	}
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func splitJSON(text string) []string { return strings.Split(strings.TrimRight(text, "\n"), "\n") }

func splitYAML(text string) []string {
	return strings.Split(strings.TrimPrefix(text, "---\n"), "\n---\n")
}

// What a terminal gets: one line, redrawn in place, never wider than it is.
func TestProgressOnTerminal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &progress{out: &terminal{File: f, isTerminal: true, colour: true}}
	sync := func(done uint64) control.Status {
		return control.Status{State: "syncing", Warnings: []string{"slow \x1b[2Jlink"},
			Sync: &control.SyncStatus{DoneBytes: done, TotalBytes: 4 << 30, RateBps: 300 << 20, EtaS: 9.6}}
	}
	p.show(sync(1 << 30))
	p.show(sync(2 << 30))
	p.finish()
	p.show(sync(3 << 30)) // too late
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	const erase = "\r\x1b[K"
	want := "\x1b[33mwarning:\x1b[0m slow ?[2Jlink\n" +
		"syncing [######------------------] 25%  1.0 GiB of 4.0 GiB  300 MiB/s  ETA 10s"
	if !bytes.HasPrefix(got, []byte(want)) || strings.Count(string(got), erase) != 2 || !bytes.HasSuffix(got, []byte(erase)) {
		t.Fatalf("%q", got)
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[float64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 300 << 20: "300 MiB", 1 << 62: "4096 PiB"} {
		if got := byteCount(n); got != want {
			t.Errorf("byteCount(%v) = %q, want %q", n, got, want)
		}
	}
	for ms, want := range map[float64]string{0: "-", 4.96: "5.0 ms", 250: "250 ms", 61_000: "1m1s"} {
		if got := millis(ms); got != want {
			t.Errorf("millis(%v) = %q, want %q", ms, got, want)
		}
	}
	if got := percentOf(&control.SyncStatus{DoneBytes: 9, TotalBytes: 3}); got != 100 {
		t.Errorf("percentOf more than all = %d", got)
	}
}
