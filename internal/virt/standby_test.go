package virt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/virt/virttest"
)

func TestStandbyLife(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		ctx := testContext(t)
		c := mustOpen(t, h)
		events, stop := c.Subscribe()
		defer stop()
		src, err := mustCreate(t, c, "web1", guestUUID).XML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// one host only: the standby needs another name
		src = strings.NewReplacer("web1", "web2", guestUUID, standbyUUID).Replace(src)
		xml, err := StandbyXML(src, StandbyOptions{Protection: "p1", Generation: 3, PrimaryHost: "hostA"})
		if err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		s, err := c.StartStandby(ctx, xml)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Incoming.Close()
		t.Logf("standby started in %s", time.Since(started))
		if _, err := c.StartStandby(ctx, xml); !errors.Is(err, ErrActive) {
			t.Fatalf("second standby: %v", err)
		}
		checkStandby(t, ctx, c, s)

		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			h.Stop(sig)
			await(t, events, Disconnected, "")
			if _, err := s.State(ctx); !errors.Is(err, ErrDisconnected) {
				t.Errorf("state without libvirtd: %v", err)
			}
			h.Start()
			restarted := time.Now()
			await(t, events, Reconnected, "")
			t.Logf("connected again %s after libvirtd answered", time.Since(restarted))
			checkStandby(t, ctx, c, s)
		}

		// QEMU refuses what is no migration stream, and says so
		if _, err := s.Incoming.WriteString("this is no migration stream"); err != nil {
			t.Fatal(err)
		}
		s.Incoming.Close()
		var load *LoadError
		if err := s.WaitLoaded(ctx); !errors.As(err, &load) {
			t.Fatalf("bad stream: %v", err)
		} else if !strings.Contains(load.LogTail, "Not a migration stream") {
			t.Errorf("QEMU's reason is not told: %v", err)
		}
		await(t, events, Stopped, standbyUUID) // events come again after the restarts
		if left, err := c.Leftovers(ctx); err != nil || len(left) != 0 {
			t.Errorf("leftovers: %v, %v", left, err)
		}
	})
}

// TestStandbyFailsClean: whatever goes wrong while a standby is started, no domain is left.
func TestStandbyFailsClean(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		ctx := testContext(t)
		c := mustOpen(t, h)
		events, stop := c.Subscribe()
		defer stop()
		var refusal *QMPError
		notIncoming := virttest.IdleXML("web2", standbyUUID)
		if _, err := c.StartStandby(ctx, notIncoming); !errors.As(err, &refusal) || refusal.Command != "migrate-incoming" {
			t.Fatalf("standby without -incoming: %v", err)
		}
		if _, err := c.Lookup(ctx, standbyUUID); !errors.Is(err, ErrNoDomain) {
			t.Fatalf("a failed standby is left: %v", err)
		}
		await(t, events, Stopped, standbyUUID)

		hasty, cancel := context.WithTimeout(ctx, 100*time.Millisecond) // a start takes longer
		defer cancel()
		if _, err := c.StartStandby(hasty, notIncoming); !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("abandoned start: %v", err)
		}
		if ev := await(t, events, Stopped, standbyUUID); ev.Detail != "destroyed" {
			t.Errorf("abandoned standby: %+v", ev)
		}
	})
}

func checkStandby(t *testing.T, ctx context.Context, c *Conn, s *Standby) {
	t.Helper()
	if state, err := s.State(ctx); err != nil || state.Status != Paused {
		t.Fatalf("standby is %+v, %v", state, err)
	}
	if status, err := s.queryStatus(ctx, "query-status"); err != nil || status != "inmigrate" {
		t.Fatalf("QEMU of the standby: %q, %v", status, err)
	}
	note, err := s.Note(ctx)
	want := Note{Protection: "p1", Generation: 3, Role: RoleStandby, PrimaryHost: "hostA", Title: "idle test guest"}
	if err != nil || note != want {
		t.Fatalf("note: %+v, %v", note, err)
	}
	text, err := s.LiveXML(ctx)
	if err != nil {
		t.Fatal(err)
	}
	checkMetadata(t, text, 1)
	left, err := c.Leftovers(ctx)
	if err != nil || len(left) != 1 || left[0].UUID() != standbyUUID {
		t.Fatalf("leftovers: %v, %v", left, err)
	}
	pid, err := s.PID()
	if err != nil {
		t.Fatal(err)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Split(string(cmdline), "\x00")
	i := slices.Index(args, "-incoming")
	if i < 0 || args[i+1] != "defer" || !strings.Contains(string(cmdline), "memory-backend-memfd") {
		t.Errorf("standby's QEMU: %q", args)
	}
}

// TestStandbyTakesOver moves a guest with QEMU's own migration into the standby's stream: our side of it, from
// XML to activation, without our checkpoints.
func TestStandbyTakesOver(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		ctx := testContext(t)
		c := mustOpen(t, h)
		guest := mustCreate(t, c, "web1", guestUUID)
		src, err := guest.XML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		live, err := guest.LiveXML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		src = strings.NewReplacer("web1", "web2", guestUUID, standbyUUID).Replace(src)
		o := StandbyOptions{Protection: "p1", Generation: 1, PrimaryHost: "hostA", LiveXML: live}
		xml, err := StandbyXML(src, o)
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.StartStandby(ctx, xml)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := guest.QMPWithFiles(ctx, "getfd", map[string]string{"fdname": "out"}, s.Incoming); err != nil {
			t.Fatal(err)
		}
		s.Incoming.Close()
		if _, err := guest.QMP(ctx, "migrate", map[string]string{"uri": "fd:out"}); err != nil {
			t.Fatal(err)
		}
		if err := s.WaitLoaded(ctx); err != nil {
			t.Fatal(err)
		}
		activated := time.Now()
		if err := errors.Join(s.Resume(ctx), s.Announce(ctx)); err != nil {
			t.Fatal(err)
		}
		t.Logf("activated in %s", time.Since(activated))
		if status, err := s.queryStatus(ctx, "query-status"); err != nil || status != "running" {
			t.Fatalf("after activation: %q, %v", status, err)
		}
		// it can be protected again, in the other direction, and looks as at first
		again, err := s.XML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		o.Generation, o.LiveXML = 2, ""
		second, err := StandbyXML(again, o)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(second, `"-incoming"`); n != 1 {
			t.Errorf("%d -incoming after re-protection:\n%s", n, second)
		}
		if n := strings.Count(second, `xmlns:virtft=`); n != 1 || !strings.Contains(second, "<virtft:title>idle test guest<") {
			t.Errorf("%d notes after re-protection:\n%s", n, second)
		}
		if err := s.ClearNote(ctx); err != nil {
			t.Fatal(err)
		}
		if plain, err := s.XML(ctx); err != nil || strings.Contains(plain, Namespace) || !strings.Contains(plain, "<title>idle test guest</title>") {
			t.Errorf("after ClearNote: %v\n%s", err, plain)
		}
	})
}
