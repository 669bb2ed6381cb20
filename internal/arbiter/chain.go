package arbiter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Chain asks several arbiters, in order. It is not "the first that answers":
// host A might ask one arbiter while host B asks another, and both would win.
// The rule which makes a combination safe is that every way of winning excludes
// every other way, on either host. So there are these, and no others:
//
//	etcd, manual        file, manual
//	etcd, fence         file, fence         fence, manual
//	etcd, fence, manual                     file, fence, manual
//
// A voter (etcd or file) in front of fence decides who may fence, and cannot
// spare it: whoever runs has turned the other host off, whether the voter said
// "won" or nothing. Were it enough to win the vote, a winner who runs and is
// heard could be turned off by a host that does not see the voter, and what it
// has told the world would be lost. The vote keeps the loser from fencing; so a
// link that breaks costs the loser's host with all its guests, and not both.
//
// Two voters are refused, and a voter behind fence: each is a way to win which
// the other one does not exclude. manual is last, and only ever answers with a
// grant: a person's word that the peer does not run this guest and will not, in
// that generation. It is taken when the others do not decide, never against
// what they decided. ErrOperator is not an answer of a chain: the others may
// decide when they are asked again.
//
// Both hosts must have the same chain: Name and Identity tell.
//
//	voter: lost                           -> lost
//	voter: anything else; fence: won      -> won
//	no fence; voter: won                  -> won
//	no decision; granted to this host     -> won
//	no decision                           -> the error: ask again
//
// A voter is given half of the time that Claim has. A right that was won
// without it is recorded there after Confirm, as soon as it answers while this
// process lives, so that it refuses the peer.
type Chain struct {
	voter  Arbiter // nil if there is none
	fence  *Fence
	manual *Manual

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tells  sync.WaitGroup

	mu   sync.Mutex
	wins map[Claim]win // what this process won and did not hand back
}

const (
	// tellPause is how often the voter is told of a right that was won
	// without it.
	tellPause   = 5 * time.Second
	tellTimeout = 5 * time.Second
)

// win says by whom a right was won. Its zero value stands for "not in this
// process": then nothing is taken for granted.
type win struct {
	voted   bool // the voter says that it is ours
	fenced  bool
	granted bool
	// aside tells that the voter surely has no step of ours.
	aside bool
	told  bool // or it is being told
}

