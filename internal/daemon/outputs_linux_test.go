package daemon

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/netgate"
)

// A checkpoint may be under way when its session ends and the gate opens. What
// the guest sent until then is to be heard now, whoever of the two comes first,
// and not when the next session begins.
func TestCheckpointWhileTheGateOpens(t *testing.T) {
	const rounds, frames = 20, 100
	guest, world := twoTaps(t)
	root := t.TempDir()
	if err := netgate.MountPins(root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	gate, err := netgate.Open([]netgate.NIC{{Dev: "guest0"}}, netgate.Options{Dir: filepath.Join(root, "guest"), QueueBytesMax: 1 << 24, QueueFramesMax: 1 << 14})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gate.Close(false) })
	p := &primary{}
	p.log = slog.New(slog.DiscardHandler)
	p.d = &Daemon{cfg: config.Default()}
	o := newOutputs(p)
	o.set(gate, nil)

	sent := uint64(0)
	for round := range rounds {
		if err := gate.Hold(); err != nil {
			t.Fatal(err)
		}
		for range frames {
			sent++
			say(t, guest, sent)
		}
		o.begin(nil, 1)
		o.atPause()
		o.ended(true)
		opened := make(chan struct{})
		go func() {
			defer close(opened)
			o.pass()
		}()
		for range frames {
			sent++
			say(t, guest, sent)
			o.begin(nil, 2)
			o.atPause()
			o.ended(true)
		}
		<-opened
		for _, h := range o.queue {
			if len(h.frames) > 0 {
				t.Fatalf("round %d: %d frames wait for a session to come", round, len(h.frames))
			}
		}
		o.queue = nil
	}
	heard := map[uint64]bool{}
	for len(heard) < int(sent) {
		n, err := listen(world)
		if err != nil {
			t.Fatalf("%d of %d frames came out: %v", len(heard), sent, err)
		}
		heard[n] = true
	}
}

// twoTaps makes two taps on a bridge, in a network namespace that ends with the
// test's thread.
func twoTaps(t *testing.T) (guest, world *os.File) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces, taps and eBPF programs")
	}
	runtime.LockOSThread() // never unlocked
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_FS))
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	if err := netgate.Probe(); errors.Is(err, netgate.ErrUnsupported) {
		t.Skip(err)
	}
	must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	bridge, err := netlink.LinkByName("br0")
	must(err)
	must(netlink.LinkSetUp(bridge))
	var taps []*os.File
	for _, name := range []string{"guest0", "world0"} {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		must(err)
		ifr, err := unix.NewIfreq(name)
		must(err)
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		must(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
		must(unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, netgate.VnetHeaderBytes))
		f := os.NewFile(uintptr(fd), name)
		t.Cleanup(func() { f.Close() })
		link, err := netlink.LinkByName(name)
		must(err)
		must(netlink.LinkSetTxQLen(link, 1<<14))
		must(netlink.LinkSetMaster(link, bridge))
		must(netlink.LinkSetUp(link))
		taps = append(taps, f)
	}
	return taps[0], taps[1]
}

const testEther = 0x88b5 // for local experiments: no kernel answers it

func say(t *testing.T, guest *os.File, n uint64) {
	t.Helper()
	b := make([]byte, netgate.VnetHeaderBytes)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1)
	b = binary.BigEndian.AppendUint16(b, testEther)
	if _, err := guest.Write(binary.BigEndian.AppendUint64(b, n)); err != nil {
		t.Fatal(err)
	}
}

// listen returns the next number that was said.
func listen(world *os.File) (uint64, error) {
	buf := make([]byte, 4096)
	if err := world.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return 0, err
	}
	for {
		n, err := world.Read(buf)
		if err != nil {
			return 0, err
		}
		if head := netgate.VnetHeaderBytes + 14; n >= head+8 && binary.BigEndian.Uint16(buf[head-2:]) == testEther {
			return binary.BigEndian.Uint64(buf[head:]), nil
		}
	}
}
