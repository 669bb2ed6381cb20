package daemon

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Threads that exist and those that come get the nice value.
func TestBeNice(t *testing.T) {
	const nice = 1 // which needs no right, and hurts no other test
	if err := beNice(nice); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		got := make(chan int)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends, and another is made for the next
			// The kernel answers 20 less the nice value.
			p, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
			if err != nil {
				p = 0
			}
			got <- 20 - p
		}()
		if n := <-got; n != nice {
			t.Errorf("a thread has the nice value %d", n)
		}
	}
	if os.Geteuid() == 0 {
		if err := beNice(-1); err != nil && !errors.Is(err, unix.EACCES) {
			t.Error(err)
		}
	}
}
