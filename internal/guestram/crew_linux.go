package guestram

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// lanesMax bounds how many threads scan or copy at once: more only fight for
// memory bandwidth, and for the CPUs of other guests.
const lanesMax = 4

// lanesHere is how many threads are worth having on this machine.
func lanesHere() int { return min(runtime.NumCPU(), runtime.GOMAXPROCS(0), lanesMax) }

// task is work that was cut in pieces. work takes one piece after the other
// until none is left; it runs in several lanes at once, each with a number of
// its own.
type task interface{ work(lane int) }

// crew is a caller and its helpers, threads that exist already and wait in the
// kernel: a task costs neither an allocation nor the start of anything. The
// caller begins at once, and never waits for a helper that has not begun: a
// helper that is late, because its CPU has other work, makes nothing late.
//
// state is the number of helpers at work, less closedBias while there is
// nothing for them. Only additions change it, so that a helper which comes late
// from one task to the next counts right; it simply helps there.
type crew struct {
	wake  []int // eventfd of each helper
	done  int   // eventfd: the last helper has left a task
	task  task  // written while closed and no helper is at work
	state atomic.Int32
	ended atomic.Bool
	wg    sync.WaitGroup
}

const closedBias = 1 << 16

// newCrew starts lanes-1 helpers; lanes is at least 1.
func newCrew(lanes int) (*crew, error) {
	c := &crew{done: -1}
	c.state.Store(-closedBias)
	var err error
	if c.done, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	for range lanes - 1 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("eventfd: %w", err), c.close())
		}
		c.wake = append(c.wake, fd)
		lane := len(c.wake)
		c.wg.Go(func() { c.help(fd, lane) })
	}
	return c, nil
}

// run has t done, by the caller alone (as lane 0) or with all helpers.
func (c *crew) run(t task, together bool) {
	if !together || len(c.wake) == 0 {
		t.work(0)
		return
	}
	c.task = t
	c.state.Add(closedBias)
	for _, fd := range c.wake {
		ring(fd)
	}
	t.work(0)
	for at := c.state.Add(-closedBias); at != -closedBias; at = c.state.Load() {
		await(c.done)
	}
	c.task = nil
}

func (c *crew) help(fd, lane int) {
	for {
		await(fd)
		if c.ended.Load() {
			return
		}
		if c.state.Add(1) > 0 {
			c.task.work(lane)
		}
		if c.state.Add(-1) == -closedBias {
			ring(c.done) // the caller may not wait: it looks at state, too
		}
	}
}

// close ends the helpers and waits for them. No task may run.
func (c *crew) close() error {
	if c == nil || c.ended.Swap(true) {
		return nil
	}
	for _, fd := range c.wake {
		ring(fd)
	}
	c.wg.Wait()
	err := unix.Close(c.done)
	for _, fd := range c.wake {
		err = errors.Join(err, unix.Close(fd))
	}
	return err
}

var one = [8]byte{1} // never written

func ring(fd int) {
	for {
		if _, err := unix.Write(fd, one[:]); err != unix.EINTR {
			return // a counter at a few cannot overflow
		}
	}
}

// await blocks until fd was rung, and resets it.
func await(fd int) {
	var b [8]byte
	for {
		if _, err := unix.Read(fd, b[:]); err != unix.EINTR {
			return
		}
	}
}
