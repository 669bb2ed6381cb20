package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/lean"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// link is one session with the backup, seen from the primary.
type link struct {
	p      *primary
	s      *replica.Session
	beat   *replica.Monitor
	ctx    context.Context
	cancel context.CancelFunc
	ship   chan shipment // what the data connections have to send, in order

	lent    atomic.Int64             // bytes of pages that were enqueued and are not freed
	paid    chan struct{}            // capacity 1: some of them were
	packing *lean.Packing            // of the shipper
	blocks  atomic.Pointer[[]uint64] // sizes of the guest's RAM blocks; set before the first batch
	shipMu  sync.Mutex
	ships   control.ShipStatus // without what the connections know

	committed atomic.Uint64         // the last epoch that the backup said it applied
	disks     atomic.Pointer[disks] // nil: the guest has none

	mu   sync.Mutex
	dead bool // no event of this link may be posted any more
}

// post hands an event of this link to the machine, unless the link is over:
// then its word counts no more.
func (l *link) post(e ftengine.Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return false
	}
	l.p.post(e)
	return true
}

// end closes the link. The first call posts last, if it is not nil.
func (l *link) end(last ftengine.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return
	}
	l.dead = true
	l.cancel()
	l.s.Close()
	if last != nil {
		l.p.post(last)
	}
}

// fail ends the link for a reason that the machine has to know.
func (l *link) fail(err error) {
	l.mu.Lock()
	dead := l.dead
	l.mu.Unlock()
	if !dead {
		l.p.log.Warn("connection to the backup lost", "err", err)
	}
	l.end(ftengine.SessionDown{How: lossOf(err)})
}

func lossOf(err error) ftengine.Loss {
	if errors.Is(err, replica.ErrPeerSilent) {
		return ftengine.Silent
	}
	return ftengine.Closed
}

// send queues a control message. A failed send ends the link.
func (l *link) send(epoch uint64, m replica.Message) {
	l.p.async(func() {
		st := replica.Stamp{Generation: l.p.generation(), Epoch: epoch}
		if err := l.s.Control.Send(l.ctx, st, m); err != nil {
			l.fail(fmt.Errorf("%s: %w", m.Type(), err))
		}
	})
}

func (p *primary) currentLink() *link {
	p.linkMu.Lock()
	defer p.linkMu.Unlock()
	return p.link
}

func (p *primary) withLink(f func(*link)) {
	if l := p.currentLink(); l != nil {
		f(l)
	}
}

// dropLink ends the link without an event: the machine asked for it.
func (p *primary) dropLink() {
	p.linkMu.Lock()
	l := p.link
	p.link = nil
	p.linkMu.Unlock()
	if l != nil {
		l.end(nil)
	}
}

const (
	dialTimeout    = 3 * time.Second
	dialBackoffMin = 50 * time.Millisecond
	dialBackoffMax = 2 * time.Second
	// fruitlessWaitMin and fruitlessWaitMax bound the pause after sessions that
	// came to nothing.
	fruitlessWaitMin = 500 * time.Millisecond
	fruitlessWaitMax = 8 * time.Second
)

// linked tells whether there is a session that is not over. A wish to connect may
// be older than the session: another one would end it.
func (p *primary) linked() bool {
	l := p.currentLink()
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.dead
}

// connect sees to it that there is a session, unless the runner ends.
func (p *primary) connect() {
	if p.wishes.Add(1) > 1 {
		return // who is at it looks again
	}
	for n, done := int64(1), false; !done; n = p.wishes.Load() {
		p.dialOn()
		done = p.wishes.CompareAndSwap(n, 0)
	}
}

// dialOn dials until a session is agreed on, or there is one.
func (p *primary) dialOn() {
	if p.linked() {
		return
	}
	// A backup that cannot do it, for instance because its disk is full, is
	// not asked again and again to read all of its images.
	if n := p.fruitless.Load(); n > 1 {
		afterOrDone(p.ctx, min(fruitlessWaitMin<<(n-2), fruitlessWaitMax))
	}
	backoff := dialBackoffMin
	for p.ctx.Err() == nil && !p.linked() {
		ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
		s, err := p.dial(ctx)
		cancel()
		if err == nil {
			p.adopt(s)
			return
		}
		var refused *replica.RefusedError
		if errors.As(err, &refused) {
			p.setError(err)
			if refused.Code == replica.CodeGeneration && refused.Generation > p.generation() {
				p.post(ftengine.SessionUp{Generation: ftengine.Generation(refused.Generation), PeerRuns: true})
				return
			}
			if refused.Code == replica.CodePolicy || refused.Code == replica.CodeVersion {
				p.post(ftengine.Unprotect{Reason: refused.Error()})
				return
			}
		} else if p.ctx.Err() == nil {
			p.setError(fmt.Errorf("the backup at %s does not answer: %w", p.peerAddr, err))
		}
		afterOrDone(p.ctx, backoff)
		backoff = min(2*backoff, dialBackoffMax)
	}
}

