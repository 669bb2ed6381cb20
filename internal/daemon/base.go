package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// eventsMax bounds the queue of events that a machine has not seen yet.
const eventsMax = 1024

// base is what the runners of both roles share: one machine, its queue of
// events, and the goroutines that work for it.
type base struct {
	d    *Daemon
	log  *slog.Logger
	name string // of the domain
	uuid string
	arb  arbiter.Arbiter

	ctx    context.Context // ends when the runner is to stop
	cancel context.CancelFunc
	wg     sync.WaitGroup
	owed   atomic.Int64  // rights that are to be handed back, and are not yet
	asked  chan struct{} // closed when the arbiter was last asked for something; the machine's goroutine owns it
	events chan ftengine.Event
	done   chan struct{} // closed when the machine ended and all goroutines did

	putMu sync.Mutex // held while the marker is written; taken before mu

	mu     sync.Mutex
	mark   marker.Marker
	status control.Status
	reason string
	subs   map[chan struct{}]struct{} // told of every change of status

	operator atomic.Pointer[operatorAsk] // a person's wish that is not answered; the latest
}

// operatorAsk is a person's wish on its way to the machine.
type operatorAsk struct {
	what  ftengine.Event
	reply chan error
}

func (b *base) init(ctx context.Context, d *Daemon, m marker.Marker, arb arbiter.Arbiter) {
	b.d, b.name, b.uuid, b.arb, b.mark = d, m.Domain, m.UUID, arb, m
	b.log = d.log.With("domain", m.Domain, "role", m.Role)
	b.ctx, b.cancel = context.WithCancel(ctx)
	b.events = make(chan ftengine.Event, eventsMax)
	b.done = make(chan struct{})
	b.subs = map[chan struct{}]struct{}{}
}

// wish hands a person's wish to the machine and waits until it has come true or
// it is clear that it will not.
func (b *base) wish(ctx context.Context, e ftengine.Event) error { return b.wishBy(ctx, e, e) }

