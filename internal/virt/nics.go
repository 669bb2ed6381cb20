package virt

import (
	"errors"
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// maxNICs bounds the interfaces of a protected guest; PCI has no room for more anyway.
const maxNICs = 64

// ErrNotHeld says that a domain has an interface whose frames do not pass a tap of this host, so that they
// cannot be held until the backup has what they depend on.
var ErrNotHeld = errors.New("output cannot be held")

// NIC is a network interface of a running domain whose other end is a tap of this host.
type NIC struct {
	Dev   string // the tap's name on this host, such as "vnet0"
	MAC   string // of the guest's end, lower case with colons
	Model string // such as "virtio" or "e1000"; empty when the XML names none
	Alias string // QEMU's name of the device, such as "net0"
}

// NICs returns the interfaces in the live XML of a domain. Their order is that of the XML, which is the same
// on both hosts: an interface's place in it is its index for both. The error is ErrNotHeld when one of them
// is no tap: leaving it out would let its frames pass unheld. It is a pure function.
func NICs(liveXML string) ([]NIC, error) {
	d, err := parseDomain(liveXML)
	if err != nil {
		return nil, err
	}
	if d.Devices == nil {
		return nil, nil
	}
	if n := len(d.Devices.Interfaces); n > maxNICs {
		return nil, fmt.Errorf("domain %s has %d interfaces, at most %d", d.Name, n, maxNICs)
	}
	var nics []NIC
	for i := range d.Devices.Interfaces {
		n := &d.Devices.Interfaces[i]
		if !isTap(n.Source) {
			return nil, fmt.Errorf("domain %s, %s: %w", d.Name, interfaceItem(i, n), ErrNotHeld)
		}
		if n.Target == nil || n.Target.Dev == "" {
			return nil, fmt.Errorf("domain %s, %s: no <target dev>: the domain is not running", d.Name, interfaceItem(i, n))
		}
		nic := NIC{Dev: n.Target.Dev}
		if n.MAC != nil {
			nic.MAC = n.MAC.Address
		}
		if n.Model != nil {
			nic.Model = n.Model.Type
		}
		if n.Alias != nil {
			nic.Alias = n.Alias.Name
		}
		nics = append(nics, nic)
	}
	return nics, nil
}

// interfaceType names the kinds of interfaces that have no tap, as the XML does.
func interfaceType(s *libvirtxml.DomainInterfaceSource) string {
	switch {
	case s == nil:
		return "(none)"
	case s.User != nil:
		return "user" // slirp or passt
	case s.Server != nil:
		return "server"
	case s.Client != nil:
		return "client"
	case s.MCast != nil:
		return "mcast"
	case s.UDP != nil:
		return "udp"
	case s.Internal != nil:
		return "internal"
	case s.Null != nil:
		return "null"
	case s.VDS != nil:
		return "vds"
	}
	return "(unknown)" // newer than this program
}

func dashed(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// isTap tells whether libvirt makes a tap for an interface. In live XML a network shows as what it became: a
// network with a bridge of its own stays "network", others are "bridge", "direct" or "hostdev".
func isTap(s *libvirtxml.DomainInterfaceSource) bool {
	return s != nil && (s.Bridge != nil || s.Network != nil || s.Ethernet != nil)
}
