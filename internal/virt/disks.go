package virt

import (
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// maxDisks bounds the disks of a protected guest; PCI and SCSI have room for more, the bookkeeping of both
// hosts has not.
const maxDisks = 256

// Disk is a disk or drive of a running domain.
type Disk struct {
	Target string // the guest's name of it for libvirt, such as "vda"
	Bus    string // virtio, scsi, sata, ide, usb, fdc, ...
	Device string // disk, cdrom, floppy, lun
	Type   string // of its source: file, block, network, volume, nvme, vhostuser, vhostvdpa, dir; empty when unknown
	Format string // of its top image, such as "raw" or "qcow2"; empty when the XML names none
	Path   string // file or device on this host; empty for other types, and for an empty drive
	Cache  string // cache mode; empty is QEMU's default, writeback

	ReadOnly  bool // the guest cannot write to it
	Shareable bool
	Transient bool
	Empty     bool // a drive without medium
	Backing   bool // the top image has a backing file
	Unmap     bool // discard='unmap': a copy of it begins with zeroing the destination, see StartCopy
}

// Replicated tells whether the guest can change the disk's contents, which then must follow it to the backup.
func (d Disk) Replicated() bool { return !d.ReadOnly && !d.Empty }

// Disks returns all disks in the live XML of a domain, in the order of the XML, which is the same on both hosts.
// It is a pure function.
func Disks(liveXML string) ([]Disk, error) {
	d, err := parseDisks(liveXML)
	if err != nil {
		return nil, err
	}
	var disks []Disk
	seen := map[string]bool{}
	for i := range d {
		disk := diskOf(&d[i])
		if disk.Target == "" || seen[disk.Target] {
			return nil, fmt.Errorf("disk %d has no target of its own (%q)", i, disk.Target)
		}
		seen[disk.Target] = true
		disks = append(disks, disk)
	}
	return disks, nil
}

func parseDisks(liveXML string) ([]libvirtxml.DomainDisk, error) {
	d, err := parseDomain(liveXML)
	if err != nil {
		return nil, err
	}
	if d.Devices == nil {
		return nil, nil
	}
	if n := len(d.Devices.Disks); n > maxDisks {
		return nil, fmt.Errorf("domain %s has %d disks, at most %d", d.Name, n, maxDisks)
	}
	return d.Devices.Disks, nil
}

func diskOf(x *libvirtxml.DomainDisk) Disk {
	d := Disk{
		Target: targetOf(x), Device: x.Device, Type: sourceType(x.Source),
		Shareable: x.Shareable != nil, Transient: x.Transient != nil,
		Backing: x.BackingStore != nil && sourceType(x.BackingStore.Source) != "", // <backingStore/> ends a chain
	}
	if d.Device == "" {
		d.Device = "disk"
	}
	// libvirt adds <readonly/> to a CD by itself; QEMU has no other
	d.ReadOnly = x.ReadOnly != nil || d.Device == "cdrom"
	d.Empty = noImage(x.Source) && (d.Device == "cdrom" || d.Device == "floppy")
	if x.Target != nil {
		d.Bus = x.Target.Bus
	}
	if x.Driver != nil {
		d.Format, d.Cache, d.Unmap = x.Driver.Type, x.Driver.Cache, x.Driver.Discard == "unmap"
	}
	switch s := x.Source; {
	case s == nil:
	case s.File != nil:
		d.Path = s.File.File
	case s.Block != nil:
		d.Path = s.Block.Dev
	}
	return d
}

func targetOf(x *libvirtxml.DomainDisk) string {
	if x.Target == nil {
		return ""
	}
	return x.Target.Dev
}

// sourceType names the kinds of sources as the XML does.
func sourceType(s *libvirtxml.DomainDiskSource) string {
	switch {
	case s == nil:
		return ""
	case s.File != nil:
		return "file"
	case s.Block != nil:
		return "block"
	case s.Dir != nil:
		return "dir"
	case s.Network != nil:
		return "network"
	case s.Volume != nil:
		return "volume"
	case s.NVME != nil:
		return "nvme"
	case s.VHostUser != nil:
		return "vhostuser"
	case s.VHostVDPA != nil:
		return "vhostvdpa"
	}
	return "" // newer than this program
}

// noImage tells an empty drive; the XML library makes up a source for it.
func noImage(s *libvirtxml.DomainDiskSource) bool {
	return s == nil || (s.File != nil && s.File.File == "") || (s.Block != nil && s.Block.Dev == "")
}

// Copy is a block copy job of a disk, as libvirt shows it in the live XML: the <mirror> element.
type Copy struct {
	Target string
	// Socket and Export say where an NBD server on a Unix socket takes it; empty for a copy to elsewhere.
	Socket, Export string
	// Ready is empty while contents are still copied; "yes" once every write of the guest reaches the copy before
	// it completes; "abort" and "pivot" from the moment at which somebody asked for that, when nothing is sure of
	// the copy any more. libvirt changes it in the job in which it tells QEMU.
	Ready string
}

// Ours tells a copy that StartCopy began, by this process or an earlier one, if its export was named after the
// disk: others have no reason to copy to a Unix socket under that name.
func (c Copy) Ours() bool { return c.Socket != "" && c.Export == c.Target }

// Copies returns the block copy jobs in the live XML of a domain. It is a pure function.
func Copies(liveXML string) ([]Copy, error) {
	copies, _, err := SplitCopies(liveXML, func(Copy) bool { return true })
	return copies, err
}

// SplitCopies returns the block copy jobs in the live XML of a domain for which ours is true, and the disks for which
// libvirt knows of no such job: one that QEMU has all the same is a stray. It is a pure function.
func SplitCopies(liveXML string, ours func(Copy) bool) (mine []Copy, bare []string, err error) {
	d, err := parseDisks(liveXML)
	if err != nil {
		return nil, nil, err
	}
	for i := range d {
		switch c, ok := copyOf(&d[i]); {
		case ok && ours(c):
			mine = append(mine, c)
		case !ok:
			bare = append(bare, targetOf(&d[i]))
		}
	}
	return mine, bare, nil
}

func copyOf(x *libvirtxml.DomainDisk) (Copy, bool) {
	m := x.Mirror
	if m == nil || m.Job != "copy" {
		return Copy{}, false
	}
	c := Copy{Target: targetOf(x), Ready: m.Ready}
	if m.Source != nil && m.Source.Network != nil {
		if n := m.Source.Network; n.Protocol == "nbd" && len(n.Hosts) == 1 && n.Hosts[0].Transport == "unix" {
			c.Socket, c.Export = n.Hosts[0].Socket, n.Name
		}
	}
	return c, true
}
