package lab

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on an operating system thread of its own, after enter has
// changed that thread's namespaces, and throws the thread away: it could never
// be trusted with other goroutines again.
func onThread(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		err := enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// enterNet moves the calling thread into a network namespace.
func enterNet(ns *os.File) func() error {
	return func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("lab: entering a network namespace: %w", err)
		}
		return nil
	}
}

// hostNamespaces are those that make a host.
const hostNamespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// enterHost moves the calling thread into all of a host's namespaces; processes
// that it starts are in the host's pid namespace too.
func enterHost(pidfd int) func() error {
	return func() error {
		// A thread that shares its root and working directory with others may
		// not change its mount namespace.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("lab: entering a host: %w", err)
		}
		if err := unix.Setns(pidfd, hostNamespaces); err != nil {
			return fmt.Errorf("lab: entering a host: %w", err)
		}
		return nil
	}
}

// newNetNS makes an empty network namespace that lives as long as the file.
func newNetNS() (*os.File, error) {
	var ns *os.File
	err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: new network namespace: %w", err)
	}
	return ns, nil
}

// spawner is one thread that starts processes which are to die with it, which
// is to say with this process: the kernel's parent death signal goes by thread.
type spawner struct {
	calls chan func()
	done  chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{calls: make(chan func()), done: make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		defer close(s.done)
		for f := range s.calls {
			f()
		}
	}()
	return s
}

// do runs f on the thread and waits for it.
func (s *spawner) do(f func() error) error {
	result := make(chan error, 1)
	s.calls <- func() { result <- f() }
	return <-result
}

// close ends the thread; processes started by it must be gone.
func (s *spawner) close() {
	close(s.calls)
	<-s.done
}
