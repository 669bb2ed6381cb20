package lab

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Tick returns the tick counter and the guest's uptime at it, each whole for
// itself. In the memory of a standby, which may hold a guest stopped in the
// middle of an update, this is all that is safe to read; the two may then be of
// ticks that follow each other.
func (b *Beacon) Tick() (counter, uptimeNs uint64, err error) {
	var v [8]byte
	if err := b.peek(v[:], guestapi.CounterOffset); err != nil {
		return 0, 0, err
	}
	counter = binary.LittleEndian.Uint64(v[:])
	err = b.peek(v[:], guestapi.UptimeNsOffset)
	return counter, binary.LittleEndian.Uint64(v[:]), err
}

// Committed watches the counter in a standby's memory from outside: what it
// shows is what the backup committed, until the guest runs there. Its methods
// may be called concurrently.
type Committed struct {
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	changes []change
}

type change struct {
	at                time.Time
	counter, uptimeNs uint64
}

// committedPoll is short against the quickest activation.
const committedPoll = 200 * time.Microsecond

// WatchCommitted starts watching b. Close it.
func WatchCommitted(ctx context.Context, b *Beacon) *Committed {
	ctx, cancel := context.WithCancel(ctx)
	c := &Committed{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		var last uint64
		for ctx.Err() == nil {
			if v, up, err := b.Tick(); err == nil && v != last {
				last = v
				c.mu.Lock()
				c.changes = append(c.changes, change{time.Now(), v, up})
				c.mu.Unlock()
			}
			select {
			case <-ctx.Done():
			case <-time.After(committedPoll):
			}
		}
	}()
	return c
}

// Last returns counter and uptime in the last commit before the guest ran. fault is
// when the primary was struck, seen when the first tick from the backup came:
// the memory stood still for longest while the backup took over, since it
// changes with each commit before and with each tick after.
func (c *Committed) Last(fault, seen time.Time) (counter, uptimeNs uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var longest time.Duration
	for i, x := range c.changes {
		end := seen
		if i+1 < len(c.changes) && c.changes[i+1].at.Before(seen) {
			end = c.changes[i+1].at
		}
		if x.at.After(seen) || end.Before(fault) {
			continue
		}
		if still := end.Sub(x.at); still > longest {
			longest, counter, uptimeNs, ok = still, x.counter, x.uptimeNs, true
		}
	}
	return counter, uptimeNs, ok
}

// Close stops watching.
func (c *Committed) Close() {
	c.stop()
	<-c.done
}
