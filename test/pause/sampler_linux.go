package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// clock tells CLOCK_MONOTONIC in nanoseconds, the same in all processes of the
// machine, at the price of time.Now.
type clock struct {
	base   time.Time
	baseNs int64
}

func newClock() clock {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // every Linux has this clock
	}
	return clock{time.Now(), t.Nano()}
}

func (c clock) now() int64 { return c.baseNs + time.Since(c.base).Nanoseconds() }

// looksMax bounds the looks of one operation; there are some 10,000 a second.
const looksMax = 1 << 20

// standMax is how long a guest may stand still after an operation.
const standMax = 10 * time.Second

var errStands = errors.New("the guest's counter does not move any more")

// sampler looks at the guest's counter between naps, on a thread of its own.
// start and stop are for one goroutine.
type sampler struct {
	beacon *lab.Beacon
	nap    time.Duration
	clock  clock

	begin  chan struct{}
	end    chan outcome
	ending atomic.Int64 // CLOCK_MONOTONIC of stop; 0 before
}

type outcome struct {
	looks []look
	err   error
}

func newSampler(b *lab.Beacon, nap time.Duration) *sampler {
	s := &sampler{beacon: b, nap: nap, clock: newClock(), begin: make(chan struct{}), end: make(chan outcome, 1)}
	go s.run()
	return s
}

// close ends the thread; a sampling under way must have been stopped.
func (s *sampler) close() { close(s.begin) }

func (s *sampler) start() {
	s.ending.Store(0)
	s.begin <- struct{}{}
}

// stop returns all looks since start, once the guest has moved.
func (s *sampler) stop(ctx context.Context) ([]look, error) {
	s.ending.Store(s.clock.now())
	select {
	case o := <-s.end:
		return o.looks, o.err
	case <-ctx.Done():
		o := <-s.end // bounded by standMax
		return nil, errors.Join(ctx.Err(), o.err)
	}
}

func (s *sampler) run() {
	runtime.LockOSThread()                             // never unlocked: the thread's timer slack is changed
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // costs precision if it fails
	looks := make([]look, 0, 4096)
	for range s.begin {
		var err error
		looks, err = s.watch(looks[:0])
		s.end <- outcome{looks, err}
	}
}

// watch looks until the guest has moved after stop.
func (s *sampler) watch(looks []look) ([]look, error) {
	nap := unix.NsecToTimespec(s.nap.Nanoseconds())
	for {
		before := s.clock.now()
		spins, err := s.beacon.Spins()
		if err != nil {
			return looks, err
		}
		looks = append(looks, look{before, spins})
		if end := s.ending.Load(); end != 0 && before > end {
			if n := len(looks); n > 1 && looks[n-2].ns > end && spins != looks[n-2].spins {
				return looks, nil
			}
			if before-end > standMax.Nanoseconds() {
				return looks, errStands
			}
		}
		if len(looks) == looksMax {
			return looks, fmt.Errorf("an operation took longer than %d looks at the counter", looksMax)
		}
		// Raw: Go need not know of so short a nap, and does not start to move
		// its processors about. Cut short by a signal, it is a look more.
		_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&nap)), 0, 0)
	}
}

// spinner keeps the guest counting.
type spinner struct {
	lab    *lab.Lab
	beacon *lab.Beacon
	until  time.Time
	done   chan error
}

const (
	spinFor = 60 * time.Second
	// spinRest is what must be left of it when an operation begins. The
	// guest's clock does not run faster than ours.
	spinRest = 5 * time.Second
)

// ensure returns when the guest counts and will do so for spinRest.
func (s *spinner) ensure(ctx context.Context) error {
	if time.Until(s.until) > spinRest {
		select {
		case err := <-s.done:
			s.until = time.Time{}
			return fmt.Errorf("the guest stopped counting: %w", errors.Join(err, ctx.Err()))
		default:
			return nil
		}
	}
	if s.done != nil {
		if err := <-s.done; err != nil { // ends with ctx
			return err
		}
	}
	done := make(chan error, 1)
	s.done, s.until = done, time.Now().Add(spinFor)
	go func() {
		_, err := s.lab.Command(ctx, fmt.Sprintf("spin %d", spinFor.Milliseconds()))
		done <- err
	}()
	return s.moving(ctx)
}

// moving waits until the counter moves.
func (s *spinner) moving(ctx context.Context) error {
	first, err := s.beacon.Spins()
	for err == nil {
		if err = pauseFor(ctx, 20*time.Millisecond); err != nil {
			break
		}
		var now uint64
		if now, err = s.beacon.Spins(); err == nil && now != first {
			return nil
		}
	}
	return err
}

// wait waits for the last command, which ends when the guest is gone.
func (s *spinner) wait() {
	if s.done != nil {
		select {
		case <-s.done:
		case <-time.After(time.Second): // its connection ends with the process
		}
	}
}
