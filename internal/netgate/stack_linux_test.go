package netgate

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the guest with a real stack, and of the host on br0.
const (
	guestIP4, hostIP4 = "10.9.0.2", "10.9.0.1"
	guestIP6, hostIP6 = "fd09::2", "fd09::1"
)

// stack is a Linux network stack behind a machine: it has a network namespace
// with a tap of its own, and a pump that carries frames between the two taps,
// as QEMU and a virtio-net driver do, with checksums and segmentation left to
// do.
type stack struct {
	t      testing.TB
	ns     *os.File
	device *os.File
	supers atomic.Uint64 // frames with segmentation left to do, from the guest
}

func boot(t testing.TB, m *machine) *stack {
	t.Helper()
	s := &stack{t: t}
	must(t, onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		s.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}))
	t.Cleanup(func() { s.ns.Close() })
	s.in(func() error {
		s.device = os.NewFile(uintptr(newTap(t, "eth0", false)), "eth0")
		return configure("eth0", guestIP4, guestIP6)
	})
	bridge(t)
	must(t, configure("br0", hostIP4, hostIP6))
	var pumps sync.WaitGroup
	pumps.Go(func() { s.pump(s.device, m.file, &s.supers) })
	pumps.Go(func() { s.pump(m.file, s.device, new(atomic.Uint64)) })
	t.Cleanup(func() {
		s.device.Close()
		m.unplug()
		pumps.Wait()
	})
	return s
}

func (s *stack) pump(from, to *os.File, supers *atomic.Uint64) {
	buf := make([]byte, FrameBytesMax)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return // closed
		}
		if buf[vnetGSOType] != 0 {
			supers.Add(1)
		}
		if _, err := to.Write(buf[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

func configure(dev string, ips ...string) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetTxQLen(link, 10_000); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, ip := range ips {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(24, 32)}}
		if addr.IP.To4() == nil {
			addr.Mask, addr.Flags = net.CIDRMask(64, 128), unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("%s on %s: %w", ip, dev, err)
		}
	}
	return nil
}

func onThread(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		err := enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// in runs f inside the guest.
func (s *stack) in(f func() error) {
	s.t.Helper()
	must(s.t, onThread(func() error { return unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNET) }, f))
}

// connect returns both ends of a TCP connection that the guest made.
func (s *stack) connect(hostIP string) (guest, host net.Conn) {
	s.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(hostIP, "0"))
	must(s.t, err)
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		var err error
		host, err = l.Accept()
		accepted <- err
	}()
	s.in(func() (err error) {
		guest, err = (&net.Dialer{Timeout: patience}).Dial("tcp", l.Addr().String())
		return err
	})
	must(s.t, <-accepted)
	s.t.Cleanup(func() { guest.Close(); host.Close() })
	return guest, host
}

// committer is what a primary does, as fast as it can: each epoch of the guest
// is cut and released. It ends when stop is closed.
func committer(g *Gate, held <-chan struct{}, stop <-chan struct{}) error {
	for {
		select {
		case <-held:
		case <-stop:
			return nil
		}
		fs := g.Cut()
		if err := g.Release(fs); err != nil {
			return err
		}
		g.Done(fs)
	}
}

// committing is a gate that holds, with a committer.
type committing struct {
	*Gate
	end func() // at the end of the test at the latest
}

func commit(t testing.TB, m *machine) *committing {
	t.Helper()
	held, stop, ended := make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)
	g := open(t, Options{Held: func() {
		select {
		case held <- struct{}{}:
		default:
		}
	}}, m)
	g.Lease(boottime(t, time.Hour))
	must(t, g.Hold())
	go func() { ended <- committer(g, held, stop) }()
	end := sync.OnceFunc(func() {
		close(stop)
		must(t, <-ended)
		must(t, g.Pass(context.Background(), nil))
		must(t, g.Close(false))
	})
	t.Cleanup(end)
	return &committing{Gate: g, end: end}
}

// transfer sends n bytes and compares what arrives.
func transfer(from io.Writer, to io.Reader, n int64) error {
	sent, arrived := sha256.New(), sha256.New()
	result := make(chan error, 1)
	go func() {
		block := make([]byte, 1<<16)
		for i := range block {
			block[i] = byte(i * 7)
		}
		var err error
		for left := n; left > 0 && err == nil; left -= int64(len(block)) {
			block = block[:min(left, int64(len(block)))]
			sent.Write(block)
			_, err = from.Write(block)
		}
		result <- err
	}()
	if _, err := io.CopyN(arrived, to, n); err != nil {
		return err
	}
	if err := <-result; err != nil {
		return err
	}
	if string(sent.Sum(nil)) != string(arrived.Sum(nil)) {
		return errors.New("other bytes arrived than were sent")
	}
	return nil
}

// TestTCP: a real stack sends through a holding gate, IPv4 and IPv6, with
// checksums and segmentation left to do, both ways.
func TestTCP(t *testing.T) {
	inNamespace(t)
	m := plug(t, "g0", 1)
	s := boot(t, m)
	g := commit(t, m)
	for _, ip := range []string{hostIP4, hostIP6} {
		guest, host := s.connect(ip)
		deadline := time.Now().Add(patience)
		must(t, guest.SetDeadline(deadline))
		must(t, host.SetDeadline(deadline))
		before := s.supers.Load()
		must(t, transfer(guest, host, 20<<20))
		if s.supers.Load() == before {
			t.Error("the guest never left segmentation to do: this proves less than it should")
		}
		must(t, transfer(host, guest, 5<<20))
	}
	if st := g.Stats(); st.Lost != 0 || st.DroppedLease != 0 || st.Released == 0 {
		t.Errorf("%+v", st)
	}
	if n := checksumErrors(t); n != 0 {
		t.Errorf("%d checksum errors", n)
	}
}

// checksumErrors returns how many TCP segments the host's stack found broken.
func checksumErrors(t testing.TB) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/snmp")
	must(t, err)
	var n uint64
	for _, name := range []string{"InCsumErrors", "InErrs"} {
		n += snmp(string(b), "Tcp:", name)
	}
	return n
}

// snmp reads one number of the table that /proc/net/snmp is.
func snmp(table, row, column string) uint64 {
	var names []string
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != row {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		if i := slices.Index(names, column); i > 0 && i < len(fields) {
			n, _ := strconv.ParseUint(fields[i], 10, 64)
			return n
		}
	}
	return 0
}
