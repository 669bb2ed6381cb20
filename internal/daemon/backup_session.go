package daemon

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// statMark is when something last happened; safe for concurrent use.
type statMark struct {
	mu   sync.Mutex
	last time.Time
}

func (s *statMark) now() { s.mu.Lock(); s.last = time.Now(); s.mu.Unlock() }

func (s *statMark) age() (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.last), !s.last.IsZero()
}

// inbound is one session with the primary, seen from the backup.
type inbound struct {
	b       *backup
	s       *replica.Session
	ctx     context.Context
	cancel  context.CancelFunc
	setup   *replica.Setup
	beat    *replica.Monitor
	ready   chan struct{} // closed, by begun, when the standby takes pages
	begun   sync.Once
	staging *staging

	generation uint64       // of the primary, as of Setup
	disks      *backupDisks // nil: the guest has none; of the reader of the data connection
	dropped    atomic.Bool  // what is not acknowledged was forgotten: no epoch of this session can be whole any more
	wg         sync.WaitGroup

	mu   sync.Mutex
	dead bool
}

func (in *inbound) post(e ftengine.Event) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.dead {
		in.b.post(e)
	}
}

// fail ends the session; the machine hears of it once.
func (in *inbound) fail(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.dead {
		return
	}
	in.dead = true
	in.close()
	if in.b.ctx.Err() == nil {
		in.b.log.Warn("connection to the primary lost", "err", err)
	}
	in.b.post(ftengine.SessionDown{How: lossOf(err)})
}

// serve takes over a session that Admit let in. An older one ends first.
func (b *backup) serve(s *replica.Session) {
	in := &inbound{b: b, s: s, ready: make(chan struct{}), staging: newStaging()}
	in.ctx, in.cancel = context.WithCancel(b.ctx)
	var err error
	in.beat, err = replica.NewMonitor(s.Control, heartbeat(s.Welcome, func() replica.Stamp {
		return replica.Stamp{Generation: b.generation()}
	}, b.peerClock.exchanged))
	if err != nil {
		b.log.Error("heartbeats", "err", err)
		s.Close()
		return
	}
	b.sessMu.Lock()
	old := b.sess
	b.sess = in
	b.sessMu.Unlock()
	if b.closed.Load() {
		b.dropSession()
		return
	}
	if old != nil {
		old.fail(fmt.Errorf("the primary began a new session: %w", replica.ErrPeerClosed))
		old.wg.Wait()
	}
	in.spawn(func() { in.fail(in.beat.Run(in.ctx)) })
	in.spawn(func() { in.fail(in.readControl()) })
}

func (in *inbound) spawn(f func()) {
	in.wg.Add(1)
	in.b.async(func() {
		defer in.wg.Done()
		f()
	})
}

// dropSession ends the session without an event: the machine asked for it.
func (b *backup) dropSession() {
	b.sessMu.Lock()
	in := b.sess
	b.sess = nil
	b.sessMu.Unlock()
	if in == nil {
		return
	}
	in.mu.Lock()
	in.dead = true
	in.mu.Unlock()
	in.close()
}

// close ends the connections and notes until when the primary may think that
// it holds its lease: from here on none of its heartbeats is answered.
func (in *inbound) close() {
	in.cancel()
	in.s.Close()
	ends := in.beat.PeerLeaseEnds()
	in.b.leaseEnds.Store(&ends)
}

func (b *backup) current() *inbound {
	b.sessMu.Lock()
	defer b.sessMu.Unlock()
	return b.sess
}

// send sends a control message in order with the other actions. Control
// messages are small: the kernel takes them at once, or the peer is stuck and
// the session's heartbeats end it.
func (b *backup) send(epoch ftengine.Epoch, m replica.Message) {
	in := b.current()
	if in == nil {
		return
	}
	if _, ok := m.(*replica.Ready); ok {
		in.begun.Do(func() { close(in.ready) })
	}
	ctx, cancel := context.WithTimeout(in.ctx, b.d.limits().Detect)
	defer cancel()
	st := replica.Stamp{Generation: uint64(b.m.Generation()), Epoch: uint64(epoch)}
	if err := in.s.Control.Send(ctx, st, m); err != nil {
		b.async(func() { in.fail(err) })
	}
}

func (in *inbound) readControl() error {
	for {
		f, err := in.s.Control.Recv(in.ctx)
		if err != nil {
			return err
		}
		if handled, err := in.beat.Observe(f); err != nil {
			return err
		} else if handled {
			continue
		}
		switch m := f.Msg.(type) {
		case *replica.Setup:
			if in.setup != nil {
				return fmt.Errorf("a second Setup: %w", replica.ErrMalformed)
			}
			if err := in.begin(m, f.Generation); err != nil {
				return err
			}
		case *replica.Input:
			in.b.kept.log(ftengine.Epoch(f.Epoch), m.Packets)
		case *replica.Released:
			in.b.kept.released(ftengine.Epoch(f.Epoch))
			in.post(ftengine.ReleasedTo{Epoch: ftengine.Epoch(f.Epoch)})
		case *replica.GuestDead:
			in.post(ftengine.GuestDead{Reason: m.Reason})
		case *replica.StandDown:
			in.post(ftengine.StandDown{Reason: m.Reason})
		case *replica.Bye:
			return fmt.Errorf("the primary said goodbye: %s: %w", m.Reason, replica.ErrPeerClosed)
		case *replica.Error:
			return fmt.Errorf("the primary reports: %s (%s)", m.Text, m.Code)
		default:
			return fmt.Errorf("%s is not for a backup: %w", m.Type(), replica.ErrMalformed)
		}
	}
}

// begin starts the initial sync that m describes.
func (in *inbound) begin(m *replica.Setup, gen uint64) error {
	arb, err := in.b.d.arbiterFor(in.ctx, m.Arbiter, m.ArbiterIdentity)
	if err != nil {
		_ = in.s.Control.Send(in.ctx, replica.Stamp{Generation: gen}, &replica.Rehearsed{Reason: err.Error()})
		return err
	}
	in.setup, in.generation = m, gen
	b := in.b
	b.mu.Lock()
	b.arb = arb
	b.mark.Arbiter, b.mark.ArbiterID = m.Arbiter, m.ArbiterIdentity
	b.mu.Unlock()
	b.later(func() { b.setup = m })
	in.post(ftengine.SessionUp{Generation: ftengine.Generation(gen)})
	for i, c := range in.s.Streams {
		in.spawn(func() { in.fail(in.readData(i, c)) })
	}
	return nil
}

// connected tells whether the primary is talking to us.
func (b *backup) connected() bool {
	in := b.current()
	if in == nil {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return !in.dead
}
