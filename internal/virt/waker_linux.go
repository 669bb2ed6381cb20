package virt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// wakerName is argv[0] of a waker and what MaybeWake looks for.
	wakerName = "virt-ft-waker"
	// wakerFd is the descriptor through which a waker is spoken to.
	wakerFd = 3

	wakerStartMax = 10 * time.Second
	wakerEndMax   = 2 * time.Second
	// wakeMax bounds how long a waker tries to resume a domain, libvirtd being away.
	wakeMax = time.Minute
	// wakeWatch is for how long a domain has to be seen awake: the call that suspends it may still be under way in
	// libvirtd when its caller is dead.
	wakeWatch = time.Second
	wakePoll  = 20 * time.Millisecond
	// orphansMax bounds what is done before a domain is resumed whose daemon is dead.
	orphansMax = 3 * time.Second
)

const (
	wakerHold    = 'h' // from now on the domain may be suspended
	wakerRest    = 's' // it is not, until the next Hold
	wakerRelease = 'r' // nor will it be
	wakerReady   = 'y' // of the waker
)

// Waker resumes a domain that this process suspends for a moment, should this process be killed, or be stopped for too
// long, before it has done so itself. It is a process of its own. One goroutine at a time may use a Waker.
//
// A file tells whoever comes after both of them that the domain may have been left suspended, see Held and Wake. It is locked
// while the waker lives.
type Waker struct {
	file string
	cmd  *exec.Cmd
	sock *net.UnixConn
	held bool // after Hold, until Rest
}

// StartWaker starts a waker for the domain and returns when it is connected to libvirtd. The binary must call MaybeWake
// first thing in main, and in TestMain. dir is where the file is made; it must not outlive the host's next boot. After
// Hold the waker waits for limit at most. ctx ends only the start.
func (d *Domain) StartWaker(ctx context.Context, dir string, limit time.Duration) (*Waker, error) {
	const op = "start waker"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &CallError{op, d.name, err}
	}
	w := &Waker{file: filepath.Join(dir, d.uuid)}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, &CallError{op, d.name, err}
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "waker"), os.NewFile(uintptr(pair[1]), "waker's end")
	defer ours.Close()
	defer theirs.Close()
	nc, err := net.FileConn(ours)
	if err != nil {
		return nil, &CallError{op, d.name, err}
	}
	w.sock = nc.(*net.UnixConn)
	w.cmd = exec.Command("/proc/self/exe", d.conn.uri, w.file, limit.String())
	w.cmd.Args[0] = wakerName
	w.cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	w.cmd.Stderr = os.Stderr // a panic, if anything
	w.cmd.ExtraFiles = []*os.File{theirs}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // signals to our group do not reach it
	if err := w.cmd.Start(); err != nil {
		w.sock.Close()
		return nil, &CallError{op, d.name, err}
	}
	theirs.Close()
	until := time.Now().Add(wakerStartMax)
	if t, ok := ctx.Deadline(); ok && t.Before(until) {
		until = t
	}
	var b [1]byte
	_ = w.sock.SetReadDeadline(until)
	if _, err := w.sock.Read(b[:]); err != nil || b[0] != wakerReady {
		w.Release()
		return nil, &CallError{op, d.name, fmt.Errorf("it does not say that it is ready (%v, %v); does main call virt.MaybeWake?", err, w.cmd.ProcessState)}
	}
	return w, nil
}

// Hold says that the domain is suspended from now on, until Rest. On error it must not be suspended.
func (w *Waker) Hold() error {
	err := w.tell(wakerHold)
	w.held = err == nil
	return err
}

// Rest says that the domain was resumed. On error the waker may believe that it was not, and resume it once more.
func (w *Waker) Rest() error {
	w.held = false
	return w.tell(wakerRest)
}

// Release ends the waker; if the domain is still held, by waking it. It may be called more than once.
func (w *Waker) Release() {
	if w.sock == nil {
		return
	}
	if w.held {
		w.sock.Close()
		w.sock = nil
		go func() { _ = w.cmd.Wait() }() // it tells by itself what it cannot do
		return
	}
	_ = w.tell(wakerRelease) // a waker that is gone is fine, too
	bound := time.AfterFunc(wakerEndMax, func() { _ = w.cmd.Process.Kill() })
	defer bound.Stop()
	_ = w.cmd.Wait() // it has nothing to say any more
	w.sock.Close()
	w.sock = nil
	_ = os.Remove(w.file)
}

func (w *Waker) tell(what byte) error {
	if err := w.sock.SetWriteDeadline(time.Now().Add(wakerEndMax)); err != nil {
		return fmt.Errorf("waker: %w", err)
	}
	if _, err := w.sock.Write([]byte{what}); err != nil {
		return fmt.Errorf("waker: it does not take a message: %w", err)
	}
	return nil
}

