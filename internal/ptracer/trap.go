package ptracer

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

const (
	// TrapDataMax is the size of the largest struct a Trap reads or writes, in bytes.
	TrapDataMax = 256
	// TrapBoundDefault is TrapOptions.Bound if none is given.
	TrapBoundDefault = 250 * time.Millisecond
	// trapBoundMin is the shortest Bound: less is what a busy host does to any process.
	trapBoundMin = time.Millisecond
)

// What can go wrong with a Trap beside what can with a remote call, for errors.Is.
var (
	ErrNotCaught = errors.New("the system call did not come") // nothing was changed
	ErrTrapAway  = errors.New("no tracer at the moment")      // nothing is attached; a later Arm may do
)

// Catch is the system call a Trap waits for: of the target's main thread, with
// this number and these first two arguments. Of a 64-bit program: a call through
// the 32-bit entry is none of ours.
type Catch struct {
	Nr, Arg0, Arg1 uint64
	DataBytes      int // of the struct that the third argument points to; 1 to TrapDataMax
}

func (c Catch) validate() error {
	if c.DataBytes < 1 || c.DataBytes > TrapDataMax {
		return fmt.Errorf("a struct of %d bytes: 1 to %d", c.DataBytes, TrapDataMax)
	}
	return nil
}

// Change is what is done to the call at its entry, once. The zero Change only
// looks.
//
// Data is written first, Arg1 then. A tracer that is killed between the two, or
// a thread of the target that looks at the struct meanwhile, finds the first
// without the second.
type Change struct {
	// Arg1, if not 0, takes the place of the second argument: one register, in
	// one step, so that the call is executed as it was or as it shall be. The
	// caller finds its register as it was when WantResult is set and the tracer
	// lives until the call is over; otherwise the new value stays in it, which a
	// function may do by the ABI, and libc's ioctl does not mind.
	Arg1 uint64
	// Data, if not empty, is written over the beginning of the struct. It is at
	// most Catch.DataBytes long.
	//
	// The thread stands still meanwhile, and what lies on one page is written as a
	// whole or not at all, whenever the tracer is killed. A struct that crosses
	// into a second page is written in two steps: what lies on the second page
	// first. A tracer that is killed between the two, which tests see happen,
	// leaves the end of Data without its beginning. What that means is the
	// caller's business: put first what makes the rest count, as a length, or
	// flags, usually are.
	Data []byte
	// NotBelow, with Data, leaves the call alone if the little-endian u64 that
	// the struct begins with is larger than Data's.
	NotBelow bool
	// WantResult stays until the call has returned, and reads the struct then.
	WantResult bool
}

func (ch Change) validate(c Catch) error {
	switch {
	case len(ch.Data) > c.DataBytes:
		return fmt.Errorf("%d bytes to write into a struct of %d", len(ch.Data), c.DataBytes)
	case ch.NotBelow && len(ch.Data) < 8:
		return errors.New("NotBelow compares eight bytes of Data, which has less")
	}
	return nil
}

// Caught is a call that a Trap has seen.
type Caught struct {
	Before, After []byte        // the struct as the caller passed it; as it was when the call returned (WantResult)
	Ret           int64         // what the kernel returned (WantResult)
	Changed       bool          // false: NotBelow, or a zero Change
	Attached      time.Duration // from stopping the thread to detaching
	Stops         int           // how often the thread was stopped meanwhile
}

// TrapOptions are the settings of a Trap; the zero value will do.
type TrapOptions struct {
	// Bound is the longest time attached: the kernel then ends the tracer, and
	// thereby detaches. 0 is TrapBoundDefault.
	Bound  time.Duration
	Logger *slog.Logger // nil: silent

	spawn spawnOptions // for tests
}
