package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// leaseRetry is how soon a release is tried again that the lease refused.
	leaseRetry = 5 * time.Millisecond
	// stallLook is how often is looked whether held frames wait for too long.
	stallLook = 100 * time.Millisecond
	// stalledAfter is from when on held frames count as stalled.
	stalledAfter = time.Second
	// gateOpsMax bounds what may be asked of the gate and is not done yet.
	gateOpsMax = 64
)

// heldEpoch is what the guest sent in one epoch and has not been performed.
type heldEpoch struct {
	link    *link
	epoch   ftengine.Epoch
	frames  []netgate.Frame
	cut     time.Time
	failed  bool // its checkpoint did not come about: part of the next epoch
	granted bool // the backup acknowledged it
}

// outputs holds what the guest of a primary tells the network until the backup
// has what it depends on. One goroutine (run) does everything that changes the
// gate, in the order in which it was asked for.
//
//	guest's tap ──▶ open queue ──cut, at the pause of k──▶ epoch k ──grant, Ack k──▶ released, in order
type outputs struct {
	p    *primary
	pins string        // the gate's directory; survives this daemon
	ops  chan func()   // in order; of the keeper
	wake chan struct{} // capacity 1: an epoch was granted
	held chan struct{} // capacity 1: a frame waits for a checkpoint
	done chan struct{} // closed when the keeper ended
	next *heldEpoch    // what AtPause cuts for; of the holder of capMu
	open atomic.Uint64 // the epoch in which inputs arrive now
	to   atomic.Pointer[link]
	lost atomic.Uint64 // inputs that were not sent

	mu      sync.Mutex
	gate    *netgate.Gate // nil: no session yet, or no network interface
	nics    []netgate.NIC
	queue   []*heldEpoch
	opening bool // the gate: what is in its open queue is performed with the rest
	closed  bool // no gate comes into being any more
	sealed  bool
	gone    bool // the guest: what it sent waits for the gate to open
	stalled string
}

func newOutputs(p *primary) *outputs {
	return &outputs{p: p, pins: p.d.pinsOf(p.uuid), ops: make(chan func(), gateOpsMax), wake: make(chan struct{}, 1),
		held: make(chan struct{}, 1), done: make(chan struct{})}
}

// pinsOf is where what the kernel keeps of a domain's gate is found again.
func (d *Daemon) pinsOf(uuid string) string { return filepath.Join(d.cfg.RunDir, "bpf", uuid) }

// run is the keeper. It does what was asked for before it ends.
func (o *outputs) run(ctx context.Context) {
	defer close(o.done)
	look := time.NewTicker(stallLook)
	defer look.Stop()
	for {
		var again <-chan time.Time
		if o.perform() {
			again = time.After(leaseRetry)
		}
		select {
		case f := <-o.ops:
			f()
		case <-o.wake:
		case <-again:
		case <-look.C:
			o.look()
		case <-ctx.Done():
			o.drain()
			return
		}
	}
}

func (o *outputs) drain() {
	for {
		select {
		case f := <-o.ops:
			f()
		default:
			return
		}
	}
}

// ask has the keeper do f.
func (o *outputs) ask(f func()) {
	select {
	case o.ops <- f:
	case <-o.done:
	}
}

// await has the keeper do f and returns its error.
func (o *outputs) await(f func() error) error {
	result := make(chan error, 1)
	o.ask(func() { result <- f() })
	select {
	case err := <-result:
		return err
	case <-o.done:
	}
	select {
	case err := <-result:
		return err
	default:
		return context.Canceled
	}
}

// attach puts a gate before every network interface of the guest, open, unless
// it is there. Frames of an interface that was plugged in since the last time
// pass until then.
func (o *outputs) attach(liveXML string) error {
	nics, err := nicsOf(liveXML)
	if err != nil {
		return err
	}
	return o.await(func() error { return o.reattach(nics) })
}

// nicsOf returns the interfaces of a running domain as its gate knows them:
// numbered in the order of the XML, which is the same on both hosts.
func nicsOf(liveXML string) ([]netgate.NIC, error) {
	found, err := virt.NICs(liveXML)
	var nics []netgate.NIC
	for i, n := range found {
		nics = append(nics, netgate.NIC{Index: uint16(i), Dev: n.Dev})
	}
	return nics, err
}

