package netgate

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// captureName is the pattern from which the kernel makes the name of a
	// capture tap that is not taken.
	captureName = "ftc%d"
	tunDevice   = "/dev/net/tun"

	addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
)

// tap is a capture tap. It is gone when its descriptor is closed, by us or by
// the kernel when we die.
type tap struct {
	name    string
	ifindex int
	fd      int // of file, which never closes it under a system call of ours: see Gate.life
	file    *os.File
}

// openTap makes a capture tap in the network namespace of the calling thread,
// set up so that nothing but redirected frames gets into it, and up.
func openTap(nl *netlink.Handle, log *slog.Logger) (*tap, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &UnsupportedError{"opening " + tunDevice, "the tun module is needed, and CAP_NET_ADMIN", err}
	}
	t := &tap{fd: fd}
	if err := t.configure(nl, log); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("capture tap: %w", err)
	}
	// Only now: a poller that gets the descriptor before it is a tap sees an
	// error on it for ever.
	t.file = os.NewFile(uintptr(fd), t.name)
	return t, nil
}

func (t *tap) close() error { return t.file.Close() }

func (t *tap) configure(nl *netlink.Handle, log *slog.Logger) error {
	ifr, err := unix.NewIfreq(captureName)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(t.fd, unix.TUNSETIFF, ifr); err != nil {
		return &UnsupportedError{"making a tap", "CAP_NET_ADMIN is needed", err}
	}
	t.name = ifr.Name()
	if err := unix.IoctlSetPointerInt(t.fd, unix.TUNSETVNETHDRSZ, VnetHeaderBytes); err != nil {
		return fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
	}
	if err := t.offload(); err != nil {
		return err
	}
	link, err := nl.LinkByName(t.name)
	if err != nil {
		return err
	}
	t.ifindex = link.Attrs().Index
	// The programs keep strangers out. This keeps the host from speaking, and
	// from showing addresses that mean nothing.
	path := "/proc/sys/net/ipv6/conf/" + t.name + "/disable_ipv6"
	if err := os.WriteFile(path, []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Debug("IPv6 stays on on a capture tap", "tap", t.name, "err", err)
	}
	if err := nl.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil {
		log.Debug("a capture tap may get an IPv6 address", "tap", t.name, "err", err)
	}
	// Without a qdisc a frame is in the tap when the guest's write returns; with
	// one, another CPU might still be carrying it while Cut looks.
	noqueue := &netlink.GenericQdisc{QdiscType: "noqueue", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: t.ifindex, Parent: netlink.HANDLE_ROOT}}
	for _, step := range [...]struct {
		what string
		do   func() error
	}{
		{"no ARP", func() error { return nl.LinkSetARPOff(link) }},
		{"no multicast", func() error { return nl.LinkSetMulticastOff(link) }},
		{"queue length", func() error { return nl.LinkSetTxQLen(link, captureQueueFrames) }},
		{"no qdisc", func() error { return nl.QdiscReplace(noqueue) }},
		{"up", func() error { return nl.LinkSetUp(link) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %s: %w", t.name, step.what, err)
		}
	}
	return nil
}

// offload tells the kernel that we take frames unsegmented and without
// checksums. What a kernel does not know it does itself before we read.
func (t *tap) offload() error {
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	var err error
	for _, flags := range [...]int{
		tso | unix.TUN_F_UFO | unix.TUN_F_USO4 | unix.TUN_F_USO6, tso | unix.TUN_F_USO4 | unix.TUN_F_USO6, tso | unix.TUN_F_UFO, tso,
	} {
		if err = unix.IoctlSetInt(t.fd, unix.TUNSETOFFLOAD, flags); err == nil {
			return nil
		}
	}
	return fmt.Errorf("TUNSETOFFLOAD: %w", err)
}

// tapRead is how reading a tap ended.
type tapRead int

const (
	tapMore  tapRead = iota // the batch is full
	tapEmpty                // nothing to read now
	tapFull                 // the queue is full
	tapGone                 // the interface was deleted, or the gate closes
)
