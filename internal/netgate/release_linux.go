package netgate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spinsMax is how often is looked at once whether a frame came out. Nearly
	// always it has before write returns.
	spinsMax = 200
	// napNs is how long we sleep then: the kernel's softirq thread needs the CPU.
	napNs = 20_000
	// settleMax bounds how long one call waits, in sum, for frames that do not
	// come out: those of an interface that is down never do.
	settleMax = 100 * time.Millisecond
	// sendWait bounds waiting for room to write a frame, in ms.
	sendWait = 100
)

// Lease extends the lease to an instant of CLOCK_BOOTTIME (as time since 1970):
// the kernel lets held frames leave strictly before. An earlier instant than
// the last is ignored: only time and Seal end a lease.
func (g *Gate) Lease(until time.Time) {
	end, err := g.use()
	if err != nil || until.Unix() <= 0 {
		return
	}
	defer end()
	g.leaseMu.Lock()
	defer g.leaseMu.Unlock()
	ns := uint64(until.UnixNano())
	if g.sealed.Load() || ns <= g.leaseNs {
		return
	}
	g.leaseNs = ns
	if !g.leaseFree {
		g.storeLease(ns)
	}
}

func (g *Gate) storeLease(ns uint64) {
	for _, p := range g.ports {
		p.state.word(wordLease).Store(ns)
	}
}

// leaseHolds is asked before each write, so that a frame which is to stay is not
// tried; the kernel asks again.
func (g *Gate) leaseHolds(p *port) bool {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return false // Linux >= 2.6.39 has it
	}
	return uint64(now.Nano()) < p.state.word(wordLease).Load()
}

// Seal makes sure that nothing leaves any more, whatever the lease or mode:
// when it returns the last frame has left. It outlives this daemon; only Unseal,
// Close(false) or Remove ends it.
func (g *Gate) Seal() {
	end, err := g.use()
	if err != nil {
		return
	}
	defer end()
	g.leaseMu.Lock()
	g.sealed.Store(true)
	g.leaseNs, g.leaseFree = 0, false
	g.storeLease(0)
	g.leaseMu.Unlock()
	g.passing.Store(false)
	g.setMode(Sealed)
	// Who performs frames looks before each; the one on its way is dropped by
	// the kernel, or has left when we get the lock.
	g.out.Lock()
	g.setMode(Sealed) // Pass or Hold may have been about to
	g.out.Unlock()
	for _, p := range g.ports {
		p.sock.listen(false)
	}
}

// Unseal makes a sealed gate one that holds, without a lease: what was held is held
// again. The caller knows that nobody else goes on as this guest.
func (g *Gate) Unseal() {
	end, err := g.use()
	if err != nil {
		return
	}
	defer end()
	g.out.Lock()
	defer g.out.Unlock()
	if !g.sealed.Load() {
		return
	}
	g.setMode(Holding)
	g.sealed.Store(false)
}

// Release performs frames in order: each enters the guest's tap as if the guest
// had just sent it. It returns when all have left. A LeaseError says that
// the lease was over before; the same frames may be given again, which repeats
// those that had left, or those behind LeaseError.Out. Other errors match
// ErrSealed or ErrClosed. A frame that gets lost because an interface is down or
// gone is no error, as for a guest without a gate.
func (g *Gate) Release(fs []Frame) error {
	end, err := g.use()
	if err != nil {
		return wrap("release", "", err)
	}
	defer end()
	g.out.Lock()
	defer g.out.Unlock()
	_, err = g.perform(context.Background(), fs)
	return wrap("release", "", err)
}

// perform returns how many frames it dealt with; out is held.
func (g *Gate) perform(ctx context.Context, fs []Frame) (int, error) {
	patience := settleMax
	for i, f := range fs {
		switch {
		case g.sealed.Load():
			return i, ErrSealed
		case g.closing.Load():
			return i, ErrClosed
		case ctx.Err() != nil:
			return i, ctx.Err()
		}
		p := g.port(f.NIC)
		if p == nil {
			g.lost.Add(1)
			continue
		}
		if !g.leaseHolds(p) {
			return i, g.refused(i)
		}
		if g.guestGone.Load() {
			if !p.sendAtBridge(f.Data) {
				g.lost.Add(1)
			}
			continue
		}
		refused := p.state.word(wordDroppedLease).Load()
		if !p.send(f.Data, &patience) {
			g.lost.Add(1)
		}
		if p.state.word(wordDroppedLease).Load() != refused || g.sealed.Load() {
			return i, g.refused(i)
		}
	}
	return len(fs), nil
}

// GuestGone says that the guest's QEMU has ended, and its taps with it. What it had
// sent is performed at the bridges from now on that the taps were ports of, without
// what tc did at the taps; without a bridge it is lost. The kernel does not look at
// the lease once more there: only Pass is to follow, or Close.
func (g *Gate) GuestGone() { g.guestGone.Store(true) }

