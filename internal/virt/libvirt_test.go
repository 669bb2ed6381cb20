package virt

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/virt/virttest"
)

const (
	guestUUID   = "5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0001"
	standbyUUID = "5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0002"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustOpen(t *testing.T, h *virttest.Host) *Conn {
	t.Helper()
	c, err := Open(testContext(t), h.URI(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// mustCreate starts a domain the way an administrator does, outside our package's doors.
func mustCreate(t *testing.T, c *Conn, name, uuid string) *Domain {
	t.Helper()
	return mustCreateXML(t, c, virttest.IdleXML(name, uuid))
}

func mustCreateXML(t *testing.T, c *Conn, xml string) *Domain {
	t.Helper()
	d, err := createXML(testContext(t), c, xml)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func createXML(ctx context.Context, c *Conn, xml string) (*Domain, error) {
	return call(ctx, c, "create", "", func(l *link) (*Domain, error) {
		h, err := l.conn.DomainCreateXML(xml, 0)
		if err != nil {
			return nil, err
		}
		defer func() { _ = h.Free() }()
		return c.domainOf(h)
	}, nil)
}

// await returns the first event that is of kind and about uuid.
func await(t *testing.T, events <-chan Event, kind Kind, uuid string) Event {
	t.Helper()
	limit := time.After(60 * time.Second)
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				t.Fatalf("events ended before %s", kind)
			}
			if ev.Kind == kind && ev.UUID == uuid {
				return ev
			}
		case <-limit:
			t.Fatalf("no event %s", kind)
		}
	}
}

func TestDomain(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		ctx := testContext(t)
		c := mustOpen(t, h)
		events, stop := c.Subscribe()
		defer stop()
		if _, err := c.Lookup(ctx, "nobody"); !errors.Is(err, ErrNoDomain) {
			t.Fatalf("lookup of nobody: %v", err)
		}
		d := mustCreate(t, c, "web1", guestUUID)
		if ev := await(t, events, Started, guestUUID); ev.Name != "web1" || ev.Detail != "booted" {
			t.Errorf("started event: %+v", ev)
		}
		if d.UUID() != guestUUID || d.Name() != "web1" {
			t.Fatalf("looked up %s %s", d.Name(), d.UUID())
		}
		if byUUID, err := c.Lookup(ctx, guestUUID); err != nil || byUUID.Name() != "web1" {
			t.Fatalf("lookup by UUID: %v, %v", byUUID, err)
		}
		list, err := c.Domains(ctx)
		if err != nil || len(list) != 1 || list[0].State.Status != Running {
			t.Fatalf("list: %+v, %v", list, err)
		}
		info, err := c.Host(ctx)
		if err != nil || info.MemoryAvailableBytes == 0 || !strings.Contains(info.QEMUVersion, ".") || info.Hostname == "" {
			t.Fatalf("host: %+v, %v", info, err)
		}
		t.Logf("host: %+v", info)
		testStopped(t, ctx, c)
		testMonitor(t, ctx, d)
		testMonitorFiles(t, ctx, d)
		testSuspendResume(t, ctx, d, events)
		testNote(t, ctx, d)
		testJudgeLive(t, ctx, d)

		pid, err := d.PID()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		ev := await(t, events, Stopped, guestUUID)
		if ev.Detail != "failed" && ev.Detail != "crashed" {
			t.Errorf("QEMU was killed, the event says %q", ev.Detail)
		}
		if _, err := d.PID(); !errors.Is(err, ErrNoProcess) {
			t.Errorf("PID of a killed QEMU: %v", err)
		}
		if _, err := d.QMP(ctx, "query-status", nil); !errors.Is(err, ErrNoDomain) {
			t.Errorf("QMP to a domain that is gone: %v", err)
		}
		if err := d.Destroy(ctx); err != nil {
			t.Errorf("destroy of a domain that is gone: %v", err)
		}
	})
}

