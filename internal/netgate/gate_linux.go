package netgate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Gate stands before all interfaces of one guest. Its methods may be called
// from any goroutine; frames leave in the order of the calls.
type Gate struct {
	o     Options
	ports []*port
	nl    *netlink.Handle // of the namespace the gate was opened in
	q     *queue
	in    *inputLog

	readers sync.WaitGroup
	closing atomic.Bool
	sealed  atomic.Bool
	passing atomic.Bool // what is read is to be performed at once
	// guestGone: there are no taps any more to perform frames at.
	guestGone atomic.Bool
	lost      atomic.Uint64 // see Stats.Lost

	// life is held for reading by every method that uses descriptors or maps,
	// and for writing to close them.
	life   sync.RWMutex
	closed bool

	// out is held by who performs frames or changes the mode, except to Sealed.
	out sync.Mutex

	leaseMu   sync.Mutex
	leaseNs   uint64 // the end of the lease that was proven, CLOCK_BOOTTIME
	leaseFree bool   // no lease is needed now
}

// Open puts a gate before the guest's interfaces, which it looks for in the
// network namespace of the calling thread. If pins of an earlier daemon are in
// o.Dir and of the same interfaces they are taken over in the mode they are in;
// if some hold and others are new, all hold. Errors match ErrUnsupported,
// ErrBusy, or are the kernel's.
func Open(nics []NIC, o Options) (*Gate, error) {
	o = o.withDefaults()
	if err := checkNICs(nics); err != nil {
		return nil, err
	}
	if o.Mute && o.Dir != "" {
		return nil, errors.New("netgate: a gate that is pinned cannot be mute: nobody would let its guest hear again")
	}
	if o.Dir != "" {
		if err := preparePins(o.Dir); err != nil {
			return nil, err
		}
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, wrap("open", "", err)
	}
	g := &Gate{o: o, nl: nl, q: newQueue(o.QueueBytesMax, o.QueueFramesMax), in: newInputLog(o.InputBytesMax)}
	for _, nic := range nics {
		p, err := g.openPort(nic, nl)
		if err != nil {
			g.undo()
			return nil, wrap("open", nic.Dev, err)
		}
		g.ports = append(g.ports, p)
	}
	if o.Dir != "" {
		if err := removeOthers(o.Dir, nics); err != nil {
			g.undo()
			return nil, wrap("open", "", err)
		}
	}
	g.resume()
	for _, p := range g.ports {
		g.readers.Go(p.read)
		if o.InputBytesMax > 0 {
			g.readers.Go(p.sock.read)
		}
	}
	return g, nil
}

func checkNICs(nics []NIC) error {
	if len(nics) == 0 || len(nics) > NICsMax {
		return fmt.Errorf("netgate: %d interfaces, 1 to %d are possible", len(nics), NICsMax)
	}
	index, dev := map[uint16]bool{}, map[string]bool{}
	for _, n := range nics {
		if index[n.Index] || dev[n.Dev] {
			return fmt.Errorf("netgate: interface %d (%s) is named twice", n.Index, n.Dev)
		}
		index[n.Index], dev[n.Dev] = true, true
	}
	return nil
}

// undo closes the ports of an Open that failed: those it made vanish, those it
// took over stay as they are.
func (g *Gate) undo() {
	for _, p := range g.ports {
		p.close(!p.pinned)
	}
	g.nl.Close()
}

// resume finds out in which mode the interfaces are, and makes it that of all.
func (g *Gate) resume() {
	mode, lease := Passing, uint64(leaseForever)
	for _, p := range g.ports {
		mode = max(mode, p.state.mode())
		if p.taken {
			lease = min(lease, p.state.word(wordLease).Load())
		}
	}
	g.passing.Store(mode == Passing)
	g.sealed.Store(mode == Sealed)
	if mode == Passing {
		return // and any lease is set by what ends this
	}
	if lease == leaseForever || mode == Sealed {
		lease = 0 // an opening that was not finished: whoever wants it begins anew
	}
	g.leaseNs = lease
	for _, p := range g.ports {
		p.state.word(wordLease).Store(lease)
		p.state.word(wordMode).Store(uint64(mode))
		p.sock.listen(mode == Holding && g.o.InputBytesMax > 0)
	}
}

func wrap(op, dev string, err error) error {
	switch {
	case err == nil:
		return nil
	case dev == "":
		return fmt.Errorf("netgate: %s: %w", op, err)
	}
	return fmt.Errorf("netgate: %s %s: %w", op, dev, err)
}

// use keeps the gate from being closed until the returned function is called.
func (g *Gate) use() (func(), error) {
	g.life.RLock()
	if g.closed || g.closing.Load() {
		g.life.RUnlock()
		return nil, ErrClosed
	}
	return g.life.RUnlock, nil
}

