package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// network is the switch between the hosts: a namespace with three bridges.
type network struct {
	ns *os.File
	nl *netlink.Handle // works in ns

	mu    sync.Mutex
	ports map[int]string // interface index of a client port -> host name
	cut   map[string]bool
}

// Bridges of the switch. The ports are called r-HOST, c-HOST and a-HOST.
const (
	replBridge    = "replnet"
	clientBridge  = "clients"
	arbiterBridge = "arbnet"
)

// ports of the switch that a host is plugged into.
func ports(host string) [3]struct{ port, bridge, card string } {
	return [3]struct{ port, bridge, card string }{
		{"r-" + host, replBridge, "repl"}, {"c-" + host, clientBridge, "uplink"}, {"a-" + host, arbiterBridge, "arb"},
	}
}

func newNetwork() (*network, error) {
	ns, err := newNetNS()
	if err != nil {
		return nil, err
	}
	n := &network{ns: ns, ports: map[int]string{}, cut: map[string]bool{}}
	err = onThread(enterNet(ns), func() (err error) {
		n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		err = n.build()
	}
	if err != nil {
		n.close()
		return nil, fmt.Errorf("lab: building the switch: %w", err)
	}
	return n, nil
}

func (n *network) build() error {
	bridges := []string{replBridge, clientBridge, arbiterBridge}
	for i, name := range bridges {
		// An address of its own: that of a bridge is its ports' lowest
		// otherwise, and a host that loses power would change it. Guests
		// would send to the old one for as long as their kernels believe in it.
		mac := net.HardwareAddr{0x52, 0x54, 0, 0xf9, 0, byte(i)}
		if err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: mac}}); err != nil {
			return fmt.Errorf("bridge %s: %w", name, err)
		}
	}
	for _, name := range append(bridges, "lo") {
		if err := up(n.nl, name); err != nil {
			return err
		}
	}
	if err := address(n.nl, arbiterBridge, ArbiterAddr); err != nil {
		return err
	}
	return address(n.nl, clientBridge, ClientAddr)
}

func (n *network) close() {
	if n.nl != nil {
		n.nl.Close()
	}
	n.ns.Close()
}

func up(nl *netlink.Handle, name string) error {
	link, err := nl.LinkByName(name)
	if err == nil {
		err = nl.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}

// address gives an interface an address of a /24 network.
func address(nl *netlink.Handle, name, ip string) error {
	link, err := nl.LinkByName(name)
	if err == nil {
		err = nl.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(24, 32)}})
	}
	if err != nil {
		return fmt.Errorf("address %s on %s: %w", ip, name, err)
	}
	return nil
}

// mac is the address of one of a host's network cards. It is the same after a
// power loss, or the other host would send to the old one for half a minute:
// its neighbour table holds what was reachable just now.
func (s side) mac(card string) net.HardwareAddr {
	address := net.HardwareAddr{0x52, 0x54, 0, 0xf8, 0, s.name[len(s.name)-1]}
	switch card {
	case "repl":
		address[4] = 1
	case "arb":
		address[4] = 2
	}
	return address
}

// attach plugs a booted host into the bridges and sets up its side.
func (n *network) attach(h *Host) error {
	pid := h.init.Pid()
	for _, p := range ports(h.Name) {
		if err := n.plug(p.port, p.bridge, p.card, h.side.mac(p.card), pid); err != nil {
			return fmt.Errorf("lab: %s: %w", h.Name, err)
		}
	}
	link, err := n.nl.LinkByName("c-" + h.Name)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	n.mu.Lock()
	n.ports[link.Attrs().Index] = h.Name
	n.mu.Unlock()
	return h.Inside(func() error { return h.hostNetwork() })
}

func (n *network) plug(port, bridge, peer string, mac net.HardwareAddr, pid int) error {
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: peer, PeerNamespace: netlink.NsPid(pid), PeerHardwareAddr: mac,
	}
	if err := n.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("cable %s: %w", port, err)
	}
	if err := n.master(port, bridge); err != nil {
		return err
	}
	return up(n.nl, port)
}