// Held lists the UUIDs of the domains that may have been left suspended: the notes in dir.
func Held(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var uuids []string
	for _, f := range files {
		uuids = append(uuids, f.Name())
	}
	return uuids, err
}

// Wake resumes a domain that a process, and its waker, left suspended when they were killed, and takes back the note of
// it. It waits for a waker that is still at it. Without a note there is nothing to do. Nobody else may suspend the domain
// meanwhile, and mean it.
func (c *Conn) Wake(ctx context.Context, dir, uuid string) error {
	path := filepath.Join(dir, uuid)
	lock, err := lockHeld(ctx, path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // its waker was there in time
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := c.wake(ctx, uuid, true); err != nil {
		return err
	}
	return os.Remove(path)
}

// lockHeld waits until nobody else is at the file, which may be gone by then.
func lockHeld(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	for {
		switch err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
		case nil:
			if _, err = os.Stat(path); err == nil {
				return f, nil
			}
		case unix.EINTR, unix.EWOULDBLOCK:
			select {
			case <-time.After(wakePoll):
				continue
			case <-ctx.Done():
				err = fmt.Errorf("%s: another process is at it: %w", path, ctx.Err())
			}
		}
		f.Close()
		return nil, err
	}
}

// wake resumes the domain until it was seen to be awake for wakeWatch. orphaned: the process that suspended it is dead.
func (c *Conn) wake(ctx context.Context, uuid string, orphaned bool) error {
	ctx, cancel := context.WithTimeout(ctx, wakeMax)
	defer cancel()
	var since time.Time
	for {
		st, err := c.wakeOnce(ctx, uuid, orphaned)
		switch {
		case errors.Is(err, ErrNoDomain), errors.Is(err, ErrNotRunning), err == nil && st == Shutoff:
			return nil
		case err != nil:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) >= wakeWatch:
			return nil
		}
		select {
		case <-time.After(wakePoll):
		case <-ctx.Done():
			return fmt.Errorf("domain %s may have been left suspended (virsh resume it): %w", uuid, errors.Join(err, ctx.Err()))
		}
	}
}

func (c *Conn) wakeOnce(ctx context.Context, uuid string, orphaned bool) (Status, error) {
	d, err := c.Lookup(ctx, uuid)
	if err != nil {
		return "", err
	}
	st, err := d.State(ctx)
	// Not one that stopped at an error of its storage, or panicked.
	if err != nil || st.Status != Paused || st.Reason != "user" && st.Reason != "unknown" {
		return st.Status, err
	}
	if orphaned {
		// Copies whose server died with that process are failing now: see endingJobs.
		brief, cancel := context.WithTimeout(ctx, orphansMax)
		defer cancel()
		if err := d.EndOrphans(brief); err != nil {
			slog.Warn("copies of the domain's disks that lost their server do not end before it goes on", "domain", d.name, "err", err)
		}
	}
	return Paused, d.Resume(ctx)
}

// MaybeWake turns a process started by StartWaker into the waker: it does its work and exits. In every other process it
// returns at once. It must be among the first calls of main and of TestMain.
func MaybeWake() {
	if len(os.Args) != 4 || os.Args[0] != wakerName {
		return
	}
	// A service manager that stops the whole unit tells us too. The daemon ends what it is at first.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if err := wakerMain(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		slog.Error("waker", "err", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func wakerMain(uri, file, limit string) error {
	max, err := time.ParseDuration(limit)
	if err != nil {
		return err
	}
	if f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	} else if err := f.Close(); err != nil {
		return err
	}
	lock, err := lockHeld(context.Background(), file)
	if err != nil {
		return err
	}
	defer lock.Close()
	ctx := context.Background()
	c, err := Open(ctx, uri, nil)
	if err != nil {
		return errors.Join(err, os.Remove(file))
	}
	if _, err := unix.Write(wakerFd, []byte{wakerReady}); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	if held, dead := awaitRelease(max); held {
		if err := c.wake(ctx, strings.TrimSpace(filepath.Base(file)), dead); err != nil {
			return err // the file tells
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// awaitRelease reports whether the domain may have been left suspended, and whether by a daemon that is dead.
func awaitRelease(limit time.Duration) (held, dead bool) {
	var deadline time.Time
	for {
		timeout := -1
		if held {
			timeout = int(max(0, time.Until(deadline)).Milliseconds()) + 1
		}
		fds := []unix.PollFd{{Fd: wakerFd, Events: unix.POLLIN}}
		n, err := unix.Poll(fds, timeout)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN:
			continue
		case err != nil || n == 0: // it takes too long
			return held, false
		}
		var b [1]byte
		switch n, err := unix.Read(wakerFd, b[:]); {
		case err == unix.EINTR || err == unix.EAGAIN:
		case err != nil || n == 0:
			return held, true
		case b[0] == wakerHold:
			held, deadline = true, time.Now().Add(limit)
		case b[0] == wakerRest:
			held = false
		default:
			return false, false
		}
	}
}