// adopt makes s the link and reads from it until it ends.
func (p *primary) adopt(s *replica.Session) {
	l := &link{p: p, s: s, ship: make(chan shipment, shipQueueMax), paid: make(chan struct{}, 1), packing: lean.NewPacking(packMode(p.d.cfg))}
	l.ctx, l.cancel = context.WithCancel(p.ctx)
	var err error
	l.beat, err = replica.NewMonitor(s.Control, heartbeat(s.Welcome, func() replica.Stamp { return replica.Stamp{Generation: p.generation()} }, p.peerClock.exchanged))
	if err != nil {
		p.setError(err)
		s.Close()
		return
	}
	p.linkMu.Lock()
	old := p.link
	p.link = l
	p.linkMu.Unlock()
	if old != nil {
		old.end(nil)
	}
	if p.fruitless.Add(1) == 1 {
		p.setError(nil) // else it stays until there is an Ack
	}
	p.mu.Lock()
	p.mark.PeerName = s.Welcome.Host
	p.mu.Unlock()
	p.pacer.newSession(l)
	p.async(func() { l.shipAll() })
	p.async(func() { l.fail(l.beat.Run(l.ctx)) })
	p.async(func() { l.fail(l.read()) })
	l.post(ftengine.SessionUp{Generation: peerGeneration(s.Welcome), PeerRuns: s.Welcome.State == replica.BackupActive})
}

// peerGeneration is what the backup holds for itself; a standby holds nothing.
func peerGeneration(w *replica.Welcome) ftengine.Generation {
	if w.State == replica.BackupActive {
		return ftengine.Generation(w.Generation)
	}
	return 0
}

// read turns what the backup says into events until the connection ends.
func (l *link) read() error {
	for {
		f, err := l.s.Control.Recv(l.ctx)
		if err != nil {
			return err
		}
		if handled, err := l.beat.Observe(f); err != nil {
			return err
		} else if handled {
			continue
		}
		switch m := f.Msg.(type) {
		case *replica.Dropped:
			l.post(ftengine.PeerDropped{})
		case *replica.DiskSums:
			if err := l.disks.Load().sums(m); err != nil {
				return err
			}
		case *replica.Ready:
			if err := l.disks.Load().ready(m); err != nil {
				return err
			}
			l.post(ftengine.StandbyReady{})
		case *replica.Ack:
			l.acked(ftengine.Epoch(f.Epoch))
			// The first epoch goes straight to its place, on the disk too: what
			// a backup has no room for shows with the second.
			if f.Epoch > 1 && l.p.fruitless.Swap(0) > 1 {
				l.p.setError(nil)
			}
			l.post(ftengine.Acked{Epoch: ftengine.Epoch(f.Epoch)})
		case *replica.Rehearsed:
			l.post(ftengine.Rehearsed{OK: m.OK, Reason: m.Reason})
		case *replica.Activated:
			l.p.peerRuns.Store(true)
			l.post(ftengine.PeerActivated{Generation: ftengine.Generation(f.Generation)})
		case *replica.Bye:
			l.post(ftengine.PeerStoodDown{})
		case *replica.Error:
			err := fmt.Errorf("the backup reports: %s (%s)", m.Text, m.Code)
			l.p.setError(err)
			return err
		case *replica.Committed:
			l.committed.Store(max(f.Epoch, l.committed.Load()))
		default:
			return fmt.Errorf("%s is not for a primary: %w", m.Type(), replica.ErrMalformed)
		}
	}
}

func (p *primary) dial(ctx context.Context) (*replica.Session, error) {
	d := replica.Dialer{Transport: p.d.transport(), HandshakeTimeout: dialTimeout}
	gen := p.generation()
	return d.Dial(ctx, p.peerAddr, p.id, gen, replica.Hello{Role: replica.RolePrimary, WantGeneration: gen, Domain: p.domain,
		DomainName: p.name, Host: p.d.cfg.Host, Software: p.d.Version().Version, Streams: uint8(p.d.cfg.Transport.Streams)})
}

// shipped notes that all of epoch k was handed to the kernel.
func (l *link) shipped(k ftengine.Epoch, x shipped, did laneWork) {
	l.shipMu.Lock()
	t := &l.ships
	t.SentBytes += x.bytes
	t.Pages += x.pages + x.same
	t.ZeroPages += x.zero
	t.SamePages += x.same
	if t.Packed = x.packed; t.Packed {
		t.PackRatio = float64(did.bytes) / float64(did.raw)
	}
	l.shipMu.Unlock()
	l.p.pacer.shipped(l, x.at, int(x.bytes), x.sending)
	l.p.stats.shipped(l, k, x)
}

// acked notes that the backup has epoch k, perhaps before its checkpoint returned.
func (l *link) acked(k ftengine.Epoch) {
	now := time.Now()
	began := l.p.stats.pausedAt(l, k)
	if began.IsZero() {
		began = l.p.pausedAt() // it has been paused, or there were nothing to send
	}
	l.p.pacer.acked(l, now, now.Sub(began))
	l.p.stats.acknowledged(l, k, now)
}

// report is how memory travels.
func (l *link) report() *control.ShipStatus {
	l.shipMu.Lock()
	t := l.ships
	l.shipMu.Unlock()
	t.Streams = len(l.s.Streams)
	for _, c := range l.s.Streams {
		st := c.StreamStats()
		t.ZeroCopy = st.Mode
		t.ZeroCopyBytes += st.ZeroCopyBytes
	}
	return &t
}

// packMode is what the configuration, which was checked, says of packing.
func packMode(c config.Config) lean.Mode {
	m, err := lean.ParseMode(c.Transport.Compress)
	if err != nil {
		return lean.Off
	}
	return m
}
