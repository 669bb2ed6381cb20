package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cover hides the shared directory from one host. A nil cover is none.
type cover struct {
	fuse *os.File // of a file system that never answers; nil for one that is empty
}

func (c *cover) close() {
	if c != nil && c.fuse != nil {
		c.fuse.Close()
	}
}

// CutArbiter takes the arbiter from the host, whichever it is: frames to and from
// arbnet vanish, and the shared directory is an empty one, as a mount point is
// whose storage is not mounted. A power loss heals the directory, not the network.
func (h *Host) CutArbiter() error { return h.loseArbiter(false) }

// HangArbiter is CutArbiter with a shared directory that does not answer, as that
// of an NFS server which is gone. Who waits for it can be killed.
func (h *Host) HangArbiter() error { return h.loseArbiter(true) }

// HealArbiter undoes CutArbiter and HangArbiter. Whoever still waits for a
// directory that hung gets an error.
func (h *Host) HealArbiter() error {
	err := h.lab.net.setCut("a-"+h.Name, arbiterBridge, false)
	h.mu.Lock()
	covered := h.cover
	h.cover = nil
	h.mu.Unlock()
	if covered == nil {
		return err
	}
	defer covered.close()
	return errors.Join(err, h.Inside(func() error {
		if err := unix.Unmount(SharedDir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("lab: %s: uncovering %s: %w", h.Name, SharedDir, err)
		}
		return nil
	}))
}

func (h *Host) loseArbiter(hang bool) error {
	if err := h.lab.net.setCut("a-"+h.Name, arbiterBridge, true); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cover != nil || h.pidfd == nil {
		return nil // it is cut already, or off
	}
	fd, err := unix.FcntlInt(h.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	defer unix.Close(fd)
	c := &cover{}
	if err := onThread(enterHost(fd), func() error { return c.mount(hang) }); err != nil {
		c.close()
		return fmt.Errorf("lab: %s: covering %s: %w", h.Name, SharedDir, err)
	}
	h.cover = c
	return nil
}

// mount runs on a thread inside the host.
func (c *cover) mount(hang bool) (err error) {
	if !hang {
		return unix.Mount("tmpfs", SharedDir, "tmpfs", unix.MS_RDONLY, "size=4k")
	}
	// Nobody ever reads what the kernel asks this file system, the first question
	// of all included.
	if c.fuse, err = os.OpenFile("/dev/fuse", os.O_RDWR, 0); errors.Is(err, os.ErrNotExist) {
		return &MissingError{What: "/dev/fuse", Remedy: "modprobe fuse"}
	} else if err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", c.fuse.Fd())
	return unix.Mount("silence", SharedDir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options)
}

// FreezeHost stops all that runs on the host but its first process, which is its
// power switch: libvirtd, daemon, guests and who traces them. Its kernel goes on:
// it takes what arrives for those that do not run, acknowledges it, and drops
// what a gate's lease no longer covers. It returns when everything stands still.
func (l *Lab) FreezeHost(h *Host) error { return h.signalAll(syscall.SIGSTOP, stopped) }

// ThawHost lets everything on the host go on.
func (l *Lab) ThawHost(h *Host) error { return h.signalAll(syscall.SIGCONT, nil) }

const (
	// freezeMax bounds how long a process may take to stop.
	freezeMax = 10 * time.Second
	// freezePoll is the pause between two looks whether all have.
	freezePoll = 200 * time.Microsecond
)

// signalAll sends a signal to all processes of the host but the first, again
// until done holds for each of them, if there is such a condition.
func (h *Host) signalAll(s syscall.Signal, done func(pid int) bool) error {
	init, told := h.Pid(), map[int]bool{}
	calm := 0 // looks in a row at which all had stopped: one that was traced may have been let go by one that stopped later
	for end := time.Now().Add(freezeMax); ; {
		pids, err := h.Processes()
		if err != nil {
			return err
		}
		left := 0
		for _, pid := range pids {
			if pid == init || told[pid] && done != nil && done(pid) {
				continue
			}
			if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("lab: %s: signal to process %d: %w", h.Name, pid, err)
			}
			told[pid] = true
			left++
		}
		if calm++; left > 0 {
			calm = 0
		}
		if done == nil || calm == 2 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("lab: %s: %d processes do not stop", h.Name, left)
		}
		time.Sleep(freezePoll)
	}
}

// stopped tells whether a process stands still, is dead, or is gone. One of
// whose threads only some have stopped counts by its first.
func stopped(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	rest := text[bytes.LastIndexByte(text, ')')+1:] // the name before may hold anything
	return len(rest) > 1 && bytes.IndexByte([]byte("TtZX"), rest[1]) >= 0
}
