package virt

import (
	"fmt"

	"libvirt.org/go/libvirtxml"
)

func judgeDevices(v *verdicts, d *libvirtxml.DomainDeviceList) {
	for i := range d.Disks {
		judgeDisk(v, &d.Disks[i])
	}
	for i := range d.Interfaces {
		judgeInterface(v, i, &d.Interfaces[i])
	}
	for i := range d.Hostdevs {
		judgeHostdev(v, i, &d.Hostdevs[i])
	}
	for i := range d.Filesystems {
		judgeFilesystem(v, &d.Filesystems[i])
	}
	judgeMemoryDevices(v, d)
	judgeOutsideState(v, d)
	judgeCharacterDevices(v, d)
	judgeDisplays(v, d)
	judgeHarmless(v, d)
}

// interfaceItem names an interface by its MAC address, or else its place.
func interfaceItem(i int, n *libvirtxml.DomainInterface) string {
	if n.MAC != nil {
		return "interface " + n.MAC.Address
	}
	return fmt.Sprintf("interface %d", i)
}

func judgeInterface(v *verdicts, i int, n *libvirtxml.DomainInterface) {
	item := interfaceItem(i, n)
	s := n.Source
	switch {
	case s != nil && s.VHostUser != nil:
		v.fail(item, "vhost-user: another process writes into the guest's memory, which cannot be tracked",
			"use a bridge or network with virtio or e1000")
	case s != nil && s.VDPA != nil:
		v.fail(item, "vDPA: a device writes into the guest's memory, which cannot be tracked", "use a bridge or network")
	case s != nil && s.Hostdev != nil:
		v.fail(item, "a physical device is passed to the guest (VFIO)", "use a bridge or network with virtio")
	case s != nil && s.Direct != nil:
		v.fail(item, "macvtap: its frames leave by "+dashed(s.Direct.Dev)+" directly and do not pass a tap of this host, where they "+
			"could be held until the backup has what they depend on", "use a bridge, or a network that has one")
	case isTap(s):
		v.ok(item, "output: held until the backup has what it depends on")
	default:
		v.fail(item, "interface type "+interfaceType(s)+": it has no interface on this host where frames could be held until "+
			"the backup has what they depend on", "use a bridge, or a network that has one; or detach it")
	}
}

func judgeHostdev(v *verdicts, i int, h *libvirtxml.DomainHostdev) {
	kind := "a device"
	switch {
	case h.SubsysPCI != nil:
		kind = "a PCI device (VFIO)"
	case h.SubsysMDev != nil:
		kind = "a mediated device (mdev)"
	case h.SubsysUSB != nil:
		kind = "a USB device"
	case h.SubsysSCSI != nil, h.SubsysSCSIHost != nil:
		kind = "a SCSI device"
	}
	v.fail(fmt.Sprintf("hostdev %d", i), kind+" of this host is passed to the guest: its state cannot be read, and what it "+
		"writes into memory cannot be tracked", "use an emulated or virtio device")
}

func judgeFilesystem(v *verdicts, f *libvirtxml.DomainFilesystem) {
	item := "filesystem"
	if f.Target != nil {
		item += " " + f.Target.Dir
	}
	if f.Driver != nil && f.Driver.Type == "virtiofs" {
		v.fail(item, "virtiofs: another process writes into the guest's memory and keeps state of its own", "use NFS or a disk")
		return
	}
	v.fail(item, "a directory of this host: its contents are not replicated, and QEMU cannot move a mounted one", "use NFS or a disk")
}

func judgeMemoryDevices(v *verdicts, d *libvirtxml.DomainDeviceList) {
	for i, m := range d.Memorydevs {
		item := fmt.Sprintf("memory device %d", i)
		switch m.Model {
		case "nvdimm", "virtio-pmem":
			v.fail(item, m.Model+": persistent memory is a file of this host", "remove it")
		case "sgx-epc":
			v.fail(item, "SGX memory cannot be read", "remove it")
		default:
			v.fail(item, m.Model+": pluggable memory is untested", "give the guest its memory in <memory>")
		}
	}
	for _, s := range d.Shmems {
		v.fail("shmem "+s.Name, "memory shared with other processes, whose writes cannot be tracked", "remove it")
	}
}

