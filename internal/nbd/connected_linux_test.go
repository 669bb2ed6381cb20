package nbd

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestConnected: an end that nobody has read yet is seen.
func TestConnected(t *testing.T) {
	entered, block := make(chan struct{}), make(chan struct{})
	s := serve(t, Options{}, map[string]Backend{"vda": &busyBackend{Backend: newMemory(t, 1<<20), entered: entered, until: block}})
	if err := s.Connected("vda"); !errors.Is(err, ErrUnused) {
		t.Errorf("nobody is there: %v", err)
	}
	c := s.dial(t).choose("vda", false)
	if err := s.Connected("vda"); err != nil {
		t.Errorf("in use: %v", err)
	}
	// The connection's goroutine is in the backend, and reads nothing.
	c.put(requestHead(request{kind: cmdFlush}))
	<-entered
	c.nc.Close()
	if err := s.Connected("vda"); !errors.Is(err, ErrHungUp) {
		t.Errorf("closed by the client: %v", err)
	}
	close(block)
	<-s.closed
	if err := s.Connected("vda"); !errors.Is(err, ErrUnused) {
		t.Errorf("gone: %v", err)
	}
}

// TestConnectedUnderSignals: the runtime interrupts system calls with signals of its
// own, and that is not the client's end.
func TestConnectedUnderSignals(t *testing.T) {
	s := serve(t, Options{}, map[string]Backend{"vda": newMemory(t, 1<<20)})
	s.dial(t).choose("vda", false)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, stop, stopped := unix.Gettid(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
			}
		}
	}()
	for range 50_000 {
		if err := s.Connected("vda"); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	<-stopped
}

// busyBackend is in a flush until it is let go.
type busyBackend struct {
	Backend
	entered, until chan struct{}
}

func (b *busyBackend) Flush(context.Context) error {
	close(b.entered)
	<-b.until
	return nil
}
