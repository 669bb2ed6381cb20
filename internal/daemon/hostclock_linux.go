package daemon

import (
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
)

// hostClock is the difference between the peer's clock on the wall and this
// host's, as heartbeats tell. Safe for concurrent use.
type hostClock struct {
	mu sync.Mutex
	o  kvmclock.Offset
}

// exchanged takes what a heartbeat told; see replica.MonitorOptions.
func (h *hostClock) exchanged(sent, came, answered, back int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.o.Observe(sent, came, answered, back)
}

// ahead is how far the peer's clock is ahead of ours, and how wrong that may be.
func (h *hostClock) ahead() (by, plusMinus time.Duration, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ns, errNs, known := h.o.Best(time.Now().UnixNano())
	return time.Duration(ns), time.Duration(errNs), known
}

// report is nil as long as nothing is known.
func (h *hostClock) report() *control.PeerClock {
	by, plusMinus, known := h.ahead()
	if !known {
		return nil
	}
	return &control.PeerClock{AheadUs: micros(by.Nanoseconds()), ErrUs: micros(plusMinus.Nanoseconds())}
}
