package zcstream

import (
	"bytes"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// veth is two network namespaces with a cable between them.
type veth struct{ near, far *os.File }

const nearIP, farIP = "10.99.0.1/24", "10.99.0.2/24"

// onThread runs f on a thread in the namespace that enter enters. The thread
// ends with f.
func onThread(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func inside(ns *os.File, f func() error) error {
	return onThread(func() error { return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) }, f)
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func newVeth(tb testing.TB) veth {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: makes network namespaces")
	}
	newNamespace := func() *os.File {
		var ns *os.File
		must(tb, onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
			ns, err = os.Open("/proc/thread-self/ns/net")
			return err
		}))
		tb.Cleanup(func() { ns.Close() })
		return ns
	}
	v := veth{newNamespace(), newNamespace()}
	must(tb, inside(v.near, func() error {
		cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"}
		if err := netlink.LinkAdd(cable); err != nil {
			return err
		}
		far, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetNsFd(far, int(v.far.Fd())); err != nil {
			return err
		}
		return address("near", nearIP)
	}))
	must(tb, inside(v.far, func() error { return address("far", farIP) }))
	return v
}

func address(dev, ip string) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(ip)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// connect returns the near and the far end of a TCP connection.
func (v veth) connect(tb testing.TB) (near, far net.Conn) {
	tb.Helper()
	var ln net.Listener
	must(tb, inside(v.far, func() (err error) {
		ip, _, _ := strings.Cut(farIP, "/")
		ln, err = net.Listen("tcp", net.JoinHostPort(ip, "0"))
		return err
	}))
	defer ln.Close()
	must(tb, inside(v.near, func() (err error) {
		d := net.Dialer{Timeout: patience}
		near, err = d.Dial("tcp", ln.Addr().String())
		return err
	}))
	far, err := ln.Accept()
	must(tb, err)
	tb.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// TestVethCopies: a cable between two namespaces copies, as loopback does.
func TestVethCopies(t *testing.T) {
	v := newVeth(t)
	a, b := v.connect(t)
	s, r := NewSenderOptions(a, Options{ReprobeAfter: time.Hour}), NewReceiver(b)
	needZeroCopy(t, s)
	msg := bytes.Repeat([]byte("virt-ft\n"), 1<<17)
	go func() { _ = s.Send(t.Context(), nil, msg) }()
	got := make([]byte, len(msg))
	if _, err := r.ReadFull(t.Context(), got); err != nil || !bytes.Equal(got, msg) {
		t.Fatalf("%v, equal: %t", err, bytes.Equal(got, msg))
	}
	drain(t, s)
	if st := s.Stats(); st.CopiedCompletions != 1 || !strings.HasPrefix(st.Mode, "plain: the kernel copies") {
		t.Errorf("%+v", st)
	}
}

// TestOptionMemoryRunsOut has the kernel itself refuse: in a namespace of its
// own, net.core.optmem_max is so little that few reports fit.
func TestOptionMemoryRunsOut(t *testing.T) {
	v := newVeth(t)
	must(t, inside(v.near, func() error {
		err := os.WriteFile("/proc/sys/net/core/optmem_max", []byte("2000"), 0)
		if os.IsNotExist(err) || os.IsPermission(err) {
			t.Skipf("net.core.optmem_max does not belong to the namespace (before Linux 6.8): %v", err)
		}
		return err
	}))
	a, b := v.connect(t)
	s, r := NewSenderOptions(a, eager()), NewReceiver(b)
	needZeroCopy(t, s)
	msg := make([]byte, 1<<20)
	for i := range msg {
		msg[i] = byte(i * i >> 8)
	}
	const rounds = 32
	dones := make(chan error, 2*rounds)
	go func() {
		for range rounds {
			if err := s.Send(t.Context(), func(err error) { dones <- err }, msg); err != nil {
				t.Error(err)
			}
		}
	}()
	got := make([]byte, len(msg))
	for range rounds {
		if _, err := r.ReadFull(t.Context(), got); err != nil || !bytes.Equal(got, msg) {
			t.Fatalf("%v, equal: %t", err, bytes.Equal(got, msg))
		}
	}
	for range rounds {
		must(t, settled(t, dones))
	}
	drain(t, s)
	if st := s.Stats(); st.NoBuffers == 0 || st.ZeroCopyBytes == 0 || st.Bytes != rounds*uint64(len(msg)) {
		t.Errorf("%+v", st)
	}
}
