package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// prefer gives all processes of the host a nice value, so that a machine with
// other work disturbs less. All kinds gain alike. Where the kernel groups
// processes by session (sched(7), "autogroup"), nice values only count within
// a session, and it is the sessions that get the value.
func prefer(h *lab.Host, nice int) error {
	pids, err := h.Processes()
	if err != nil {
		return err
	}
	on, _ := os.ReadFile("/proc/sys/kernel/sched_autogroup_enabled") // absent: not built in
	var errs []error
	for _, pid := range pids {
		if strings.TrimSpace(string(on)) == "1" {
			err = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte(strconv.Itoa(nice)), 0)
		} else {
			err = niceThreads(pid, nice)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) { // ended meanwhile
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// niceThreads sets all threads of a process; those to come inherit it.
func niceThreads(pid, nice int) error {
	return eachThread(pid, func(tid int) error { return unix.Setpriority(unix.PRIO_PROCESS, tid, nice) })
}

// eachThread calls f for the threads of a process; one that has ended is no
// error.
func eachThread(pid int, f func(tid int) error) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := f(tid); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("thread %d: %w", tid, err))
		}
	}
	return errors.Join(errs...)
}

// elevate makes this process a real-time one (on) or an ordinary one again,
// and tells what it is now. The sampler must look on time whoever else wants
// the processor: it needs little of it, and takes for a stall what it sees
// late. All threads, because Go's scheduler passes even a goroutine that is
// locked to its thread through the others. Processes started meanwhile would
// inherit it.
func elevate(on bool) string {
	attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	if on {
		attr.Policy, attr.Priority = unix.SCHED_FIFO, 1
	}
	// Twice, for threads that were being made by one not yet changed.
	for range 2 {
		if err := eachThread(os.Getpid(), func(tid int) error { return unix.SchedSetAttr(tid, attr, 0) }); err != nil {
			return "normal"
		}
	}
	if on {
		return "real-time"
	}
	return "normal"
}
