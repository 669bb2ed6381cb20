package netgate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// port is the gate before one interface.
type port struct {
	g       *Gate
	nic     NIC
	ifindex int  // of the guest's tap
	master  int  // the bridge that it is a port of, or 0
	taken   bool // over from an earlier daemon
	pinned  bool // by us

	state *state
	links []link.Link // gate first
	tap   *tap
	sock  *socket

	mu   sync.Mutex // of reading the tap
	slab slab
}

// openPort puts the gate before an interface, or takes over the one that is
// there. On an error nothing new is left; what was there stays.
func (g *Gate) openPort(nic NIC, nl *netlink.Handle) (p *port, err error) {
	dev, err := nl.LinkByName(nic.Dev)
	if err != nil {
		return nil, err
	}
	if kind := dev.Type(); kind != "tuntap" && kind != "tun" {
		// What the guest of a macvtap sends never passes its ingress.
		return nil, &UnsupportedError{"holding the output of " + nic.Dev, "give the guest a tap on a bridge", fmt.Errorf("it is a %s, not a tap", kind)}
	}
	made := &port{g: g, nic: nic, ifindex: dev.Attrs().Index, master: dev.Attrs().MasterIndex}
	p = made
	defer func() {
		if err != nil {
			made.close(!made.pinned)
		}
	}()
	if p.tap, err = openTap(nl, g.o.Log); err != nil {
		return nil, err
	}
	if p.sock, err = openSocket(p); err != nil {
		return nil, err
	}
	if g.o.Dir != "" {
		if err := p.takeOver(); err != nil {
			return nil, err
		}
	}
	if !p.taken {
		if p.state, err = newState(); err != nil {
			return nil, unsupported("making a map", err)
		}
		p.state.word(wordGuest).Store(uint64(p.ifindex))
		if g.o.Mute {
			p.state.word(wordMuted).Store(1)
		}
	}
	if err := p.attach(); err != nil {
		return nil, err
	}
	// The last step: from now on what the gate holds comes to us.
	p.state.word(wordCapture).Store(uint64(p.tap.ifindex))
	return p, nil
}

// takeOver looks for what an earlier daemon pinned, and removes it if it is not
// of this very interface: the guest was started again, or its tap was.
func (p *port) takeOver() error {
	dir := p.g.o.Dir
	s, l, err := loadPins(dir, p.nic, p.ifindex)
	switch {
	case err == nil:
		p.taken, p.state, p.links = true, s, []link.Link{l}
		p.g.o.Log.Info("the gate of an earlier daemon is taken over", "dev", p.nic.Dev, "mode", s.mode())
		return nil
	case errors.Is(err, errStale):
		p.g.o.Log.Info("the gate of an earlier daemon is removed", "dev", p.nic.Dev, "because", err)
	case !errors.Is(err, fs.ErrNotExist):
		return err // it may hold: to remove it would be to open it
	}
	return errors.Join(unpin(pinPath(dir, p.nic.Index, pinLink)), unpin(pinPath(dir, p.nic.Index, pinMap)))
}

// attach puts the programs in their places: the gate last, because frames are
// redirected from that moment on.
func (p *port) attach() error {
	progs, err := loadPrograms(p.state)
	if err != nil {
		return unsupported("loading eBPF programs", err)
	}
	defer progs.close() // the links keep them
	release, err := attachTCX(p.tap.ifindex, progs.release, ebpf.AttachTCXIngress)
	if err != nil {
		return err
	}
	p.links = append(p.links, release)
	stray, err := attachTCX(p.tap.ifindex, progs.stray, ebpf.AttachTCXEgress)
	if err != nil {
		return err
	}
	p.links = append(p.links, stray)
	if p.g.o.Mute {
		mute, err := attachTCX(p.ifindex, progs.mute, ebpf.AttachTCXEgress)
		if err != nil {
			return err
		}
		p.links = append(p.links, mute)
	}
	if p.taken {
		// The gate's program becomes ours in one step, in case this build's is
		// better; it goes on with the same map.
		return p.links[0].Update(progs.gate)
	}
	gates, err := linksOn(p.ifindex)
	if err != nil {
		return err
	}
	if len(gates) > 0 {
		return ErrBusy // two would catch each other's released frames for ever
	}
	gate, err := attachTCX(p.ifindex, progs.gate, ebpf.AttachTCXIngress)
	if err != nil {
		return err
	}
	p.links = append([]link.Link{gate}, p.links...)
	return p.pin()
}

func (p *port) pin() error {
	dir := p.g.o.Dir
	if dir == "" {
		return nil
	}
	p.pinned = true
	// The link last: a map without a link is removed by whoever comes next.
	if err := p.state.m.Pin(pinPath(dir, p.nic.Index, pinMap)); err != nil {
		return err
	}
	return p.links[0].Pin(pinPath(dir, p.nic.Index, pinLink))
}

func attachTCX(ifindex int, prog *ebpf.Program, where ebpf.AttachType) (link.Link, error) {
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: where, Anchor: link.Head()})
	if err != nil {
		return nil, unsupported("attaching an eBPF program", err)
	}
	return l, nil
}

// unsupported makes an UnsupportedError of what kernels before 6.6, kernels
// without BPF and daemons without rights say.
func unsupported(what string, err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return &UnsupportedError{what, "needs Linux >= 6.6 with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS, CAP_BPF and CAP_NET_ADMIN", err}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// close lets go of everything. With keep, pins stay.
func (p *port) close(keep bool) error {
	var errs []error
	if dir := p.g.o.Dir; dir != "" && !keep {
		errs = append(errs, unpin(pinPath(dir, p.nic.Index, pinLink)), unpin(pinPath(dir, p.nic.Index, pinMap)))
	}
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	if p.sock != nil {
		p.sock.close()
	}
	if p.tap != nil {
		if err := p.tap.close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if p.state != nil {
		p.state.close()
	}
	return errors.Join(errs...)
}

// read is the reader's goroutine: what the kernel captures goes into the open
// queue, for as long as that has room.
func (p *port) read() {
	conn, err := p.tap.file.SyscallConn()
	for err == nil {
		end := tapEmpty
		err = conn.Read(func(uintptr) bool {
			for end = p.drain(true); end == tapMore; end = p.drain(true) {
				p.g.slipped()
			}
			p.g.slipped()
			return end != tapEmpty
		})
		if end == tapGone || end == tapFull && !p.g.q.waitRoom() {
			return
		}
	}
}

// drain reads up to readBatch frames.
func (p *port) drain(tell bool) tapRead {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range readBatch {
		if !p.g.q.hasRoom() {
			return tapFull
		}
		n, err := unix.Read(p.tap.fd, p.slab.space(FrameBytesMax + 1)[:FrameBytesMax+1])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return tapEmpty
		case err != nil:
			return tapGone
		case n > FrameBytesMax || n <= VnetHeaderBytes:
			p.g.lost.Add(1)
			p.slab = slab{} // may be read into
			continue
		}
		if p.g.q.add(Frame{NIC: p.nic.Index, Data: p.slab.take(n)}) && tell && !p.g.passing.Load() && p.g.o.Held != nil {
			p.g.o.Held()
		}
	}
	return tapMore
}
