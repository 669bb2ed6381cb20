package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Observation is one tick as the outside world got it.
type Observation struct {
	guestapi.Tick
	Host string // the host whose cable it came through
	At   time.Time
}

// Gap is a silence between two ticks that follow each other, or a step back of
// the counter: after a failover both happen.
type Gap struct {
	Before, After Observation
}

// Silence is the length of the gap.
func (g Gap) Silence() time.Duration { return g.After.At.Sub(g.Before.At) }

// Lost is by how many ticks the guest fell back.
func (g Gap) Lost() uint64 {
	if g.After.Counter > g.Before.Counter {
		return 0
	}
	return g.Before.Counter - g.After.Counter
}

// Observer listens on the client side of the switch and remembers what guests
// tell. It sees which host every tick comes from, so it also sees when two run
// at once. It hears what comes out of a host's cable, also of one that is cut
// from the bridge. Its methods may be called concurrently.
type Observer struct {
	lab    *Lab
	fd     int
	stopFD int
	sink   int // a socket on the observer's port, so that nobody answers "unreachable"
	done   chan struct{}
	note   time.Duration

	mu     sync.Mutex
	count  uint64
	last   Observation
	byHost map[string]Observation
	gaps   []Gap
	spoken speeches
	told   told
	skips  []Gap // before and after ticks that were not heard
	unread uint64
	voices voices
	wake   chan struct{} // closed and replaced at each tick
	err    error
}

// observerBytes is how much the kernel keeps for the observer while it is not
// scheduled.
const observerBytes = 32 << 20

// gapsMax and skipsMax bound how many gaps and skips are kept; the first ones are.
const gapsMax, skipsMax = 1 << 16, 1 << 10

// NewObserver starts an observer that keeps silences of at least note, and
// every step back. Close it before the lab.
func NewObserver(l *Lab, note time.Duration) (*Observer, error) {
	o := &Observer{lab: l, note: note, done: make(chan struct{}), wake: make(chan struct{}),
		byHost: map[string]Observation{}, fd: -1, stopFD: -1, sink: -1}
	err := l.InSwitch(func() (err error) {
		// A packet socket for all protocols sees frames as they come out of each
		// cable; one for IP alone would only see what the bridge hands upwards.
		proto := int(binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff}))
		if o.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto); err != nil {
			return err
		}
		// By force, for the ordinary limit is less: what was held for seconds comes
		// all at once, on every port of the bridge.
		if err = unix.SetsockoptInt(o.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, observerBytes); err != nil {
			return err
		}
		if err = unix.SetsockoptSockFprog(o.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, notReplication()); err != nil {
			return err
		}
		if o.sink, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(o.sink, &unix.SockaddrInet4{Port: ObserverPort})
	})
	if err == nil {
		o.stopFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	}
	if err != nil {
		o.closeFDs()
		return nil, fmt.Errorf("lab: observer: %w", err)
	}
	go o.run()
	return o, nil
}

// notReplication lets all frames through but those between the daemons, which have a
// bridge of their own on the same switch: a guest's whole memory, in a second, is more
// than the observer has room for, and what guests say would be lost among it.
func notReplication() *unix.SockFprog {
	const etherType, source, prefix = 12, 26, 0xffffff00
	a := netip.MustParseAddr(ReplicationA).As4()
	net := binary.BigEndian.Uint32(a[:]) & prefix
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: etherType},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IP, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: source},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: prefix},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: net, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	return &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
}

