package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/pkg/kvmclock"
	"github.com/virt-ft/virt-ft/test/clock/guest"
)

// rdtsc reads this processor's TSC, after everything before it is done.
func rdtsc() uint64

// meter tells what a guest's clock is, without the guest's help: it computes it
// from the guest's pvclock page, as the guest does, and the host's TSC.
//
// For that it must know how far the guest's TSC is from the host's. A sample that
// the guest has just written was read a moment ago:
//
//	guest:  rdtsc ── writes sample
//	host:                    sees it ── rdtsc      guest's TSC - ours is at least the difference
//
// and the largest difference of many is true to the time that a cache line takes
// from one processor to another, some ten ns. Errors in it are the same all the
// time, so they cancel where one reading is held against another of the same QEMU.
type meter struct {
	m      *guest.Machine
	offset uint64 // guest's TSC minus the host's
}

const (
	samplesMin     = 1000
	calibrationMax = 30 * time.Second // a host so busy that the two seldom run together
	tscSlip        = 20_000           // ticks: calibrations further apart mean that the TSC was set, or runs at another rate
	agreeing       = 8                // samples
	agreeTicks     = 2_000            // that agree as well as this were all read a moment after they were written
)

var errNoSamples = errors.New("the guest does not read its clock")

func newMeter(ctx context.Context, m *guest.Machine) (*meter, error) {
	offset, err := calibrate(ctx, m)
	return &meter{m: m, offset: offset}, err
}

// calibrate returns the guest's TSC minus the host's. On a busy host hardly a
// sample is read while it is fresh, and the largest difference alone may be that
// of a stale one: so some must agree on it.
func calibrate(ctx context.Context, m *guest.Machine) (offset uint64, err error) {
	var best [agreeing]int64 // the largest first
	for i := range best {
		best[i] = math.MinInt64 / 2
	}
	n := 0
	err = differences(ctx, m, func(ticks int64) bool {
		for i := range best {
			if ticks > best[i] {
				ticks, best[i] = best[i], ticks
			}
		}
		n++
		return n >= samplesMin && best[0]-best[agreeing-1] < agreeTicks
	})
	return uint64(best[0]), err
}

// differences tells done of the guest's TSC minus the host's, by one fresh sample
// after the other, until it is content.
//
// The guest must run while we look, and the scheduler of a busy host may leave the
// two on one processor for minutes: we go from one to the next.
func differences(ctx context.Context, m *guest.Machine, done func(ticks int64) bool) (err error) {
	hop, err := newHopper()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hop.close()) }()
	until, seen := time.Now().Add(calibrationMax), m.Seq(0)
	for looks := 0; ; looks++ {
		if looks%1024 == 0 {
			if time.Now().After(until) {
				return errNoSamples
			}
			if err := errors.Join(context.Cause(ctx), m.Alive(), hop.hop()); err != nil {
				return err
			}
		}
		seq := m.Seq(0)
		if seq == seen || seq%2 != 0 {
			continue
		}
		seen = seq
		tsc, _, ok := m.Sample(0)
		if now := rdtsc(); ok && done(int64(tsc-now)) {
			return nil
		}
	}
}

// hopper takes its goroutine's thread from one of its processors to the next, a
// stay on each.
type hopper struct {
	was   unix.CPUSet
	cpu   int
	since time.Time
}

const stay = 50 * time.Millisecond

func newHopper() (*hopper, error) {
	h := &hopper{cpu: -1}
	if err := unix.SchedGetaffinity(0, &h.was); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	runtime.LockOSThread()
	return h, nil
}

func (h *hopper) hop() error {
	if time.Since(h.since) < stay {
		return nil
	}
	for h.cpu++; !h.was.IsSet(h.cpu); h.cpu++ {
		if h.cpu >= 8*int(unsafe.Sizeof(h.was)) {
			h.cpu = -1
		}
	}
	var one unix.CPUSet
	one.Set(h.cpu)
	h.since = time.Now()
	return unix.SchedSetaffinity(0, &one)
}

func (h *hopper) close() error {
	defer runtime.UnlockOSThread()
	return unix.SchedSetaffinity(0, &h.was)
}

