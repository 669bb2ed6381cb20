package arbiter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Fence decides by power: a claim is won when a ClusterLabs fence agent has
// turned the peer off, and the agent's `status` says that it is off. A peer
// whose power was cut has lost its copy of the guest, so it does not run it and
// never will; that is why no storage needs to be shared. When both hosts fence
// each other at once, whichever is off first has lost; see FenceOptions.Delay.
//
// What a guest of the peer said to the world until it was turned off is not
// asked for: a peer that can win by another arbiter, without fencing us, must
// not be fenced by us. [OpenChain] sees to it.
//
// Records are local, in FenceOptions.Dir, and the peer does not see them. A
// right which is CLAIMED, but not RUNNING, binds only while the peer stays off:
// each repeated Claim asks for its power again, and Confirm needs a Claim of
// the same process. RUNNING is for good, as with every arbiter.
//
//   - Withdraw gives up our own right. It turns nothing on again: the peer can
//     claim when it has been started, by a person, and has a copy again. It
//     ends a fencing that still waits for Delay.
//   - Inspect knows only what this host has won. Ask the peer for the rest.
//
// A fencing is a thing between hosts, not domains: claims that come while one is
// under way, and before it asks for the final status, share its outcome. It goes
// on when a caller's context ends; the caller gets ErrUnknown, and repeats.
type Fence struct {
	o     FenceOptions
	agent agent
	begun *File // a claim in it: a fencing for this right was begun
	won   *File // the rights

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	rounds sync.WaitGroup

	mu      sync.Mutex
	round   *round
	proven  map[Claim]bool // CLAIMED, and the peer was seen off after that Claim began
	granted map[Claim]bool // the peer, or a person, said that it does not run this
}

// FenceOptions are the settings of OpenFence. Agent, Plug and Dir are required.
type FenceOptions struct {
	// Agent is an absolute path, or a name like fence_ipmilan, looked up in
	// $PATH and in /usr/sbin.
	Agent string
	// Options are given to the agent on its standard input, never on a command
	// line: ip, username, password_script, ... Each must be in its metadata.
	Options map[string]string
	// Plug is the peer's, as the agent calls it: a port, a machine's name.
	Plug string
	// NoVerify trusts an `off` that reports success. Without it, `status` must
	// say afterwards that the plug is off.
	NoVerify bool
	// Timeout bounds one fencing, from `off` to the last `status`, and each of
	// the agent's answers; default 60 s. An agent that hangs is killed.
	Timeout time.Duration
	// Delay is waited before `off`. Set it on one of the two hosts only, to
	// longer than `off` takes: the other one then survives when both fence.
	Delay time.Duration
	// Dir, a local directory that survives a restart, keeps the records. It is
	// created if needed.
	Dir    string
	Logger *slog.Logger
}

const (
	defaultFenceTimeout = time.Minute
	maxFenceDelay       = 10 * time.Minute
	statusTries         = 5 // after an off that reported success
	statusPause         = time.Second
)

// OpenFence checks the agent's metadata, touches no power, and opens the
// records. Close it.
func OpenFence(ctx context.Context, o FenceOptions) (*Fence, error) {
	if o.Timeout <= 0 {
		o.Timeout = defaultFenceTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Fence{o: o, proven: map[Claim]bool{}, granted: map[Claim]bool{}}
	err := f.open(ctx)
	if err != nil {
		return nil, opError("open", Claim{}, err)
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f, nil
}

func (f *Fence) open(ctx context.Context) (err error) {
	switch {
	case f.o.Dir == "":
		return errors.New("fence needs a local directory for its records")
	case f.o.Delay < 0 || f.o.Delay > maxFenceDelay:
		return fmt.Errorf("fence delay %s is not between 0 and %s", f.o.Delay, maxFenceDelay)
	}
	if f.agent, err = newAgent(f.o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.o.Timeout)
	defer cancel()
	if err := f.agent.checkMetadata(ctx, !f.o.NoVerify); err != nil {
		return err
	}
	for name, store := range map[string]**File{"begun": &f.begun, "won": &f.won} {
		dir := filepath.Join(f.o.Dir, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if *store, err = OpenFile(ctx, dir, FileOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// Name implements Arbiter.
func (f *Fence) Name() string { return "fence" }

// Check asks the agent for the peer's power and changes nothing: an error says
// what would keep a fencing from succeeding. on is the peer's power.
func (f *Fence) Check(ctx context.Context) (on bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.o.Timeout)
	defer cancel()
	return f.agent.status(ctx)
}

// Grant records, until Claim or Withdraw of the same right, the word of
// somebody who knows: the peer itself, which closed its guest's gate for good,
// or a person who vouches for the peer. That claim is won without fencing.
func (f *Fence) Grant(_ context.Context, domain string, generation uint64, host string) error {
	c := Claim{Domain: domain, Generation: generation, Host: host}
	if err := c.check(); err != nil {
		return opError("grant", c, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.granted[c] = true
	return nil
}

// Claim implements Arbiter.
func (f *Fence) Claim(ctx context.Context, c Claim) (Verdict, error) {
	had, err := f.won.claim(ctx, "claim", c, false)
	free := errors.Is(err, ErrOperator)
	if err != nil && !free || err == nil && (!had.Won || had.Step == StepRunning) {
		return had, err
	}
	if !f.useGrant(c) {
		_, err := f.begun.claim(ctx, "claim", c, false)
		repeat := err == nil
		if _, err := f.begun.Claim(ctx, c); err != nil {
			return Verdict{}, err
		}
		if err := f.turnOff(ctx, c, repeat); err != nil {
			return Verdict{}, opError("claim", c, err)
		}
	}
	v, err := f.won.Claim(ctx, c)
	if err == nil && v.Won {
		f.mu.Lock()
		f.proven[c] = true
		f.mu.Unlock()
	}
	return v, err
}

func (f *Fence) useGrant(c Claim) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	granted := f.granted[c]
	delete(f.granted, c)
	return granted
}

// Confirm implements Arbiter. It fails with ErrNotHolder when this process did
// not claim the right: the peer may have been started again since.
func (f *Fence) Confirm(ctx context.Context, c Claim) error {
	f.mu.Lock()
	proven := f.proven[c]
	f.mu.Unlock()
	if !proven {
		v, err := f.won.claim(ctx, "confirm", c, false)
		if err == nil && v.Won && v.Step == StepRunning {
			return nil
		}
		return opError("confirm", c, fmt.Errorf("%w: claim it first, the peer's power was not asked for since the daemon began", ErrNotHolder))
	}
	if err := f.won.Confirm(ctx, c); err != nil {
		return err
	}
	f.mu.Lock()
	delete(f.proven, c) // the record says it from now on
	f.mu.Unlock()
	return nil
}

// Withdraw implements Arbiter: see Fence for what it does not do.
func (f *Fence) Withdraw(ctx context.Context, c Claim) error {
	f.mu.Lock()
	delete(f.proven, c)
	delete(f.granted, c)
	f.round.leave(c)
	f.mu.Unlock()
	return f.won.Withdraw(ctx, c)
}

// Inspect implements Arbiter: what this host has won.
func (f *Fence) Inspect(ctx context.Context, domain string) (Record, error) {
	return f.won.Inspect(ctx, domain)
}

// Close kills an agent that is under way, whose effect is then unknown, and
// waits for its end. It is idempotent.
func (f *Fence) Close() error {
	f.mu.Lock()
	f.cancel() // no round begins after this
	f.mu.Unlock()
	f.rounds.Wait()
	return nil
}
