package daemon

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// beNice gives all threads of this process the given nice value, and those that
// they make inherit it. The guest's output waits for several of our threads in
// turn: on a busy host each of them would queue behind the guests.
func beNice(nice int) error {
	if nice == 0 {
		return nil
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("threads of this process: %w", err)
	}
	for _, t := range tasks {
		id, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, id, nice)
		}
		if err != nil && err != unix.ESRCH { // it ended meanwhile
			return fmt.Errorf("nice value %d: %w", nice, err)
		}
	}
	return nil
}