// mode returns the strictest mode of all interfaces, as the kernel has it.
func (g *Gate) mode() Mode {
	mode := Passing
	for _, p := range g.ports {
		mode = max(mode, p.state.mode())
	}
	return mode
}

func (g *Gate) setMode(m Mode) {
	for _, p := range g.ports {
		p.state.word(wordMode).Store(uint64(m))
	}
}

// Holding tells whether frames are held. A sealed gate does not hold them, nor
// does a closed one.
func (g *Gate) Holding() bool {
	end, err := g.use()
	if err != nil {
		return false
	}
	defer end()
	return g.mode() == Holding
}

// Hold makes the gate hold what the guest sends from now on, in the open queue.
// The lease is the one that Lease last said. It does nothing to a gate that
// holds.
func (g *Gate) Hold() error {
	end, err := g.use()
	if err != nil {
		return wrap("hold", "", err)
	}
	defer end()
	g.out.Lock()
	defer g.out.Unlock()
	if g.sealed.Load() {
		return wrap("hold", "", ErrSealed)
	}
	if g.mode() == Holding {
		return nil
	}
	// The lease first: no frame that is held may see the one of passing.
	g.leaseMu.Lock()
	g.leaseFree = false
	g.storeLease(g.leaseNs)
	g.leaseMu.Unlock()
	g.passing.Store(false)
	g.setMode(Holding)
	g.in.cut()
	if g.o.InputBytesMax > 0 {
		for _, p := range g.ports {
			p.sock.listen(true)
		}
	}
	if g.sealed.Load() { // while we were at it
		g.setMode(Sealed)
	}
	return nil
}

// Unmute lets the guest get what is sent to it from now on.
func (g *Gate) Unmute() {
	end, err := g.use()
	if err != nil {
		return
	}
	defer end()
	for _, p := range g.ports {
		p.state.word(wordMuted).Store(0)
	}
}

// Cut takes everything out of the open queue that the guest sent until now, and
// opens the next. The guest must be paused: a frame that it sends meanwhile may
// be on either side. If the bounds are reached some may come with the next
// cut instead. What Cut returns is held until Done or Pass.
func (g *Gate) Cut() []Frame {
	end, err := g.use()
	if err != nil {
		return nil
	}
	defer end()
	for _, p := range g.ports {
		for p.drain(false) == tapMore {
		}
	}
	g.in.cut()
	return g.q.cut()
}

// Done says that frames that were cut are held no longer: released, or not to
// be. They must be done in the order in which they were cut. Frames that this
// gate did not cut, or that Pass performed, are ignored.
func (g *Gate) Done(fs []Frame) { g.q.done(fs) }

// Stats reads the counters.
func (g *Gate) Stats() Stats {
	end, err := g.use()
	if err != nil {
		return Stats{}
	}
	defer end()
	s := Stats{Mode: g.mode(), Lost: g.lost.Load(), InputsLogged: g.in.logged.Load(), InputsSkipped: g.in.skipped.Load()}
	held := g.q.now()
	s.HeldFrames, s.HeldBytes = held.frames, held.bytes
	if held.frames > 0 {
		s.HeldAge = time.Since(held.since)
	}
	for _, p := range g.ports {
		s.Passed += p.state.word(wordPassed).Load()
		s.Captured += p.state.word(wordCaptured).Load()
		s.Released += p.state.word(wordReleased).Load()
		s.DroppedLease += p.state.word(wordDroppedLease).Load()
		s.DroppedSealed += p.state.word(wordDroppedSealed).Load()
		s.DroppedStray += p.state.word(wordDroppedStray).Load()
		s.InputsSkipped += p.sock.overflow()
		if l, err := g.nl.LinkByIndex(p.tap.ifindex); err == nil && l.Attrs().Statistics != nil {
			s.DroppedFull += l.Attrs().Statistics.TxDropped
		}
	}
	return s
}

// Close ends the gate; it is idempotent. With keep, what is pinned stays as it
// is: a gate that holds drops what the guest sends until another Open, and one
// that passes passes. Without, or if nothing is pinned, the guest's output
// flows. What was held and not performed is lost either way.
func (g *Gate) Close(keep bool) error {
	g.closing.Store(true) // ends what uses the gate
	g.life.Lock()
	defer g.life.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	g.q.stop()
	g.in.stop()
	var errs []error
	if g.o.Dir != "" && !keep {
		for _, p := range g.ports { // before the taps: no frame is to find no way
			errs = append(errs, unpin(pinPath(g.o.Dir, p.nic.Index, pinLink)))
		}
	}
	for _, p := range g.ports {
		errs = append(errs, p.tap.close())
		p.sock.close()
	}
	g.readers.Wait()
	for _, p := range g.ports {
		errs = append(errs, p.close(keep))
	}
	g.nl.Close()
	if g.o.Dir != "" && !keep {
		if err := os.Remove(g.o.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return wrap("close", "", errors.Join(errs...))
}
