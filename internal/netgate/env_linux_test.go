package netgate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// testEther is a type for local experiments: no kernel answers it.
	testEther = 0x88b5
	patience  = 20 * time.Second
)

// inNamespace gives the test a network and a mount namespace of its own, on a
// thread that ends with it. Subtests run elsewhere and must not be used.
func inNamespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces, taps and eBPF programs")
	}
	runtime.LockOSThread() // never unlocked
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := Probe(); errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// pins makes a bpffs that is gone with the test.
func pins(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	if err := MountPins(root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(root, "guest")
}

// machine is the other end of a tap: a guest, or a host in the world.
type machine struct {
	t    testing.TB
	dev  string
	file *os.File
	more []*os.File // further queues
}

// plug makes a tap on the bridge br0 with a machine behind it. Its queue is
// long: tests look at what gates do, not at what slow readers lose.
func plug(t testing.TB, dev string, queues int) *machine {
	t.Helper()
	m := &machine{t: t, dev: dev}
	for range queues {
		fd := newTap(t, dev, queues > 1)
		m.more = append(m.more, os.NewFile(uintptr(fd), dev))
	}
	m.file, m.more = m.more[0], m.more[1:]
	t.Cleanup(m.unplug)
	link := linkOf(t, dev)
	must(t, netlink.LinkSetTxQLen(link, 50_000))
	must(t, netlink.LinkSetMaster(link, bridge(t)))
	must(t, netlink.LinkSetUp(link))
	return m
}

func (m *machine) unplug() {
	for _, f := range append(m.more, m.file) {
		f.Close()
	}
}

func newTap(t testing.TB, dev string, multi bool) int {
	t.Helper()
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	must(t, err)
	ifr, err := unix.NewIfreq(dev)
	must(t, err)
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	must(t, unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, VnetHeaderBytes))
	must(t, (&tap{fd: fd}).offload())
	return fd
}

func linkOf(t testing.TB, dev string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(dev)
	must(t, err)
	return link
}

func bridge(t testing.TB) netlink.Link {
	t.Helper()
	if link, err := netlink.LinkByName("br0"); err == nil {
		return link
	}
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	must(t, netlink.LinkSetUp(linkOf(t, "br0")))
	return linkOf(t, "br0")
}

func noMaster(t testing.TB, dev string) error { return netlink.LinkSetNoMaster(linkOf(t, dev)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, o Options, machines ...*machine) *Gate {
	t.Helper()
	var nics []NIC
	for i, m := range machines {
		nics = append(nics, NIC{Index: uint16(i), Dev: m.dev})
	}
	g, err := Open(nics, o)
	must(t, err)
	t.Cleanup(func() { must(t, g.Close(false)) })
	return g
}

// boottime is what Lease wants, plus d.
func boottime(t testing.TB, d time.Duration) time.Time {
	t.Helper()
	var ts unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts))
	return time.Unix(ts.Unix()).Add(d)
}

// frame is a numbered broadcast of 12+14+8 bytes or more.
func frame(number uint64, tags ...uint16) []byte {
	b := make([]byte, VnetHeaderBytes, VnetHeaderBytes+64)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1)
	for _, tag := range tags {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_8021Q)
		b = binary.BigEndian.AppendUint16(b, tag)
	}
	b = binary.BigEndian.AppendUint16(b, testEther)
	return binary.BigEndian.AppendUint64(b, number)
}

// number returns what frame numbered, or false for a frame of somebody else.
func number(b []byte) (uint64, bool) {
	i := VnetHeaderBytes + etherAddrsBytes
	for len(b) > i+4 && binary.BigEndian.Uint16(b[i:]) == unix.ETH_P_8021Q {
		i += vlanTagBytes
	}
	if len(b) < i+10 || binary.BigEndian.Uint16(b[i:]) != testEther {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[i+2:]), true
}

func (m *machine) send(numbers ...uint64) {
	m.t.Helper()
	for _, n := range numbers {
		m.write(frame(n))
	}
}

func (m *machine) write(b []byte) {
	m.t.Helper()
	if _, err := m.file.Write(b); err != nil {
		m.t.Fatal(err)
	}
}

// receive returns the next test frame.
func (m *machine) receive() []byte {
	m.t.Helper()
	must(m.t, m.file.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, FrameBytesMax)
	for {
		n, err := m.file.Read(buf)
		if err != nil {
			m.t.Fatalf("%s waits for a frame: %v", m.dev, err)
		}
		if _, ok := number(buf[:n]); ok {
			return bytes.Clone(buf[:n])
		}
	}
}

// expect receives exactly these, in this order.
func (m *machine) expect(numbers ...uint64) {
	m.t.Helper()
	for _, want := range numbers {
		if got, _ := number(m.receive()); got != want {
			m.t.Fatalf("%s got frame %d, want %d", m.dev, got, want)
		}
	}
}

// idle tells whether there is no test frame to receive now.
func (m *machine) idle() bool {
	m.t.Helper()
	conn, err := m.file.SyscallConn()
	must(m.t, err)
	idle, buf := false, make([]byte, FrameBytesMax)
	must(m.t, conn.Read(func(fd uintptr) bool {
		for ours := false; !ours && !idle; {
			n, err := unix.Read(int(fd), buf)
			idle = err == unix.EAGAIN
			_, ours = number(buf[:max(n, 0)])
		}
		return true
	}))
	return idle
}

// expectNothing proves that nothing is on its way to m: what other sends now
// arrives next. A tap's frames are through the bridge when write returns.
func (m *machine) expectNothing(other *machine) {
	m.t.Helper()
	const sentinel = 1 << 60
	other.send(sentinel)
	m.expect(sentinel)
}

func numbers(from, to uint64) []uint64 {
	var ns []uint64
	for n := from; n < to; n++ {
		ns = append(ns, n)
	}
	return ns
}

func checkFrames(t testing.TB, fs []Frame, want ...uint64) {
	t.Helper()
	var got []uint64
	for _, f := range fs {
		n, ok := number(f.Data)
		if !ok {
			t.Errorf("a frame that nobody sent: % x", f.Data)
		}
		got = append(got, n)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("frames %v, want %v", got, want)
	}
}
