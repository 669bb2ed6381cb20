package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// populateSpareMiB, and one part in populateSparePart of the guest's memory,
	// stay free when it is to touch all that it can. Its kernel keeps some for
	// itself, and kills this process, its only one, when it comes to that.
	populateSpareMiB  = 32
	populateSparePart = 16
	// sweepPages is the set that a sweep goes through: a power of two, and so
	// many that no page is met twice within an epoch.
	sweepPages = 1 << 14
)

// populate writes to every page of so much memory (0: of all that is free, but
// for a little), so that the host has a page of its own behind each, as behind
// the memory of a guest that has run for long. It is given back to the guest's
// kernel, and stays populated for the host.
func populate(mib uint64) (map[string]any, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("populate: %w", err)
	}
	freeMiB := info.Freeram * uint64(info.Unit) >> 20
	spareMiB := populateSpareMiB + info.Totalram*uint64(info.Unit)>>20/populateSparePart
	if mib == 0 && freeMiB > spareMiB {
		mib = freeMiB - spareMiB
	}
	if mib == 0 || mib+spareMiB > freeMiB {
		return nil, fmt.Errorf("populate: %d MiB of memory, when %d are free, of which %d must stay so", mib, freeMiB, spareMiB)
	}
	mem, err := anonymous(int(mib) << 20)
	if err != nil {
		return nil, fmt.Errorf("populate: %w", err)
	}
	for at := 0; at < len(mem); at += pageBytes {
		mem[at] = 1
	}
	return map[string]any{"mib": mib, "free_mib": freeMiB}, release(mem)
}

// sweeper writes one word to page after page of a set of its own, at a pace:
// unlike the working set's random pages, what it dirties in an epoch is as many
// different pages as it was asked for, at a price that a guest can pay for
// thousands. Safe for concurrent use; the zero value stands still.
type sweeper struct {
	mu     sync.Mutex // of making the set
	pages  [][pageWords]uint64
	perSec atomic.Int64
}

// run sets the pace; 0 stops.
func (s *sweeper) run(perSec uint64) (map[string]any, error) {
	if perSec > pagesPerSecMax {
		return nil, fmt.Errorf("sweep: at most %d pages a second", pagesPerSecMax)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pages == nil {
		mem, err := anonymous(sweepPages * pageBytes)
		if err != nil {
			return nil, fmt.Errorf("sweep: %w", err)
		}
		s.pages = unsafe.Slice((*[pageWords]uint64)(unsafe.Pointer(&mem[0])), sweepPages)
		for i := range s.pages { // now, and not at the pace: a first touch dirties more
			s.pages[i][0] = 1
		}
		at, round := uint32(0), uint64(0)
		go pace(s.perSec.Load, func() {
			round++
			s.pages[at][round%pageWords] = round
			at = sweepNext(at)
		})
	}
	s.perSec.Store(int64(perSec))
	return map[string]any{"pages_s": perSec}, nil
}

// sweepNext is the page behind a page: all of the set in turn, with neighbours
// far apart, as a full period of a linear congruential generator (Hull and
// Dobell: an odd step, and a factor that is 1 modulo 4).
func sweepNext(at uint32) uint32 { return (at*2621 + 7919) % sweepPages }