// Close ends the observer; what it saw can still be asked for.
func (o *Observer) Close() {
	_, _ = unix.Write(o.stopFD, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-o.done
}

func (o *Observer) closeFDs() {
	for _, fd := range []int{o.fd, o.stopFD, o.sink} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (o *Observer) run() {
	defer close(o.done)
	defer o.closeFDs()
	buf := make([]byte, 2048)
	for {
		fds := []unix.PollFd{{Fd: int32(o.fd), Events: unix.POLLIN}, {Fd: int32(o.stopFD), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			o.fail(err)
			return
		}
		if fds[1].Revents != 0 {
			o.fail(ErrClosed)
			return
		}
		n, from, err := unix.Recvfrom(o.fd, buf, 0)
		if err != nil {
			continue // EAGAIN, or a cable that went away (ENETDOWN)
		}
		at := time.Now()
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		host, ok := o.lab.net.portHost(ll.Ifindex)
		if !ok {
			continue // the bridge shows every frame a second time
		}
		t, err := guestapi.ParseTick(udpPayload(buf[:n], ObserverPort))
		if guest, answer := fromGuest(buf[:n]); guest {
			o.mu.Lock()
			o.spoken.add(host, at, answer, err == nil)
			o.mu.Unlock()
		}
		if err == nil {
			o.see(Observation{Tick: t, Host: host, At: at})
		}
	}
}

// udpPayload returns the payload of an Ethernet frame with an unfragmented
// IPv4 UDP datagram to a port, or nil.
func udpPayload(frame []byte, port uint16) []byte {
	const ethernet, udp = 14, 8
	if len(frame) < ethernet+20+udp || frame[ethernet]>>4 != 4 || frame[ethernet+9] != unix.IPPROTO_UDP {
		return nil
	}
	header := int(frame[ethernet]&0xf) * 4
	if binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return nil
	}
	if header < 20 || len(frame) < ethernet+header+udp || binary.BigEndian.Uint16(frame[ethernet+6:])&0x3fff != 0 {
		return nil
	}
	d := frame[ethernet+header:]
	size := int(binary.BigEndian.Uint16(d[4:]))
	if binary.BigEndian.Uint16(d[2:]) != port || size < udp || size > len(d) {
		return nil
	}
	return d[udp:size]
}

func (o *Observer) see(now Observation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count > 0 {
		g := Gap{Before: o.last, After: now}
		if (g.Silence() >= o.note || now.Counter <= o.last.Counter) && len(o.gaps) < gapsMax {
			o.gaps = append(o.gaps, g)
		}
	}
	gone := o.told.gone()
	o.told.add(now.Tick)
	if o.told.gone() > gone && len(o.skips) < skipsMax {
		o.skips = append(o.skips, Gap{Before: o.last, After: now})
	}
	o.voices.add(now)
	o.count++
	o.last = now
	o.byHost[now.Host] = now
	close(o.wake)
	o.wake = make(chan struct{})
}

func (o *Observer) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
	close(o.wake)
	o.wake = make(chan struct{})
}

// Last returns the newest tick, if there was any.
func (o *Observer) Last() (Observation, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last, o.count > 0
}

// LastFrom returns the newest tick that came from a host.
func (o *Observer) LastFrom(host string) (Observation, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	last, ok := o.byHost[host]
	return last, ok
}

// Count is how many ticks arrived.
func (o *Observer) Count() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

// Gaps returns the gaps seen so far, oldest first.
func (o *Observer) Gaps() []Gap {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Gap(nil), o.gaps...)
}

// StepsBack is how many ticks came after a later one of the same boot and were
// not those that had come before: the guest forgot what it had told. A tick may
// be repeated, as any frame may.
func (o *Observer) StepsBack() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.told.stepsBack
}

// Missing is how many ticks the guest has sent that nobody heard, between such
// as were heard. They cross no network that loses frames: somebody held them and
// did not let them go, or the observer was too slow.
func (o *Observer) Missing() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.told.gone()
}

// Skips are the ticks before and after those that Missing counts, oldest first; some
// of what was skipped may have come later.
func (o *Observer) Skips() []Gap {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Gap(nil), o.skips...)
}

// Unread is how many frames came that the observer had no room for, of any kind:
// with some, what is missing may be its own fault.
func (o *Observer) Unread() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if st, err := unix.GetsockoptTpacketStats(o.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		o.unread += uint64(st.Drops) // reading it sets it to 0
	}
	return o.unread
}

// Speeches returns, in order, from which host's cable the guest was heard since
// t. One that began before t and was not over counts. While the guest moves
// once, there are two; more mean that it ran on both hosts at once.
func (o *Observer) Speeches(t time.Time) ([]Speech, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.spoken.since(t)
}

// Split counts what came out of host's cable, since t, after the guest was heard
// from the other host: frames of a copy that should have been silent by then. It
// assumes that the guest moved away from host, once, or not at all.
func (o *Observer) Split(t time.Time, host string) (Split, error) {
	all, err := o.Speeches(t)
	return splitOf(all, host), err
}

// WaitTick waits for a tick that arrives from now on and satisfies ok. ok must
// be quick; when it is slow, ticks in between are not shown to it.
func (o *Observer) WaitTick(ctx context.Context, ok func(Observation) bool) (Observation, error) {
	for {
		o.mu.Lock()
		wake := o.wake
		o.mu.Unlock()
		select {
		case <-ctx.Done():
			return Observation{}, fmt.Errorf("lab: waiting for a tick: %w", ctx.Err())
		case <-wake:
		}
		o.mu.Lock()
		last, err := o.last, o.err
		o.mu.Unlock()
		if err != nil {
			return Observation{}, err
		}
		if ok(last) {
			return last, nil
		}
	}
}

// speechPoll is the pause between two looks at the speeches. Their times do not
// depend on it.
const speechPoll = 2 * time.Millisecond

// WaitAnswer waits until an answer of the acceptance service comes out of a
// host's cable, in a speech that began after t, and returns when it did.
func (o *Observer) WaitAnswer(ctx context.Context, host string, t time.Time) (time.Time, error) {
	for {
		all, err := o.Speeches(t)
		if err != nil {
			return time.Time{}, err
		}
		for _, s := range all {
			if s.Host == host && s.Answers > 0 && !s.First.Before(t) {
				return s.FirstAnswer, nil
			}
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("lab: waiting for an answer from %s: %w", host, ctx.Err())
		case <-time.After(speechPoll):
		}
	}
}