func (o *outputs) reattach(nics []netgate.NIC) error {
	o.mu.Lock()
	gate, same, closed := o.gate, slices.Equal(o.nics, nics), o.closed
	o.mu.Unlock()
	switch {
	case closed:
		return context.Canceled
	case gate != nil && same:
		return nil
	case gate != nil:
		o.pass()
		if err := gate.Close(false); err != nil {
			return err
		}
	}
	o.set(nil, nil)
	if len(nics) == 0 {
		return nil
	}
	cfg := o.p.d.cfg.Output
	opts := netgate.Options{Dir: o.pins, QueueBytesMax: cfg.QueueBytesMax, QueueFramesMax: cfg.QueueFramesMax, Held: o.signal, Log: o.p.log}
	if cfg.LogInputs {
		opts.InputBytesMax, opts.Input = cfg.InputBytesMax, o.logInputs
	}
	gate, err := netgate.Open(nics, opts)
	if err != nil {
		return fmt.Errorf("the guest's output cannot be held: %w", err)
	}
	o.set(gate, nics)
	return nil
}

func (o *outputs) set(g *netgate.Gate, nics []netgate.NIC) {
	o.mu.Lock()
	o.gate, o.nics = g, nics
	o.mu.Unlock()
}

func (o *outputs) current() *netgate.Gate {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gate
}

func (o *outputs) signal() {
	select {
	case o.held <- struct{}{}:
	default:
	}
}

// hold makes the gate hold, for the first checkpoint of l.
func (o *outputs) hold(l *link) error {
	return o.await(func() error {
		// The link ends before its OpenGate can be asked for: behind that
		// nothing may be held, as nobody would open the gate again.
		if err := l.ctx.Err(); err != nil {
			return fmt.Errorf("the connection to the backup is gone: %w", err)
		}
		o.pass() // should anything be left of the session before
		o.to.Store(l)
		if g := o.current(); g != nil {
			return g.Hold()
		}
		return nil
	})
}

// begin says what the next pause cuts; capMu is held. Inputs count for the next
// epoch from here on, not from the pause: one that the guest gets twice does no
// harm, one that it never gets is lost.
func (o *outputs) begin(l *link, epoch ftengine.Epoch) {
	o.next = &heldEpoch{link: l, epoch: epoch}
	o.open.Store(uint64(epoch) + 1)
}

// atPause closes the queue of the epoch that ends. The guest stands still. A
// checkpoint of a session that is over cuts nothing from a gate that opens: nobody
// would come for it before the next session.
func (o *outputs) atPause() {
	h := o.next
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gate == nil || h == nil || o.opening || !o.gate.Holding() {
		return
	}
	select {
	case <-o.held: // what it told of is in this epoch
	default:
	}
	h.frames, h.cut = o.gate.Cut(), time.Now()
	if n := len(o.queue); n > 0 && o.queue[n-1].failed {
		h.frames, h.cut = append(o.queue[n-1].frames, h.frames...), o.queue[n-1].cut
		o.queue = o.queue[:n-1]
	}
	o.queue = append(o.queue, h)
}

// sent is what belongs to the checkpoint of the last begin; capMu is held.
func (o *outputs) sent() []netgate.Frame {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.next.frames
}

// ended says whether the checkpoint of the last begin came about, and returns
// what belongs to it; capMu is held.
func (o *outputs) ended(ok bool) []netgate.Frame {
	h := o.next
	o.next = nil
	o.mu.Lock()
	defer o.mu.Unlock()
	if h.failed = !ok; h.failed && len(h.frames) > 0 {
		o.signal() // they still wait for a checkpoint
	}
	return h.frames
}

// grant lets what was sent up to epoch go; it does not wait.
func (o *outputs) grant(l *link, epoch ftengine.Epoch) {
	o.mu.Lock()
	any := false
	for _, h := range o.queue {
		if h.link == l && h.epoch <= epoch && !h.failed {
			h.granted, any = true, true
		}
	}
	o.mu.Unlock()
	if any {
		select {
		case o.wake <- struct{}{}:
		default:
		}
	}
}

