package capture

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pfExiting is PF_EXITING of linux/sched.h, in the flags that /proc/PID/stat shows.
const pfExiting = 0x4

// Ending tells whether process pid has ended, or cannot but end. A QEMU of many
// gigabytes takes seconds from its death to its end; its connections and files may
// close at any time of that, and mean nothing else then. It looks at the process's
// first thread: one that a signal kills gives that to all.
//
// A number that was reused is another process's: who must know holds a pidfd.
func Ending(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return isGone(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return isGone(err)
	}
	return endingOf(stat, status)
}

func isGone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// endingOf reads stat and status of a process, as proc(5) has them.
func endingOf(stat, status []byte) bool {
	// "pid (name) state ppid pgrp session tty tpgid flags ...": the name may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) > 6 {
		flags, err := strconv.ParseUint(fields[6], 10, 64)
		if strings.ContainsAny(fields[0], "ZXx") || err == nil && flags&pfExiting != 0 {
			return true
		}
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		switch name {
		case "CoreDumping":
			if value == "1" {
				return true
			}
		case "SigPnd", "ShdPnd":
			pending, err := strconv.ParseUint(value, 16, 64)
			if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}