// wishBy is wish for what another event may bring about.
func (b *base) wishBy(ctx context.Context, what, e ftengine.Event) error {
	ask := &operatorAsk{what, make(chan error, 1)}
	if !b.operator.CompareAndSwap(nil, ask) {
		return fmt.Errorf("another wish for %s is being seen to", b.name)
	}
	if _, moves := what.(ftengine.HandOver); !moves { // which is answered in any case, perhaps after we have left
		defer b.operator.CompareAndSwap(ask, nil)
	}
	b.post(e)
	select {
	case err := <-ask.reply:
		return err
	case <-b.done:
		select {
		case err := <-ask.reply:
			return err
		default:
			return fmt.Errorf("the protection of %s ended", b.name)
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// answerOperator answers whoever waits.
func (b *base) answerOperator(err error) { b.answer(b.operator.Load(), err) }

// answerActivate answers who decided which copy is to go on.
func (b *base) answerActivate(err error) {
	ask := b.operator.Load()
	if ask == nil {
		return
	}
	if _, ok := ask.what.(ftengine.OperatorActivate); ok {
		b.answer(ask, err)
	}
}

func (b *base) answer(ask *operatorAsk, err error) {
	if ask != nil && b.operator.CompareAndSwap(ask, nil) {
		ask.reply <- err
	}
}

// post hands an event to the machine; it is dropped when the runner stops.
// The machine's own goroutine must not call it: use async there.
func (b *base) post(e ftengine.Event) {
	select {
	case b.events <- e:
	case <-b.ctx.Done():
	}
}

// async runs f on a goroutine that the runner waits for before it ends.
func (b *base) async(f func()) {
	b.wg.Add(1)
	go func() {
		defer b.wg.Done()
		f()
	}()
}

// persist writes the marker; a failure is as loud as we can be, but the
// guest's life goes before our file.
func (b *base) persist(gen ftengine.Generation, phase marker.Phase, reason string) {
	err := b.keep(func(m *marker.Marker) {
		m.Generation, m.Phase = uint64(gen), phase
		if reason != "" {
			m.Reason = reason
		}
	})
	if err != nil {
		b.log.Error("the marker could not be written; a restart of this daemon would not know of this protection", "err", err)
		b.warn("marker not written: " + err.Error())
	}
}

// keep changes the marker and returns when that is on disk.
func (b *base) keep(change func(*marker.Marker)) error {
	b.putMu.Lock()
	defer b.putMu.Unlock()
	b.mu.Lock()
	change(&b.mark)
	m := b.mark
	b.mu.Unlock()
	return b.d.store.Put(m)
}

func (b *base) warn(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range b.status.Warnings {
		if w == text {
			return
		}
	}
	if len(b.status.Warnings) < 16 {
		b.status.Warnings = append(b.status.Warnings, text)
	}
}

// retryAfter posts Retry once.
func (b *base) retryAfter(a ftengine.RetryAfter) {
	b.async(func() {
		afterOrDone(b.ctx, a.Delay)
		b.post(ftengine.Retry{Token: a.Token})
	})
}

// inTurn runs f on a goroutine of its own, after all that was asked of the
// arbiter before: a right that is claimed again must not be handed back by an
// older wish.
func (b *base) inTurn(f func()) {
	before, done := b.asked, make(chan struct{})
	b.asked = done
	b.async(func() {
		defer close(done)
		if before != nil {
			<-before
		}
		f()
	})
}

// claim asks the arbiter and posts the verdict.
func (b *base) claim(a ftengine.Claim) {
	b.inTurn(func() {
		ctx, cancel := context.WithTimeout(b.ctx, askMax(b.arb))
		defer cancel()
		c := b.claimOf(a.Generation)
		switch {
		case a.Because == ftengine.TookBack && !b.mayTakeBack(ctx, c):
			return
		case a.Because == ftengine.ToRevoke:
			b.askToRevoke(ctx, c)
		}
		if a.Because == ftengine.ByOperator || a.Because == ftengine.HandedOver {
			// Both are the word of somebody who may decide.
			if err := grant(ctx, b.arb, c); err != nil {
				b.log.Warn("the grant was not recorded", "err", err)
			}
		}
		verdict, err := b.arb.Claim(ctx, c)
		v := verdictOf(verdict, err)
		b.log.Info("claim", "generation", a.Generation, "because", a.Because, "verdict", v, "err", err)
		b.post(ftengine.ClaimDone{Generation: a.Generation, Verdict: v})
	})
}

// mayTakeBack asks the peer about a guest that it was told to go on with, where an
// arbiter would turn it off to find out. If the claim is not to be made it is answered.
func (b *base) mayTakeBack(ctx context.Context, c arbiter.Claim) bool {
	if !fences(b.arb.Name()) {
		return true
	}
	w, err := b.askAtPeer(ctx)
	switch {
	case err == nil && (w.State == replica.BackupActive || w.Generation >= c.Generation):
		// It runs there, or ran, and ended since.
		b.post(ftengine.ClaimDone{Generation: ftengine.Generation(c.Generation), Verdict: ftengine.Lost})
		b.post(ftengine.SessionUp{Generation: ftengine.Generation(w.Generation), PeerRuns: true})
		return false
	case err == nil && w.State == replica.BackupNone:
		// It let go of the guest: that is its word, and nobody need be turned off.
		if err = grant(ctx, b.arb, c); err == nil {
			return true
		}
	}
	b.log.Warn("whether the peer runs the guest is not known; this copy waits", "err", err)
	b.post(ftengine.ClaimDone{Generation: ftengine.Generation(c.Generation), Verdict: ftengine.Unknown})
	return false
}

// fences tells whether an arbiter of this kind may turn a host off to answer.
func fences(kind string) bool {
	return slices.Contains(strings.Split(kind, config.ArbiterThen), config.ArbiterFence)
}

func (b *base) askAtPeer(ctx context.Context) (*replica.Welcome, error) {
	b.mu.Lock()
	peer := b.mark.Peer
	b.mu.Unlock()
	return b.d.askPeer(ctx, peer, b.uuid, b.name)
}

// askToRevoke spares a backup that lives from being turned off, when a protection is
// ended whose session is gone: if it has nothing of the guest that is its word.
func (b *base) askToRevoke(ctx context.Context, c arbiter.Claim) {
	if !fences(b.arb.Name()) {
		return
	}
	w, err := b.askAtPeer(ctx)
	if err == nil && w.State == replica.BackupNone && w.Generation < c.Generation {
		err = grant(ctx, b.arb, c)
	}
	if err != nil {
		b.log.Warn("the backup's host is about to be turned off, as the backup cannot be told that it is needed no more", "err", err)
	}
}

// withdrawRetry is the pause between two tries to hand a right back, and
// withdrawGrace how long who is told to stop goes on trying.
const (
	withdrawRetry = 500 * time.Millisecond
	withdrawGrace = 10 * time.Second
)

// withdraw hands a right back. It tries on until the arbiter answers, or for a while
// after stopped: the other side stays paused meanwhile. A claim asked for later
// waits for it.
func (b *base) withdraw(gen ftengine.Generation, stopped <-chan struct{}) {
	b.owed.Add(1)
	b.inTurn(func() {
		var giveUp <-chan time.Time
		for {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), askMax(b.arb))
			err := b.arb.Withdraw(ctx, b.claimOf(gen))
			cancel()
			if err == nil || errors.Is(err, arbiter.ErrNotHolder) || errors.Is(err, arbiter.ErrRunning) {
				b.log.Info("handed back", "generation", gen, "err", err)
				b.owed.Add(-1)
				return
			}
			b.log.Error("the right to run could not be handed back yet", "generation", gen, "err", err)
			select {
			case <-stopped:
				stopped, giveUp = nil, time.After(withdrawGrace)
			case <-giveUp:
				return
			case <-time.After(withdrawRetry):
			}
		}
	})
}

func (b *base) claimOf(gen ftengine.Generation) arbiter.Claim {
	return arbiter.Claim{Domain: b.uuid, Generation: uint64(gen), Host: b.d.cfg.Host}
}

// granter is an arbiter that leaves decisions to a person.
type granter interface {
	Grant(ctx context.Context, domain string, generation uint64, host string) error
}

// grant gives an arbiter the word of somebody who may decide, if it listens to that.
func grant(ctx context.Context, a arbiter.Arbiter, c arbiter.Claim) error {
	if g, ok := a.(granter); ok {
		return g.Grant(ctx, c.Domain, c.Generation, c.Host)
	}
	return nil
}

// subscribe returns a channel that gets a value after each change of status.
func (b *base) subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	b.mu.Lock()
	b.subs[c] = struct{}{}
	b.mu.Unlock()
	return c, func() {
		b.mu.Lock()
		delete(b.subs, c)
		b.mu.Unlock()
	}
}

func (b *base) changed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.subs {
		select {
		case c <- struct{}{}:
		default: // it has one to come
		}
	}
}

// run feeds the machine until it ends, waits for everything it started, and
// then calls tidy, if not nil.
func (b *base) run(m ftengine.Machine, first []ftengine.Action, do func(ftengine.Action), after, tidy func()) {
	defer close(b.done)
	ftengine.Run(b.ctx, m, first, b.events, func(a ftengine.Action) {
		b.log.Debug("action", "do", fmt.Sprintf("%T%+v", a, a))
		do(a)
	}, after)
	b.cancel()
	b.wg.Wait()
	if tidy != nil {
		tidy()
	}
}

// stop ends the runner without a word to the peer and waits for it.
func (b *base) stop() {
	b.cancel()
	<-b.done
}
