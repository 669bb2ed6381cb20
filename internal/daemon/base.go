package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/control"
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
	asked  chan struct{} // closed when the arbiter was last asked for something; the machine's goroutine owns it
	events chan ftengine.Event
	done   chan struct{} // closed when the machine ended and all goroutines did

	putMu sync.Mutex // held while the marker is written; taken before mu

	mu     sync.Mutex
	mark   marker
	status control.Status
	reason string
	subs   map[chan struct{}]struct{} // told of every change of status

	operator chan operatorAsk
}

// operatorAsk is virt-ft activate on its way to the machine.
type operatorAsk struct {
	force bool
	reply chan error
}

func (b *base) init(ctx context.Context, d *Daemon, m marker, arb arbiter.Arbiter) {
	b.d, b.name, b.uuid, b.arb, b.mark = d, m.Domain, m.UUID, arb, m
	b.log = d.log.With("domain", m.Domain, "role", m.Role)
	b.ctx, b.cancel = context.WithCancel(ctx)
	b.events = make(chan ftengine.Event, eventsMax)
	b.done = make(chan struct{})
	b.subs = map[chan struct{}]struct{}{}
	b.operator = make(chan operatorAsk, 1)
}

// activate is virt-ft activate: it waits until the guest runs or it is clear
// that it will not.
func (b *base) activate(ctx context.Context, force bool) error {
	ask := operatorAsk{force, make(chan error, 1)}
	select {
	case b.operator <- ask:
	default:
		return fmt.Errorf("another activation of %s is under way", b.name)
	}
	b.post(ftengine.OperatorActivate{Force: force})
	select {
	case err := <-ask.reply:
		return err
	case <-b.done:
		return fmt.Errorf("the protection of %s ended", b.name)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *base) answerOperator(err error) {
	select {
	case ask := <-b.operator:
		ask.reply <- err
	default:
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
func (b *base) persist(gen ftengine.Generation, phase, reason string) {
	err := b.keep(func(m *marker) {
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
func (b *base) keep(change func(*marker)) error {
	b.putMu.Lock()
	defer b.putMu.Unlock()
	b.mu.Lock()
	change(&b.mark)
	m := b.mark
	b.mu.Unlock()
	return b.d.store.put(m)
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
		if a.Because == ftengine.ByOperator || a.Because == ftengine.HandedOver {
			// Both are the word of somebody who may decide.
			if g, ok := b.arb.(granter); ok {
				if err := g.Grant(ctx, c.Domain, c.Generation, c.Host); err != nil {
					b.log.Warn("the grant was not recorded", "err", err)
				}
			}
		}
		verdict, err := b.arb.Claim(ctx, c)
		v := verdictOf(verdict, err)
		b.log.Info("claim", "generation", a.Generation, "because", a.Because, "verdict", v, "err", err)
		b.post(ftengine.ClaimDone{Generation: a.Generation, Verdict: v})
	})
}

// withdrawRetry is the pause between two tries to hand a right back, and
// withdrawGrace how long a runner that is told to stop goes on trying.
const (
	withdrawRetry = 500 * time.Millisecond
	withdrawGrace = 10 * time.Second
)

// withdraw hands a right back. It tries on until the arbiter answers: the
// other side stays paused meanwhile. A claim asked for later waits for it.
func (b *base) withdraw(gen ftengine.Generation) {
	b.inTurn(func() {
		var giveUp <-chan time.Time
		stopped := b.ctx.Done()
		for {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), askMax(b.arb))
			err := b.arb.Withdraw(ctx, b.claimOf(gen))
			cancel()
			if err == nil || errors.Is(err, arbiter.ErrNotHolder) || errors.Is(err, arbiter.ErrRunning) {
				b.log.Info("handed back", "generation", gen, "err", err)
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
