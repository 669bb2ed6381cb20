package daemon

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/capture"
)

// waitExit returns when process pid has ended, with the signal that ended it if
// that is known, or ctx's error. It holds a pidfd, so that a reused number cannot
// fool it.
func waitExit(ctx context.Context, pid int) (syscall.Signal, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := pollExit(ctx, fd); err != nil {
		return 0, err
	}
	return exitSignal(fd), nil
}

// pollExit waits until the process of a pidfd has ended, or ctx.
func pollExit(ctx context.Context, fd int) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	defer unix.Close(wake)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		close(stopped)
	})
	defer func() {
		if !stop() {
			<-stopped // it writes to wake
		}
	}()
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if p[0].Revents != 0 {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// processGone tells whether process pid has ended, reaped or not.
func processGone(pid int) bool {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return err == unix.ESRCH
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return err == nil && n == 1
		}
	}
}

const (
	// dyingMax is how long after its first sign it may take to be known that a QEMU
	// ends. How long that takes is another matter: see capture.Ending.
	dyingMax  = 300 * time.Millisecond
	dyingPoll = 10 * time.Millisecond
)

// dying tells whether the guest's QEMU is gone, or is ending. Then what seems to be
// wrong with its connections is nothing else, and the backup must hear of its end,
// on the session that there is: watchGuest tells it when QEMU has ended.
func (p *primary) dying(ctx context.Context) bool {
	for end := time.Now().Add(dyingMax); ; {
		// One that shuts down writes its disks back after it has let go of mirrors.
		// That takes as long as the disks need, and shows nowhere in /proc.
		if p.announced.Load() || capture.Ending(p.pid) {
			return true
		}
		left := time.Until(end)
		if left <= 0 || ctx.Err() != nil {
			return false
		}
		wait, cancel := context.WithTimeout(ctx, min(left, dyingPoll))
		_, err := waitExit(wait, p.pid)
		cancel()
		if err == nil {
			return true
		}
	}
}

// afterOrDone waits d or until ctx ends.
func afterOrDone(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