// OpenChain puts arbiters which are open already in order, and refuses a
// combination that is not safe. One alone is returned as it is. Closing a chain
// closes them.
func OpenChain(arbiters ...Arbiter) (Arbiter, error) {
	c := &Chain{wins: map[Claim]win{}}
	for i, a := range arbiters {
		refuse := func(why string) (Arbiter, error) {
			return nil, opError("open", Claim{}, fmt.Errorf("arbiters %s: %s", names(arbiters), why))
		}
		switch a := a.(type) {
		case *Etcd, *File:
			switch {
			case c.voter != nil:
				return refuse("two that vote can let two hosts win: keep one")
			case c.fence != nil:
				return refuse(a.Name() + " behind fence would let a host run that turned nobody off: put it first")
			}
			c.voter = a
		case *Fence:
			if c.fence != nil {
				return refuse("fence is there twice")
			}
			c.fence = a
		case *Manual:
			if i != len(arbiters)-1 {
				return refuse("manual must be the last")
			}
			c.manual = a
		default:
			return refuse(fmt.Sprintf("%T cannot be combined with others", a))
		}
	}
	switch len(arbiters) {
	case 0:
		return nil, opError("open", Claim{}, errors.New("no arbiter"))
	case 1:
		return arbiters[0], nil
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

func names(arbiters []Arbiter) string {
	var all []string
	for _, a := range arbiters {
		all = append(all, a.Name())
	}
	return strings.Join(all, "+")
}

// Check asks the chain's fence agent for the peer's power, as [Fence.Check] does, and
// changes nothing. A chain without one has nothing to ask: on is true.
func (ch *Chain) Check(ctx context.Context) (on bool, err error) {
	if ch.fence == nil {
		return true, nil
	}
	return ch.fence.Check(ctx)
}

func (ch *Chain) members() []Arbiter {
	var all []Arbiter
	if ch.voter != nil {
		all = append(all, ch.voter)
	}
	if ch.fence != nil {
		all = append(all, ch.fence)
	}
	if ch.manual != nil {
		all = append(all, ch.manual)
	}
	return all
}

// Name implements Arbiter: the names in order, like "etcd+fence+manual".
func (ch *Chain) Name() string { return names(ch.members()) }

// Identity is that of the voter, with the chain's name; only the name without a
// voter.
func (ch *Chain) Identity() string {
	if i, ok := ch.voter.(interface{ Identity() string }); ok {
		return ch.Name() + "=" + i.Identity()
	}
	return ch.Name()
}

// Claim implements Arbiter.
func (ch *Chain) Claim(ctx context.Context, c Claim) (Verdict, error) {
	var w win
	var open error // why there is no decision yet
	if ch.voter != nil {
		v, err := ch.vote(ctx, c)
		switch {
		case err == nil && !v.Won:
			return v, nil
		case err == nil && ch.fence == nil:
			ch.note(c, win{voted: true})
			return v, nil
		}
		w.voted, w.aside, open = err == nil, errors.Is(err, ErrUndecided), err
	}
	if ch.fence != nil {
		v, err := ch.fence.Claim(ctx, c)
		switch {
		case err == nil && !v.Won:
			return v, nil
		case err == nil:
			w.fenced = true
			ch.note(c, w)
			return v, nil
		}
		open = both(open, err)
	}
	if ch.manual != nil {
		v, err := ch.manual.Claim(ctx, c)
		switch {
		case err == nil && v.Won:
			w.granted = true
			ch.note(c, w)
			return v, nil
		case err == nil:
			return v, nil
		case !errors.Is(err, ErrOperator):
			open = both(open, err)
		}
	}
	return Verdict{}, open
}

// both is errors.Join on one line.
func both(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

// vote leaves the fence the time to begin.
func (ch *Chain) vote(ctx context.Context, c Claim) (Verdict, error) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	return ch.voter.Claim(ctx, c)
}

// Grant takes the word of the peer or of a person to those that listen to it.
func (ch *Chain) Grant(ctx context.Context, domain string, generation uint64, host string) error {
	var errs []error
	if ch.fence != nil {
		errs = append(errs, ch.fence.Grant(ctx, domain, generation, host))
	}
	if ch.manual != nil {
		errs = append(errs, ch.manual.Grant(ctx, domain, generation, host))
	}
	return errors.Join(errs...)
}

// Confirm implements Arbiter. Those by whom the right was won must record it;
// the voter need not when the peer was turned off, unless it says no. Confirm
// fails with ErrNotHolder when this process did not win the right.
func (ch *Chain) Confirm(ctx context.Context, c Claim) error {
	w := ch.winOf(c)
	if w == (win{}) {
		return opError("confirm", c, fmt.Errorf("%w: claim it first, this process did not", ErrNotHolder))
	}
	untold := ch.voter != nil && !w.voted
	if w.voted {
		err := ch.voter.Confirm(ctx, c)
		if err != nil && (!w.fenced && !w.granted || errors.Is(err, ErrNotHolder)) {
			return err
		}
		untold = err != nil
	}
	if w.fenced {
		if err := ch.fence.Confirm(ctx, c); err != nil {
			return err
		}
	}
	if w.granted {
		if err := ch.manual.Confirm(ctx, c); err != nil {
			return err
		}
	}
	if untold {
		ch.tell(c)
	}
	return nil
}

// tell records at the voter what was won and confirmed without it.
func (ch *Chain) tell(c Claim) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	w := ch.wins[c]
	if w.told || ch.ctx.Err() != nil {
		return
	}
	w.told = true
	ch.wins[c] = w
	ch.tells.Add(1)
	go func() {
		defer ch.tells.Done()
		for {
			ctx, cancel := context.WithTimeout(ch.ctx, tellTimeout)
			v, err := ch.voter.Claim(ctx, c)
			if err == nil && v.Won {
				err = ch.voter.Confirm(ctx, c)
			}
			cancel()
			if err == nil || errors.Is(err, ErrNotHolder) {
				return
			}
			select {
			case <-ch.ctx.Done():
				return
			case <-time.After(tellPause):
			}
		}
	}()
}

// Withdraw implements Arbiter: first what only this host knows, then what the
// peer sees. The voter is left alone only when it surely has no step of ours.
func (ch *Chain) Withdraw(ctx context.Context, c Claim) error {
	if ch.fence != nil {
		if err := ch.fence.Withdraw(ctx, c); err != nil {
			return err
		}
	}
	if ch.manual != nil {
		if err := ch.manual.Withdraw(ctx, c); err != nil {
			return err
		}
	}
	if ch.voter != nil && !ch.winOf(c).aside {
		if err := ch.voter.Withdraw(ctx, c); err != nil {
			return err
		}
	}
	ch.mu.Lock()
	delete(ch.wins, c)
	ch.mu.Unlock()
	return nil
}

// Revoke implements Revoker, by the voter: it alone keeps who lost from claiming again.
func (ch *Chain) Revoke(ctx context.Context, c Claim) error {
	r, ok := ch.voter.(Revoker)
	if !ok {
		return opError("revoke", c, fmt.Errorf("%s keeps no record that could be corrected", ch.Name()))
	}
	return r.Revoke(ctx, c)
}

// Inspect implements Arbiter: the furthest record that any of them has.
func (ch *Chain) Inspect(ctx context.Context, domain string) (Record, error) {
	var best Record
	for _, a := range ch.members() {
		r, err := a.Inspect(ctx, domain)
		if err != nil {
			return Record{}, err
		}
		switch {
		case r.Generation > best.Generation,
			r.Generation == best.Generation && r.Step == StepRunning,
			r.Generation == best.Generation && best.Step == StepWithdrawn:
			best = r
		}
	}
	return best, nil
}

// Close closes the arbiters that have something to close.
func (ch *Chain) Close() error {
	ch.mu.Lock()
	ch.cancel() // nothing is told after this
	ch.mu.Unlock()
	ch.tells.Wait()
	var errs []error
	for _, a := range ch.members() {
		if c, ok := a.(interface{ Close() error }); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

func (ch *Chain) note(c Claim, w win) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	// What an earlier claim may have left at the voter is not aside now.
	if before, ok := ch.wins[c]; ok {
		w.aside = w.aside && before.aside
		w.told = before.told
	}
	ch.wins[c] = w
}

func (ch *Chain) winOf(c Claim) win {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.wins[c]
}