// sendAtBridge sends a frame as if it had come from a port that is gone.
func (p *port) sendAtBridge(data []byte) bool {
	if p.master == 0 {
		return false
	}
	until := time.Now().Add(settleMax)
	err := p.sock.sendTo(p.master, data, until)
	if errors.Is(err, unix.ENETDOWN) { // what the tap's end left in the socket
		err = p.sock.sendTo(p.master, data, until)
	}
	return err == nil
}

// refused is why frame i may not leave.
func (g *Gate) refused(i int) error {
	if g.sealed.Load() {
		return ErrSealed
	}
	return &LeaseError{Out: i}
}

func (g *Gate) port(index uint16) *port {
	for _, p := range g.ports {
		if p.nic.Index == index {
			return p
		}
	}
	return nil
}

// send writes one frame to the capture tap and waits until it is known what
// became of it. So frames stay in order whatever CPU we run on, and the kernel's
// backlog, which is short, never has more than one of them. It returns false if
// that is not known in time, or if the kernel takes no such frame.
func (p *port) send(data []byte, patience *time.Duration) bool {
	before := p.state.settled()
	for {
		_, err := unix.Write(p.tap.fd, data)
		if err == nil {
			break
		}
		if err == unix.EAGAIN {
			fds := []unix.PollFd{{Fd: int32(p.tap.fd), Events: unix.POLLOUT}}
			if n, perr := unix.Poll(fds, sendWait); n == 1 || perr == unix.EINTR {
				continue
			}
		}
		if err != unix.EINTR {
			return false
		}
	}
	for range spinsMax {
		if p.state.settled() != before {
			return true
		}
	}
	start := time.Now()
	nap := unix.Timespec{Nsec: napNs}
	for p.state.settled() == before {
		if time.Since(start) >= *patience {
			*patience = 0
			return false
		}
		_ = unix.Nanosleep(&nap, nil) // woken early, it looks early
	}
	*patience -= min(*patience, time.Since(start))
	return true
}

// Pass opens the gate: it performs held, frames that were cut and not released,
// then the open queue, then lets frames go their way. No lease is needed: the
// caller knows that nobody else can go on as this guest. When ctx ends, what
// has not been performed is dropped and the gate opens anyway; the error says
// so. It matches ErrSealed if the gate is sealed, and then nothing left.
//
// On a gate that passes it performs held, which is how a backup performs what
// the primary did not.
func (g *Gate) Pass(ctx context.Context, held []Frame) error {
	end, err := g.use()
	if err != nil {
		return wrap("pass", "", err)
	}
	defer end()
	g.out.Lock()
	defer g.out.Unlock()
	if err := g.freeLease(); err != nil {
		return wrap("pass", "", err)
	}
	done, failed := g.perform(ctx, held)
	dropped := len(held) - done
	g.q.forget()
	// The guest goes on sending, so the end of the queue is reached in rounds.
	// What it sends while we perform the last one is the next.
	for failed == nil {
		fs := g.collect()
		if len(fs) == 0 {
			break
		}
		done, failed = g.perform(ctx, fs)
		dropped += len(fs) - done
	}
	if errors.Is(failed, ErrSealed) || errors.Is(failed, ErrClosed) {
		return wrap("pass", "", failed)
	}
	if failed != nil {
		dropped += len(g.collect())
	}
	for _, p := range g.ports {
		p.sock.listen(false)
	}
	g.setMode(Passing)
	g.passing.Store(true)
	if g.sealed.Load() { // while we were at it
		g.setMode(Sealed)
		return wrap("pass", "", ErrSealed)
	}
	// What the kernel sent our way before it saw the new mode. What comes even
	// later the readers perform.
	_, _ = g.perform(context.Background(), g.collect())
	if failed != nil {
		return wrap("pass", "", fmt.Errorf("open, but %d held frames were dropped: %w", dropped, failed))
	}
	return nil
}

func (g *Gate) freeLease() error {
	g.leaseMu.Lock()
	defer g.leaseMu.Unlock()
	if g.sealed.Load() {
		return ErrSealed
	}
	g.leaseFree = true
	g.storeLease(leaseForever)
	return nil
}

// collect takes what is in the capture taps and in the open queue.
func (g *Gate) collect() []Frame {
	for _, p := range g.ports {
		for p.drain(false) == tapMore {
		}
	}
	return g.q.take()
}

// slipped performs what a reader found after the gate opened.
func (g *Gate) slipped() {
	if !g.passing.Load() || g.q.openEmpty() {
		return
	}
	g.out.Lock()
	defer g.out.Unlock()
	if g.passing.Load() {
		_, _ = g.perform(context.Background(), g.q.take())
	}
}
