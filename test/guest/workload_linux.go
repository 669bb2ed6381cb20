package main

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	pageBytes = 4096
	pageWords = pageBytes / 8
	// paceMin and paceMax bound how long the paced loops sleep. Each time they wake
	// costs an emulated guest more than most of their steps.
	paceMin = 5 * time.Millisecond
	paceMax = 100 * time.Millisecond
	// hurryPerSec is more pages than an emulated guest can verify in a second.
	hurryPerSec = 100_000
	// hurryPassesMax bounds what hurry is asked for.
	hurryPassesMax = 100
)

// workload is a working set whose every page has one right content: it follows
// from the page's index and version, and the versions are kept elsewhere, so a
// page that is torn, lost or stale is found out.
//
// All exported-to-the-package methods may be called concurrently.
type workload struct {
	mu       sync.Mutex // held for one page at a time
	pages    [][pageWords]uint64
	versions []uint64 // in memory of their own, not beside the pages

	dirtyPerSec atomic.Int64
	errors      atomic.Uint64
	passes      atomic.Uint64
	hurried     atomic.Uint64 // passes to be made without waiting
	writes      atomic.Uint64
	firstError  atomic.Pointer[string]
}

// newWorkload maps and fills n pages. They are outside the Go heap, so that
// the collector neither scans nor moves them.
func newWorkload(n int) (*workload, error) {
	w := &workload{}
	if n == 0 {
		return w, nil
	}
	mem, err := anonymous(n * pageBytes)
	if err != nil {
		return nil, fmt.Errorf("working set of %d pages: %w", n, err)
	}
	table, err := anonymous(n * 8)
	if err != nil {
		return nil, fmt.Errorf("version table: %w", err)
	}
	w.pages = unsafe.Slice((*[pageWords]uint64)(unsafe.Pointer(&mem[0])), n)
	w.versions = unsafe.Slice((*uint64)(unsafe.Pointer(&table[0])), n)
	for i := range w.pages {
		fill(&w.pages[i], uint64(i), 0)
	}
	return w, nil
}

// release gives back what anonymous mapped.
func release(b []byte) error { return unix.Munmap(b) }

func anonymous(bytes int) ([]byte, error) {
	return unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

// seed mixes index and version into the start of a page's sequence
// (splitmix64's finalizer).
func seed(index, version uint64) uint64 {
	z := index*0x9e3779b97f4a7c15 + version*0xd1b54a32d192ed03 + 1
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31 | 1
}

func next(x uint64) uint64 { // xorshift64
	x ^= x << 13
	x ^= x >> 7
	return x ^ x<<17
}

func fill(p *[pageWords]uint64, index, version uint64) {
	x := seed(index, version)
	for i := range p {
		p[i] = x
		x = next(x)
	}
}

func intact(p *[pageWords]uint64, index, version uint64) bool {
	x, diff := seed(index, version), uint64(0)
	for i := range p {
		diff |= p[i] ^ x
		x = next(x)
	}
	return diff == 0
}

// rewrite gives one page its next version.
func (w *workload) rewrite(i int) {
	w.mu.Lock()
	w.versions[i]++
	fill(&w.pages[i], uint64(i), w.versions[i])
	w.mu.Unlock()
	w.writes.Add(1)
}

// verify checks one page and counts an error once: the page is then filled
// anew, so that later passes report only new damage.
func (w *workload) verify(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if intact(&w.pages[i], uint64(i), w.versions[i]) {
		return
	}
	w.damaged(fmt.Sprintf("page %d version %d first word %#x", i, w.versions[i], w.pages[i][0]))
	fill(&w.pages[i], uint64(i), w.versions[i])
}

// damaged counts an error in the guest's memory and keeps the text of the first.
func (w *workload) damaged(text string) {
	w.errors.Add(1)
	w.firstError.CompareAndSwap(nil, &text)
}

// run rewrites and verifies for ever, each at its own pace.
func (w *workload) run(verifyPerSec int) {
	if len(w.pages) == 0 {
		return
	}
	go pace(func() int64 { return w.dirtyPerSec.Load() }, func() {
		w.rewrite(rand.IntN(len(w.pages)))
	})
	at := 0
	go pace(func() int64 {
		if w.passes.Load() < w.hurried.Load() {
			return hurryPerSec
		}
		return int64(verifyPerSec)
	}, func() {
		w.verify(at)
		if at++; at == len(w.pages) {
			at = 0
			w.passes.Add(1)
		}
	})
}

// hurry makes the next n passes as fast as the guest can without falling silent.
func (w *workload) hurry(n uint64) { w.hurried.Store(w.passes.Load() + n) }

// pace calls step perSec() times a second. What a pause of the guest made it
// miss is dropped rather than caught up with in a burst.
func pace(perSec func() int64, step func()) {
	for last, due := time.Now(), 0.0; ; {
		rate := perSec()
		sleep := paceOf(rate)
		time.Sleep(sleep)
		now := time.Now()
		due += float64(rate) * min(now.Sub(last), 4*sleep).Seconds()
		last = now
		for ; due >= 1; due-- {
			step()
		}
	}
}

// paceOf is how long to sleep for steps at a rate: for a few steps, within bounds.
func paceOf(perSec int64) time.Duration {
	const steps = 4
	if perSec <= 0 {
		return paceMax
	}
	return min(max(steps*time.Second/time.Duration(perSec), paceMin), paceMax)
}
