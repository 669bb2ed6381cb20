package arbiter

import (
	"context"
	"fmt"
	"time"
)

// round is one fencing.
//
//	(delay) ──▶ off ──▶ status ──▶ done
//	   │ nobody wants it any more
//	   └──────────────────────────▶ done, nothing happened
type round struct {
	wanted map[Claim]bool
	cancel context.CancelFunc // of the delay
	// late is set before the agent is asked for what ends the round: whoever
	// comes later needs another round, because the peer might have been on in
	// between.
	late bool
	done chan struct{}
	err  error // after done
}

// leave takes c out of a round; f.mu is held. r may be nil.
func (r *round) leave(c Claim) {
	if r == nil {
		return
	}
	delete(r.wanted, c)
	if len(r.wanted) == 0 {
		r.cancel()
	}
}

// turnOff returns nil when the peer was seen off after the call began. repeat
// tells that a fencing for c was begun before: then the peer may be off.
func (f *Fence) turnOff(ctx context.Context, c Claim, repeat bool) error {
	for {
		f.mu.Lock()
		r := f.round
		if r == nil {
			if err := f.ctx.Err(); err != nil {
				f.mu.Unlock()
				return undecided(fmt.Errorf("the arbiter was closed: %w", err))
			}
			delay, cancel := context.WithCancel(f.ctx)
			r = &round{wanted: map[Claim]bool{}, cancel: cancel, done: make(chan struct{})}
			f.round = r
			f.rounds.Add(1)
			go func() {
				defer cancel()
				f.run(r, delay, repeat)
			}()
		}
		joined := !r.late
		if joined {
			r.wanted[c] = true
		}
		f.mu.Unlock()
		select {
		case <-r.done:
		case <-ctx.Done():
			return fmt.Errorf("%w: %s is being turned off, repeat the claim: %w", ErrUnknown, f.o.Plug, ctx.Err())
		}
		if joined {
			return r.err
		}
	}
}

// run performs a round. It depends on no caller: an agent that was started is
// let finish, for its callers come back.
func (f *Fence) run(r *round, delay context.Context, repeat bool) {
	defer f.rounds.Done()
	began := time.Now()
	err := f.fence(r, delay, repeat)
	f.mu.Lock()
	r.err, f.round = err, nil
	f.mu.Unlock()
	close(r.done)
	f.o.Logger.Warn("fencing is over", "plug", f.o.Plug, "after", time.Since(began).Round(time.Millisecond), "err", err)
}

func (f *Fence) fence(r *round, delay context.Context, repeat bool) error {
	if repeat && !f.o.NoVerify && f.stillOff() {
		// Asked once more below: this answer may be older than a claim that
		// joined meanwhile.
		f.close(r)
		if on, err := f.statusOnce(); err == nil && !on {
			return nil
		}
		return undecided(fmt.Errorf("the power of %s changes just now: repeat the claim", f.o.Plug))
	}
	select {
	case <-delay.Done():
	case <-time.After(f.o.Delay):
	}
	f.mu.Lock()
	called := delay.Err() != nil
	r.late = called || f.o.NoVerify
	r.cancel = func() {} // from here on it cannot be called off
	f.mu.Unlock()
	if called {
		return undecided(fmt.Errorf("the fencing of %s was called off", f.o.Plug))
	}
	ctx, cancel := context.WithTimeout(f.ctx, f.o.Timeout)
	defer cancel()
	f.o.Logger.Warn("fencing: the peer is turned off now", "plug", f.o.Plug, "agent", f.agent.path)
	if err := f.agent.off(ctx); err != nil {
		return fmt.Errorf("%s could not be turned off: %w", f.o.Plug, err)
	}
	if f.o.NoVerify {
		return nil
	}
	f.close(r)
	for try := 1; ; try++ {
		on, err := f.agent.status(ctx)
		switch {
		case err == nil && !on:
			return nil
		case err != nil && ctx.Err() != nil:
			return err
		case try == statusTries && err != nil:
			return fmt.Errorf("%s reported success, but not the state of %s: %w", f.agent.path, f.o.Plug, err)
		case try == statusTries:
			return undecided(fmt.Errorf("%s reported success, but %s is still on: is this its plug?", f.agent.path, f.o.Plug))
		}
		select {
		case <-ctx.Done():
		case <-time.After(statusPause):
		}
	}
}

// close makes later claims wait for another round.
func (f *Fence) close(r *round) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.late = true
}

func (f *Fence) stillOff() bool {
	on, err := f.statusOnce()
	return err == nil && !on
}

func (f *Fence) statusOnce() (on bool, err error) {
	ctx, cancel := context.WithTimeout(f.ctx, f.o.Timeout)
	defer cancel()
	return f.agent.status(ctx)
}
