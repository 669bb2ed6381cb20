package virt

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/virt/virttest"
)

// TestWaker leaves a domain suspended in all the ways in which a daemon can.
//
// long: stories on one domain, one after the other.
func TestWaker(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		ctx := testContext(t)
		c := mustOpen(t, h)
		events, stop := c.Subscribe()
		defer stop()
		d := mustCreate(t, c, "web1", guestUUID)
		dir := filepath.Join(t.TempDir(), "held")
		suspended := func(limit time.Duration) *Waker {
			w, err := d.StartWaker(ctx, dir, limit)
			mustSucceed(t, "start", err)
			mustSucceed(t, "hold", w.Hold())
			mustSucceed(t, "suspend", d.Suspend(ctx))
			await(t, events, Suspended, guestUUID)
			return w
		}
		t.Run("killed", func(t *testing.T) {
			w := suspended(time.Hour)
			w.sock.Close() // what is left of a process that was killed
			await(t, events, Resumed, guestUUID)
			mustSucceed(t, "waker", w.cmd.Wait())
			noneHeld(t, dir)
		})
		t.Run("frozen", func(t *testing.T) {
			w := suspended(50 * time.Millisecond)
			await(t, events, Resumed, guestUUID)
			mustSucceed(t, "waker", w.cmd.Wait())
			noneHeld(t, dir)
			w.sock.Close()
		})
		t.Run("gave up", func(t *testing.T) {
			suspended(time.Hour).Release()
			await(t, events, Resumed, guestUUID)
			mustSucceed(t, "wake", c.Wake(ctx, dir, guestUUID)) // returns when the waker is gone
			noneHeld(t, dir)
		})
		t.Run("killed with its waker", func(t *testing.T) {
			w := suspended(time.Hour)
			mustSucceed(t, "kill", w.cmd.Process.Kill())
			_ = w.cmd.Wait() // killed
			w.sock.Close()
			if held, err := Held(dir); err != nil || !slices.Equal(held, []string{guestUUID}) {
				t.Errorf("held: %v, %v", held, err)
			}
			late, cancel := context.WithCancel(ctx)
			cancel()
			if err := c.Wake(late, dir, guestUUID); err == nil {
				t.Error("it was not woken, and that is no error")
			}
			mustSucceed(t, "wake", c.Wake(ctx, dir, guestUUID))
			await(t, events, Resumed, guestUUID)
			noneHeld(t, dir)
		})
		t.Run("in order", func(t *testing.T) {
			w := suspended(time.Hour)
			mustSucceed(t, "resume", d.Resume(ctx))
			await(t, events, Resumed, guestUUID)
			mustSucceed(t, "rest", w.Rest())
			// From here on it is suspended by somebody else.
			mustSucceed(t, "suspend", d.Suspend(ctx))
			await(t, events, Suspended, guestUUID)
			w.Release()
			w.Release()
			if s := w.cmd.ProcessState; s == nil || !s.Success() {
				t.Errorf("the waker ended with %v", s)
			}
			noneHeld(t, dir)
			mustSucceed(t, "wake", c.Wake(ctx, dir, guestUUID))
			if st, err := d.State(ctx); err != nil || st.Status != Paused {
				t.Errorf("the domain is %v, %v", st, err)
			}
			mustSucceed(t, "resume", d.Resume(ctx))
			await(t, events, Resumed, guestUUID)
		})
		t.Run("destroyed", func(t *testing.T) {
			w := suspended(time.Hour)
			mustSucceed(t, "destroy", d.Destroy(ctx))
			w.sock.Close()
			mustSucceed(t, "waker", w.cmd.Wait())
			noneHeld(t, dir)
		})
		t.Run("no libvirtd", func(t *testing.T) {
			gone := &Domain{conn: &Conn{uri: "qemu+unix:///system?socket=" + filepath.Join(dir, "none")}, name: "web1", uuid: guestUUID}
			if w, err := gone.StartWaker(ctx, dir, time.Hour); err == nil {
				w.Release()
				t.Error("a waker without libvirtd says that it is ready")
			}
			noneHeld(t, dir)
		})
	})
}

func noneHeld(t *testing.T, dir string) {
	t.Helper()
	if left, err := Held(dir); len(left) > 0 || err != nil {
		t.Errorf("%s: %v, %v", dir, left, err)
	}
}

func TestCopyBegun(t *testing.T) {
	const other = `{"device":"copy-vdb-libvirt-4-format","len":1,"ready":true}`
	for _, tc := range []struct {
		name, jobs string
		begun      bool
	}{
		{"being made", `[` + other + `,{"device":"copy-vda-libvirt-3-format","len":0,"offset":0,"ready":false}]`, false},
		{"copying", `[` + other + `,{"device":"copy-vda-libvirt-3-format","len":65536,"offset":0,"ready":false}]`, true},
		{"nothing to copy", `[{"device":"copy-vda-libvirt-3-format","len":0,"offset":0,"ready":true}]`, true},
		{"ending", `[{"device":"copy-vda-libvirt-3-format","len":65536,"offset":0,"ready":true,"status":"concluded"}]`, false},
		{"over", `[` + other + `]`, true},
		{"a longer name", `[{"device":"copy-vdaa-libvirt-3-format","len":0,"offset":0,"ready":false}]`, true},
	} {
		if begun, err := copyBegun([]byte(tc.jobs), "vda"); begun != tc.begun || err != nil {
			t.Errorf("%s: %v, %v", tc.name, begun, err)
		}
	}
	if _, err := copyBegun([]byte(`{}`), "vda"); err == nil {
		t.Error("an answer that is no list was taken")
	}
}