// check fails if the guest's TSC is no longer where it was: it is there if one
// sample says so, because a sample can be stale but not from the future.
func (t *meter) check(ctx context.Context) error {
	best := int64(math.MinInt64)
	n := 0
	err := differences(ctx, t.m, func(ticks int64) bool {
		n, best = n+1, max(best, ticks-int64(t.offset))
		return n >= samplesMin/4 && best > -tscSlip
	})
	if best > tscSlip || errors.Is(err, errNoSamples) && n > 0 {
		return fmt.Errorf("the guest's TSC moved by %d ticks against the host's: nothing measured by it counts", best)
	}
	return err
}

// sameTSC says that the guest's TSC is the host's.
func (t *meter) sameTSC() bool { return max(int64(t.offset), -int64(t.offset)) < tscSlip }

// reading is a guest's clock and TSC at an instant.
type reading struct {
	rawNs   int64 // CLOCK_MONOTONIC_RAW, which nobody adjusts
	clockNs int64
	tsc     uint64
}

// lead is by how much the guest's clock is before CLOCK_MONOTONIC_RAW, in ns.
func (r reading) lead() int64 { return r.clockNs - r.rawNs }

// read says what the guest's clock is now, true to the time between two reads of
// the TSC: the shortest of several.
func (t *meter) read() (r reading, err error) {
	best := uint64(math.MaxUint64)
	for range 7 {
		page, err := t.page()
		if err != nil {
			return r, err
		}
		before := rdtsc()
		raw, err := rawNs()
		took := rdtsc() - before
		if err != nil {
			return r, err
		}
		if took < best {
			best = took
			tsc := before + took/2 + t.offset
			r = reading{rawNs: raw, clockNs: int64(page.At(tsc)), tsc: tsc}
		}
	}
	return r, nil
}

// page is that of the first processor.
func (t *meter) page() (kvmclock.Page, error) { return t.pageOf(0) }

func (t *meter) pageOf(cpu int) (kvmclock.Page, error) {
	for range 1000 {
		if b, ok := t.m.Page(cpu); ok {
			return kvmclock.ParsePage(b[:])
		}
	}
	return kvmclock.Page{}, kvmclock.ErrPageTorn
}

// readFresh reads after the guest has: then its page is the one that it goes by
// since it was resumed.
func (t *meter) readFresh(ctx context.Context) (reading, error) {
	for from, until := t.m.CPU(0).Reads, time.Now().Add(calibrationMax); t.m.CPU(0).Reads < from+2; {
		if err := errors.Join(context.Cause(ctx), t.m.Alive()); err != nil {
			return reading{}, err
		}
		if time.Now().After(until) {
			return reading{}, errNoSamples
		}
		time.Sleep(50 * time.Microsecond) // the guest may need our processor
	}
	return t.read()
}

func rawNs() (int64, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts)
	return ts.Nano(), err
}

// steps are what a guest saw of its clock going back.
type steps struct {
	Back   uint64 `json:"back"`     // reads below the processor's own one before
	Behind uint64 `json:"behind"`   // reads below one that another had finished before
	TSC    uint64 `json:"tsc_back"` // reads with a TSC below the one before
	Reads  uint64 `json:"reads"`    // of all processors
	MaxNs  uint64 `json:"max_ns"`   // largest of the first two since the guest started
	// Reads behind because the host's processors disagree about the TSC, and by
	// how much since the guest started: no doing of anybody's here.
	Skew      uint64 `json:"tsc_skew"`
	SkewMaxNs uint64 `json:"tsc_skew_max_ns"`
}

func stepsOf(m *guest.Machine) (s steps) {
	for n := range m.CPUs() {
		c := m.CPU(n)
		s.add(steps{c.Back, c.Behind, c.TSCBack, c.Reads, max(c.BackMaxNs, c.BehindMaxNs), c.Skew, c.SkewMaxNs})
	}
	return s
}

// backwards is how often the guest saw its clock go back.
func (s steps) backwards() uint64 { return s.Back + s.Behind }

func (s steps) since(from steps) steps {
	return steps{s.Back - from.Back, s.Behind - from.Behind, s.TSC - from.TSC, s.Reads - from.Reads, s.MaxNs, s.Skew - from.Skew, s.SkewMaxNs}
}

func (s *steps) add(o steps) {
	*s = steps{s.Back + o.Back, s.Behind + o.Behind, s.TSC + o.TSC, s.Reads + o.Reads, max(s.MaxNs, o.MaxNs), s.Skew + o.Skew, max(s.SkewMaxNs, o.SkewMaxNs)}
}