// judgeOutsideState is about devices whose state QEMU does not have, or cannot save.
func judgeOutsideState(v *verdicts, d *libvirtxml.DomainDeviceList) {
	for range d.TPMs {
		v.fail("tpm", "the TPM's state is kept outside QEMU and is not replicated", "remove the <tpm>")
	}
	for i := range d.RedirDevs {
		v.fail(fmt.Sprintf("redirdev %d", i), "a USB device of a client; it would vanish at a failover in mid-transfer", "remove it")
	}
	for range d.Smartcards {
		v.fail("smartcard", "its state is kept outside QEMU", "remove it")
	}
	for i := range d.Crypto {
		v.fail(fmt.Sprintf("crypto %d", i), "QEMU cannot save the state of virtio-crypto", "remove it")
	}
	if d.PStore != nil {
		v.fail("pstore", "kept in a file of this host", "remove it")
	}
	for i := range d.Leases {
		v.fail(fmt.Sprintf("lease %d", i), "a lock lease is not taken again when the guest resumes after a checkpoint", "remove the <lease>")
	}
	for i, in := range d.Inputs {
		if in.Type == "passthrough" || in.Type == "evdev" {
			v.fail(fmt.Sprintf("input %d", i), "an input device of this host is passed to the guest", "use an emulated tablet or keyboard")
		}
	}
	if d.VSock != nil {
		v.warn("vsock", "output: not held, and connections end at a failover. The standby needs the same context id on its host",
			"make sure that no guest there uses it")
	}
}

func judgeCharacterDevices(v *verdicts, d *libvirtxml.DomainDeviceList) {
	const remedy = "do not rely on what was seen there just before a failover"
	warn := func(item string) {
		v.warn(item, "output: not held. It may show what a failover makes undone", remedy)
	}
	for i := range d.Serials {
		warn(fmt.Sprintf("serial %d", i))
	}
	for i := range d.Parallels {
		warn(fmt.Sprintf("parallel %d", i))
	}
	for i := range d.Consoles {
		if t := d.Consoles[i].Target; t != nil && t.Type == "serial" {
			continue // libvirt shows the first serial line twice
		}
		warn(fmt.Sprintf("console %d", i))
	}
	for i := range d.Channels {
		item := fmt.Sprintf("channel %d", i)
		if t := d.Channels[i].Target; t != nil && t.VirtIO != nil && t.VirtIO.Name != "" {
			item = "channel " + t.VirtIO.Name
		}
		warn(item)
	}
}

func judgeDisplays(v *verdicts, d *libvirtxml.DomainDeviceList) {
	for i := range d.Graphics {
		v.warn(fmt.Sprintf("graphics %d", i), "output: not held. Viewers have to connect to the backup host after a failover", "none needed")
	}
	for i, video := range d.Videos {
		item := fmt.Sprintf("video %d", i)
		m := video.Model
		accelerated := m.Accel != nil && (m.Accel.Accel3D == "yes" || m.Accel.Accel2D == "yes")
		switch {
		case accelerated || m.Blob == "on":
			v.fail(item, "QEMU cannot save the state of an accelerated display", "turn off acceleration and blob")
		case video.Driver != nil && video.Driver.Name == "vhostuser":
			v.fail(item, "vhost-user: another process keeps the display's state", "use <driver name='qemu'/>")
		default:
			v.ok(item, m.Type)
		}
	}
}

func judgeHarmless(v *verdicts, d *libvirtxml.DomainDeviceList) {
	for _, kind := range []struct {
		item  string
		count int
	}{
		{"watchdog", len(d.Watchdogs)}, {"rng", len(d.RNGs)}, {"panic", len(d.Panics)}, {"iommu", len(d.IOMMUs)},
		{"sound", len(d.Sounds)}, {"hub", len(d.Hubs)}, {"controller", len(d.Controllers)},
	} {
		if kind.count > 0 {
			v.ok(kind.item, fmt.Sprintf("%d present", kind.count))
		}
	}
	if b := d.MemBalloon; b != nil && b.Model != "none" {
		v.ok("memballoon", b.Model)
	}
}
