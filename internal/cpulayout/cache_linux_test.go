package cpulayout

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/virt-ft/virt-ft/internal/vmstate"
)

// binary is a file in place of a QEMU.
func binary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("7.2"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCacheAsksOnce(t *testing.T) {
	path := binary(t)
	var runs atomic.Int32
	c := &Cache{learn: func(context.Context, string, string) (vmstate.CPULayout, error) {
		runs.Add(1)
		return vmstate.CPULayout{}, nil
	}}
	want := int32(0)
	ask := func(what, machine string, asks bool) {
		t.Helper()
		if asks {
			want++
		}
		if _, err := c.Layout(t.Context(), path, machine); err != nil || runs.Load() != want {
			t.Errorf("%s: %d runs instead of %d, %v", what, runs.Load(), want, err)
		}
	}
	ask("first", "pc", true)
	ask("again", "pc", false)
	ask("another machine", "q35", true)
	ask("the first again", "pc", false)
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 1)); err != nil {
		t.Fatal(err)
	}
	ask("another time", "pc", true)
	if err := os.WriteFile(path, []byte("10.0"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 1)); err != nil {
		t.Fatal(err)
	}
	ask("another size", "pc", true)
	for i := range maxCached {
		ask("many machines", "m"+string(rune('0'+i)), true)
	}
	if len(c.known) > maxCached {
		t.Errorf("%d are kept", len(c.known))
	}
	if _, err := c.Layout(t.Context(), path+"x", "pc"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Callers at the same time wait for one run; one that does not want to wait goes
// away alone; and a run that ends with its caller's context is made again for the others.
func TestCacheTogether(t *testing.T) {
	path := binary(t)
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		c := &Cache{learn: func(ctx context.Context, _, _ string) (vmstate.CPULayout, error) {
			runs.Add(1)
			select {
			case <-ctx.Done():
				return vmstate.CPULayout{}, ctx.Err()
			case <-time.After(time.Minute):
				return vmstate.CPULayout{}, nil
			}
		}}
		first, cancelFirst := context.WithCancel(t.Context())
		second, cancelSecond := context.WithCancel(t.Context())
		results := make(chan error, 4)
		ask := func(ctx context.Context) {
			go func() {
				_, err := c.Layout(ctx, path, "pc")
				results <- err
			}()
			synctest.Wait()
		}
		ask(first)
		ask(second)
		ask(t.Context())
		ask(t.Context())
		if n := runs.Load(); n != 1 {
			t.Fatalf("%d runs", n)
		}
		for _, cancel := range []func(){cancelSecond, cancelFirst} {
			cancel()
			if err := <-results; !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
		if n := runs.Load(); n != 2 {
			t.Errorf("%d runs", n)
		}
	})
}

func TestCacheForgetsErrors(t *testing.T) {
	path := binary(t)
	fault := errors.New("a fault")
	next := fault
	c := &Cache{learn: func(context.Context, string, string) (vmstate.CPULayout, error) { return vmstate.CPULayout{}, next }}
	if _, err := c.Layout(t.Context(), path, "pc"); !errors.Is(err, fault) {
		t.Error(err)
	}
	next = nil
	if _, err := c.Layout(t.Context(), path, "pc"); err != nil {
		t.Error(err)
	}
	// a package manager replaces it while it runs
	c.learn = func(context.Context, string, string) (vmstate.CPULayout, error) {
		return vmstate.CPULayout{}, os.WriteFile(path, []byte("a newer one"), 0o700)
	}
	if _, err := c.Layout(t.Context(), path, "q35"); err == nil {
		t.Error("the layout of a binary that is not there any more")
	}
}