func testStopped(t *testing.T, ctx context.Context, c *Conn) {
	t.Helper()
	const uuid = "5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0009"
	_, err := call(ctx, c, "define", "off1", func(l *link) (struct{}, error) {
		h, err := l.conn.DomainDefineXML(virttest.IdleXML("off1", uuid))
		if err == nil {
			err = h.Free()
		}
		return struct{}{}, err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Lookup(ctx, "off1")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := d.State(ctx); err != nil || s.Active() {
		t.Errorf("state: %+v, %v", s, err)
	}
	if _, err := d.QMP(ctx, "query-status", nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("QMP to a stopped domain: %v", err)
	}
	if _, err := d.Note(ctx); !errors.Is(err, ErrNotRunning) {
		t.Errorf("note of a stopped domain: %v", err)
	}
	if err := d.Destroy(ctx); err != nil {
		t.Errorf("destroy of a stopped domain: %v", err)
	}
}

func testMonitor(t *testing.T, ctx context.Context, d *Domain) {
	t.Helper()
	raw, err := d.QMP(ctx, "query-status", nil)
	var status struct{ Status string }
	if err == nil {
		err = json.Unmarshal(raw, &status)
	}
	if err != nil || status.Status != "running" {
		t.Fatalf("query-status: %s, %v", raw, err)
	}
	var refusal *QMPError
	if _, err := d.QMP(ctx, "no-such-command", nil); !errors.As(err, &refusal) || refusal.Class != "CommandNotFound" {
		t.Fatalf("unknown command: %v", err)
	}
	if out, err := d.HMP(ctx, "info ramblock"); err != nil || !strings.Contains(out, "pc.ram") {
		t.Fatalf("info ramblock: %q, %v", out, err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := d.QMP(ended, "query-status", nil); !errors.Is(err, context.Canceled) || errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("QMP with an ended context must not be sent: %v", err)
	}
}

// testMonitorFiles passes a pipe to QEMU and has QEMU write into it. The pipe stays non-blocking for us.
func testMonitorFiles(t *testing.T, ctx context.Context, d *Domain) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	raw, err := d.QMPWithFiles(ctx, "add-fd", map[string]int{"fdset-id": 7}, w)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Errorf("the passed file lost its deadlines: %v", err)
	}
	if _, err := w.WriteString("x"); err != nil {
		t.Errorf("the passed file cannot be used any more: %v", err)
	}
	w.Close()
	var added struct {
		FdsetID int `json:"fdset-id"`
	}
	if err := json.Unmarshal(raw, &added); err != nil || added.FdsetID != 7 {
		t.Fatalf("add-fd: %s, %v", raw, err)
	}
	if _, err := d.QMP(ctx, "remove-fd", map[string]int{"fdset-id": 7}); err != nil {
		t.Fatal(err)
	}
	// QEMU had the only other write end: without a leak of ours the pipe ends now
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "x" {
		t.Errorf("pipe: %q, %v: somebody still holds its write end", b, err)
	}
}

func testSuspendResume(t *testing.T, ctx context.Context, d *Domain, events <-chan Event) {
	t.Helper()
	if err := d.Suspend(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, events, Suspended, d.UUID())
	if s, err := d.State(ctx); err != nil || s != (State{Paused, "user"}) {
		t.Errorf("state: %+v, %v", s, err)
	}
	if err := d.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, events, Resumed, d.UUID())
}

func testNote(t *testing.T, ctx context.Context, d *Domain) {
	t.Helper()
	if _, err := d.Note(ctx); !errors.Is(err, ErrNoNote) {
		t.Fatalf("note of a plain domain: %v", err)
	}
	if err := d.ClearNote(ctx); err != nil {
		t.Fatalf("clear without a note: %v", err)
	}
	want := Note{Protection: "p<1>", Generation: 1 << 60, Role: RoleActive, PrimaryHost: `a"b`, Title: "one & two", Description: "d\nd"}
	if err := d.SetNote(ctx, want); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Note(ctx); err != nil || got != want {
		t.Fatalf("note: %+v, %v", got, err)
	}
	noted, err := d.LiveXML(ctx)
	if err != nil {
		t.Fatal(err)
	}
	checkMetadata(t, noted, 1)
	if err := d.ClearNote(ctx); err != nil {
		t.Fatal(err)
	}
	xml, err := d.LiveXML(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(xml, Namespace) || !strings.Contains(xml, "<title>one &amp; two</title>") {
		t.Errorf("after clear:\n%s", xml)
	}
}

func testJudgeLive(t *testing.T, ctx context.Context, d *Domain) {
	t.Helper()
	xml, err := d.LiveXML(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Judge(xml) {
		if f.Level == Fail {
			t.Errorf("an idle domain is refused: %+v", f)
		}
	}
}

// TestQMPCost reports what a monitor command costs through this package, beside the bare binding.
func TestQMPCost(t *testing.T) {
	if testing.Short() {
		t.Skip("a measurement")
	}
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		ctx := testContext(t)
		c := mustOpen(t, h)
		d := mustCreate(t, c, "web1", guestUUID)
		l, err := c.acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer c.release(l)
		bareHandle, free, err := l.handle(d.UUID())
		if err != nil {
			t.Fatal(err)
		}
		defer free()
		const rounds = 400
		var ours, bare []time.Duration
		for range rounds { // in turn, so that both see the same machine
			t0 := time.Now()
			if _, err := d.QMP(ctx, "query-status", nil); err != nil {
				t.Fatal(err)
			}
			t1 := time.Now()
			if _, err := bareHandle.QemuMonitorCommand(`{"execute":"query-status"}`, 0); err != nil {
				t.Fatal(err)
			}
			ours, bare = append(ours, t1.Sub(t0)), append(bare, time.Since(t1))
		}
		slices.Sort(ours)
		slices.Sort(bare)
		t.Logf("query-status, median and p99 of %d: %s, %s through this package; %s, %s through the bare binding", rounds,
			ours[rounds/2], ours[rounds*99/100], bare[rounds/2], bare[rounds*99/100])
	})
}
