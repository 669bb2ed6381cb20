package daemon

import (
	"context"
	"runtime"
)

// turns lets only some of those who come do their work at a time. What takes whole
// cores for seconds would else, for many guests at once, keep everybody's
// heartbeats waiting, and sessions that are given up for it begin all over again.
type turns chan struct{}

// newTurns lets half of the host's cores be taken.
func newTurns() turns { return make(turns, max(1, runtime.NumCPU()/2)) }

// enter waits for a turn, which leave ends.
func (t turns) enter(ctx context.Context) (leave func(), err error) {
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