// perform releases what is granted, in order. It returns true if something is
// left that the lease does not allow now.
func (o *outputs) perform() bool {
	var told *heldEpoch
	defer func() {
		if told != nil {
			told.link.send(uint64(told.epoch), &replica.Released{})
		}
	}()
	for {
		o.mu.Lock()
		gate, wait := o.gate, o.sealed || o.gone
		var h *heldEpoch
		if len(o.queue) > 0 && o.queue[0].granted {
			h = o.queue[0]
		}
		o.mu.Unlock()
		if h == nil || gate == nil || wait {
			return false
		}
		gate.Lease(h.link.beat.LeaseUntil())
		var part *netgate.LeaseError
		switch err := gate.Release(h.frames); {
		case errors.As(err, &part):
			gate.Done(h.frames[:part.Out])
			o.mu.Lock()
			h.frames = h.frames[part.Out:]
			o.mu.Unlock()
			return true
		case err != nil:
			if !errors.Is(err, netgate.ErrSealed) {
				o.p.log.Warn("held output could not be released", "epoch", h.epoch, "err", err)
			}
			return false
		}
		o.mu.Lock()
		o.queue = o.queue[1:]
		o.mu.Unlock()
		gate.Done(h.frames)
		told = h
	}
}

// openGate performs what is held and holds nothing any more. It undoes an earlier
// seal, of an earlier daemon's too, but not one that comes before the keeper is
// at it. The machine's goroutine calls it, as it does seal.
func (o *outputs) openGate() {
	o.mu.Lock()
	o.sealed = false
	o.mu.Unlock()
	o.ask(func() {
		o.mu.Lock()
		if o.gate != nil && !o.sealed {
			o.gate.Unseal()
		}
		o.mu.Unlock()
		o.pass()
	})
}

func (o *outputs) pass() {
	o.mu.Lock()
	gate := o.gate
	var held []netgate.Frame
	for _, h := range o.queue {
		held = append(held, h.frames...)
	}
	o.queue, o.opening = nil, true
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.opening = false
		o.mu.Unlock()
	}()
	o.to.Store(nil)
	if gate == nil {
		// What an earlier daemon held is gone with it.
		if err := netgate.Remove(o.pins); err != nil {
			o.p.log.Error("the gate of an earlier daemon cannot be opened", "err", err)
			o.p.setError(err)
		}
		return
	}
	if !gate.Holding() && len(held) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.p.d.cfg.Output.OpenWithin)
	defer cancel()
	if err := gate.Pass(ctx, held); err != nil {
		o.p.log.Error("the gate was opened, but not all that was held could be performed", "err", err)
		o.p.setError(err)
		return
	}
	o.p.log.Info("the gate is open", "performed", len(held))
}

// seal makes sure that nothing that the guest sent leaves any more.
func (o *outputs) seal() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sealed = true
	if o.gate != nil {
		o.gate.Seal()
	}
}

// guestGone has what is held wait until nobody can go on as this guest any more:
// its tap, at which the lease is looked at, is gone.
func (o *outputs) guestGone() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gone = true
	if o.gate != nil {
		o.gate.GuestGone()
	}
}

// close ends the keeper's work. A gate that holds stays shut if keep is set:
// who comes after us decides. The keeper must have ended.
func (o *outputs) close(keep bool) {
	o.mu.Lock()
	gate := o.gate
	o.gate, o.nics, o.closed = nil, nil, true
	o.mu.Unlock()
	var err error
	if gate != nil {
		err = gate.Close(keep)
	} else if !keep {
		err = netgate.Remove(o.pins)
	}
	if err != nil {
		o.p.log.Error("the gate does not close cleanly", "err", err)
	}
}

// logInputs sends the backup what arrived for the guest. It runs on the
// gate's own goroutine, which reads no more meanwhile: inputs are worth
// nothing in comparison with the epochs.
func (o *outputs) logInputs(fs []netgate.Frame) {
	l := o.to.Load()
	if l == nil {
		o.lost.Add(uint64(len(fs)))
		return
	}
	st := replica.Stamp{Generation: o.p.generation(), Epoch: o.open.Load()}
	for rest := packetsOf(fs); len(rest) > 0; {
		var now []replica.Packet
		now, rest = replica.Batch(replica.TypeInput, rest)
		if err := l.s.Control.Send(l.ctx, st, &replica.Input{Packets: now}); err != nil {
			l.fail(fmt.Errorf("inputs: %w", err))
			return
		}
	}
}

// waitPace returns when the next epoch may end: not before earliest, and then
// as soon as a frame is held, or at idle.
func (o *outputs) waitPace(ctx context.Context, earliest, idle time.Duration) {
	afterOrDone(ctx, earliest)
	if idle <= earliest {
		return
	}
	t := time.NewTimer(idle - earliest)
	defer t.Stop()
	select {
	case <-o.held:
		o.signal() // until it is cut
	case <-t.C:
	case <-ctx.Done():
	}
}