// master puts a port on a bridge, or takes it off with an empty name. A host
// whose cable was cut stays cut when it is powered on again.
func (n *network) master(port, bridge string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[port] {
		return nil
	}
	link, err := n.nl.LinkByName(port)
	if err != nil {
		return fmt.Errorf("port %s: %w", port, err)
	}
	to, err := n.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	if err := n.nl.LinkSetMaster(link, to); err != nil {
		return fmt.Errorf("port %s on %s: %w", port, bridge, err)
	}
	return nil
}

// setCut takes a port off its bridge or puts it back. A port of a host that is
// off is only remembered.
func (n *network) setCut(port, bridge string, cut bool) error {
	n.mu.Lock()
	n.cut[port] = cut
	n.mu.Unlock()
	link, err := n.nl.LinkByName(port)
	if _, gone := err.(netlink.LinkNotFoundError); gone {
		return nil
	}
	if err == nil && cut {
		err = n.nl.LinkSetNoMaster(link)
	} else if err == nil {
		err = n.master(port, bridge)
	}
	if err != nil {
		return fmt.Errorf("lab: port %s: %w", port, err)
	}
	return nil
}

// shape is how fast, in bytes per second, a port sends towards its host, how much
// it sends at once, as the time in the kernel's units that this takes at that
// rate, and how many bytes may wait.
type shape struct {
	rate         uint64
	burst, queue uint32
}

// deaf has room for a single byte: no frame ever fits.
func deaf() *shape { return &shape{rate: 1000, burst: 1 << 20, queue: 1} }

// slowBurst is what a slow link sends at once: more than a frame that the cards
// cut up may have.
const slowBurst = 256 << 10

// slow is a link of that many bytes per second, with buffers for 50 ms.
func slow(rate uint64) *shape {
	return &shape{rate: rate, burst: netlink.Xmittime(rate, slowBurst), queue: uint32(rate/20) + slowBurst}
}

// setShape gives a port a shape; without one all goes through again.
func (n *network) setShape(port string, to *shape) error {
	link, err := n.nl.LinkByName(port)
	if _, gone := err.(netlink.LinkNotFoundError); gone && to == nil {
		return nil // and the shaper went with it
	}
	if err == nil {
		shaper := &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xf7, 0), Parent: netlink.HANDLE_ROOT},
		}
		if to != nil {
			shaper.Rate, shaper.Buffer, shaper.Limit = to.rate, to.burst, to.queue
			err = n.nl.QdiscReplace(shaper)
		} else if err = n.nl.QdiscDel(shaper); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			err = nil // there is none
		}
	}
	if err != nil {
		return fmt.Errorf("lab: port %s: %w", port, err)
	}
	return nil
}

// silence takes a host's cables off the switch without remembering it as cut.
func (n *network) silence(h *Host) {
	for _, p := range ports(h.Name) {
		if link, err := n.nl.LinkByName(p.port); err == nil {
			_ = n.nl.LinkSetNoMaster(link) // a port that was never plugged in is silent too
		}
	}
}

// detach forgets a host that is gone. The kernel removes its cables, but later:
// doing it here lets a PowerOn that follows use the same names.
func (n *network) detach(h *Host) {
	for _, p := range ports(h.Name) {
		if link, err := n.nl.LinkByName(p.port); err == nil {
			_ = n.nl.LinkDel(link) // the kernel may have been faster
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for index, name := range n.ports {
		if name == h.Name {
			delete(n.ports, index)
		}
	}
}

// portHost tells which host is behind a client port of the switch.
func (n *network) portHost(index int) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.ports[index]
	return name, ok
}

// hostNetwork runs on a thread inside the host.
func (h *Host) hostNetwork() error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	defer nl.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("lab: %s: br0: %w", h.Name, err)
	}
	uplink, err := nl.LinkByName("uplink")
	if err == nil {
		err = nl.LinkSetMaster(uplink, bridge)
	}
	if err != nil {
		return fmt.Errorf("lab: %s: uplink: %w", h.Name, err)
	}
	for _, name := range []string{"lo", "br0", "uplink", "repl", "arb"} {
		if err := up(nl, name); err != nil {
			return fmt.Errorf("lab: %s: %w", h.Name, err)
		}
	}
	if err := address(nl, "repl", h.Repl); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	if err := address(nl, "arb", h.side.arb); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	if err := address(nl, "br0", h.side.client); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	return nil
}
