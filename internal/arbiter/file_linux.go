package arbiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

const defaultOpTimeout = 5 * time.Second

// File arbitrates through a directory on storage which both hosts share, NFS
// included. Every step of a claim is one immutable file
//
//	DIR/DOMAIN/GENERATION-SEQ.json
//
// written under a temporary name, synced, and placed by link(2), which fails
// when the name exists: a compare-and-swap. Nothing is ever renamed or
// removed, so a step that arrives late (a hung NFS server come back) finds its
// place taken and changes nothing. After CLAIMED only the holder takes the
// next step and after RUNNING nobody does, so a stale directory listing can
// delay an answer but cannot make two winners.
//
// On NFS, hard mounts are required (the default); `lookupcache=none` makes the
// other host's steps visible at once. A generation takes two small files;
// delete DIR/DOMAIN only when the domain is unprotected on every host.
//
// One operation runs at a time. When storage hangs, an operation returns at its
// deadline (the context's, at most Timeout) while its goroutine stays in the
// kernel; later operations wait for it. The error is ErrUndecided if it had not
// begun to place a step, which it then never does; else ErrUnknown.
type File struct {
	dir     string
	id      string // of the directory, as it was when opened
	machine string
	timeout time.Duration
	slot    chan struct{} // held by the operation that is under way

	// Seams for tests: the call that places a record, and a hook called with
	// the label of each file system call before it is made.
	place func(tmp, final string) error
	fault func(label string) error
}

// FileOptions are the optional settings of OpenFile.
type FileOptions struct {
	// Machine tells two hosts of the same name apart. Default: /etc/machine-id.
	Machine string
	// Identity, when set, is the directory's identity that OpenFile insists
	// on: the one that the peer sees, or that this host saw before a restart.
	// It catches a mount point whose storage is not mounted.
	Identity string
	// Timeout bounds each operation; default 5 s.
	Timeout time.Duration
}

// OpenFile opens the arbiter in dir. The directory must exist: creating it on
// a host where the storage is not mounted would give each host its own arbiter.
func OpenFile(ctx context.Context, dir string, o FileOptions) (*File, error) {
	f := &File{
		dir:     dir,
		machine: o.Machine,
		timeout: o.Timeout,
		slot:    make(chan struct{}, 1),
		place:   os.Link,
	}
	if f.timeout <= 0 {
		f.timeout = defaultOpTimeout
	}
	if f.machine == "" {
		f.machine = machineID()
	}
	id, err := timed(ctx, f, "open", Claim{}, func(ctx context.Context, _ *attempt) (string, error) {
		return f.identify(ctx, o.Identity)
	})
	if err != nil {
		return nil, err
	}
	f.id = id
	return f, nil
}

// Name implements Arbiter.
func (f *File) Name() string { return "file" }

// Identity is a random name which the directory got when it was first opened.
// Two hosts share storage only if both see the same identity: compare them
// before relying on this arbiter.
func (f *File) Identity() string { return f.id }

// Claim implements Arbiter.
func (f *File) Claim(ctx context.Context, c Claim) (Verdict, error) {
	return f.claim(ctx, "claim", c, true)
}

// claim answers from the records; only with take set does it place a new one,
// otherwise an unclaimed generation is ErrOperator.
func (f *File) claim(ctx context.Context, op string, c Claim, take bool) (Verdict, error) {
	if err := c.check(); err != nil {
		return Verdict{}, opError(op, c, err)
	}
	return timed(ctx, f, op, c, func(ctx context.Context, try *attempt) (Verdict, error) {
		var verdict Verdict
		if err := f.advance(ctx, try, c, claiming(c, f.machine, take, &verdict)); err != nil {
			return Verdict{}, err
		}
		return verdict, nil
	})
}

// Confirm implements Arbiter.
func (f *File) Confirm(ctx context.Context, c Claim) error {
	return f.step(ctx, "confirm", c, confirming(c, f.machine))
}

// Withdraw implements Arbiter.
func (f *File) Withdraw(ctx context.Context, c Claim) error {
	return f.step(ctx, "withdraw", c, withdrawing(c, f.machine))
}

// Revoke implements Revoker.
func (f *File) Revoke(ctx context.Context, c Claim) error {
	return f.step(ctx, "revoke", c, revoking())
}

// Inspect implements Arbiter.
func (f *File) Inspect(ctx context.Context, domain string) (Record, error) {
	c := Claim{Domain: domain}
	if err := checkName("domain", domain); err != nil {
		return Record{}, opError("inspect", c, err)
	}
	return timed(ctx, f, "inspect", c, func(ctx context.Context, _ *attempt) (Record, error) {
		if _, err := f.identify(ctx, f.id); err != nil {
			return Record{}, err
		}
		_, top, err := f.load(ctx, domain, 0)
		if err != nil || top.next == 0 {
			return Record{}, err
		}
		return top.last.record(), nil
	})
}

func (f *File) step(ctx context.Context, op string, c Claim, decide decision) error {
	if err := c.check(); err != nil {
		return opError(op, c, err)
	}
	_, err := timed(ctx, f, op, c, func(ctx context.Context, try *attempt) (struct{}, error) {
		return struct{}{}, f.advance(ctx, try, c, decide)
	})
	return err
}

// timed runs one operation on a goroutine of its own, because a system call on
// hung network storage cannot be interrupted. The caller gets its answer at the
// deadline; the slot stays taken until the goroutine is back, so that steps of
// this host never overtake each other.
func timed[T any](ctx context.Context, f *File, op string, c Claim, do func(context.Context, *attempt) (T, error)) (T, error) {
	var zero T
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	select {
	case f.slot <- struct{}{}:
	case <-ctx.Done():
		return zero, opError(op, c, fmt.Errorf("an earlier operation has not returned, does %s hang? %w", f.dir, ctx.Err()))
	}
	type answer struct {
		value T
		err   error
	}
	done, try := make(chan answer, 1), new(attempt)
	go func() {
		value, err := do(ctx, try)
		<-f.slot
		done <- answer{value, err}
	}()
	select {
	case a := <-done:
		if a.err != nil {
			return zero, opError(op, c, a.err)
		}
		return a.value, nil
	case <-ctx.Done():
		if try.abandon() {
			return zero, opError(op, c, undecided(fmt.Errorf("no answer from %s in time: %w", f.dir, ctx.Err())))
		}
		return zero, opError(op, c, fmt.Errorf("%w: no answer from %s in time: %w", ErrUnknown, f.dir, ctx.Err()))
	}
}

// attempt is the point of no return of one operation: either it goes on to
// place its record, or its caller gave up before, and then it never will.
type attempt struct{ state atomic.Int32 }

const (
	attemptPlaces    = 1
	attemptAbandoned = 2
)

// begin reports whether the operation may place its record.
func (a *attempt) begin() bool {
	return a.state.CompareAndSwap(0, attemptPlaces) || a.state.Load() == attemptPlaces
}

// abandon reports whether nothing was placed, and nothing will be.
func (a *attempt) abandon() bool { return a.state.CompareAndSwap(0, attemptAbandoned) }

// begun reports whether something may have been placed.
func (a *attempt) begun() bool { return a.state.Load() == attemptPlaces }

func opError(op string, c Claim, err error) error {
	var already *OpError
	if errors.As(err, &already) {
		return err
	}
	return &OpError{Op: op, Domain: c.Domain, Generation: c.Generation, Err: err}
}
