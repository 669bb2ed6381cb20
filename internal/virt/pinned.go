package virt

import "libvirt.org/go/libvirtxml"

// PinsMemory tells whether a domain has disks whose data the kernel moves
// straight between the medium and the guest's memory (O_DIRECT: cache modes
// none and directsync). Such writes into memory bypass the page tables, so that
// dirty tracking may only be armed while none is under way. An XML that cannot
// be read counts as yes, which is the safe answer. It is a pure function.
func PinsMemory(liveXML string) bool {
	d, err := parseDomain(liveXML)
	if err != nil {
		return true
	}
	if d.Devices == nil {
		return false
	}
	for i := range d.Devices.Disks {
		if disk := &d.Devices.Disks[i]; !noImage(disk.Source) && pins(disk.Driver) {
			return true
		}
	}
	return false
}

func pins(d *libvirtxml.DomainDiskDriver) bool {
	return d != nil && (d.Cache == "none" || d.Cache == "directsync")
}
