package virt

import (
	"fmt"
	"slices"

	"libvirt.org/go/libvirtxml"
)

// diskFault is why a disk cannot be protected, and what to do about it.
type diskFault struct{ text, remedy string }

func judgeDisk(v *verdicts, x *libvirtxml.DomainDisk) {
	item := "disk"
	if x.Target != nil {
		item += " " + x.Target.Dev
	}
	disk := diskOf(x)
	if fault := passedThrough(disk); fault != nil {
		v.fail(item, fault.text, fault.remedy)
		return
	}
	if disk.Empty {
		v.ok(item, "empty drive")
		return
	}
	if !disk.Replicated() {
		v.ok(item, "read-only; the same image must be reachable on the backup host under the same name")
		return
	}
	fault := unreachable(disk)
	if fault == nil {
		fault = unfaithful(x, disk)
	}
	if fault == nil {
		fault = occupied(x)
	}
	switch {
	case fault != nil:
		v.fail(item, fault.text, fault.remedy)
	case disk.Cache == "unsafe":
		v.warn(item, "replicated, but with cache='unsafe' the guest's flushes are ignored: a power cut of the host that "+
			"runs the guest may ruin its image there", "use cache='none' or 'writeback'")
	case disk.Backing:
		v.ok(item, "replicated; its copy on the backup is one raw image, into which the backing files are merged")
	default:
		v.ok(item, "replicated; its copy on the backup is a raw image")
	}
}

// passedThrough finds disks that are no image, whether the guest may write to them or not.
func passedThrough(d Disk) *diskFault {
	switch {
	case d.Type == "vhostuser" || d.Type == "vhostvdpa":
		return &diskFault{"another process or device writes into the guest's memory, which cannot be tracked", "use an ordinary disk"}
	case d.Type == "nvme":
		return &diskFault{"a physical NVMe device belongs to this host", "use an image or a volume"}
	case d.Device == "lun":
		return &diskFault{"SCSI commands are passed to a device of this host", "use <disk device='disk'>"}
	}
	return nil
}

// unreachable finds writable disks whose kind of source or bus is not replicated.
func unreachable(d Disk) *diskFault {
	switch {
	case d.Type == "network":
		return &diskFault{"shared or remote storage: both hosts would write to the same disk, which is not supported yet",
			"use a file or a block device of this host"}
	case d.Type == "volume":
		return &diskFault{"a volume of a storage pool: libvirt does not tell whether it is on this host or shared",
			"name its file or block device in <source>; virsh vol-path tells it"}
	case d.Type == "dir":
		return &diskFault{"a directory that is made to look like a disk", "put its files into an image"}
	case d.Type != "file" && d.Type != "block":
		return &diskFault{"virt-ft does not know this kind of source", "use a file or a block device, or a newer virt-ft"}
	case d.Path == "":
		return &diskFault{"the XML names neither file nor device of it", "name it in <source>"}
	case d.Device != "disk":
		return &diskFault{"a writable " + d.Device + " is not replicated: after a failover it would be another one",
			"make it read-only, or eject it"}
	case !slices.Contains([]string{"virtio", "scsi", "sata", "ide", "usb"}, d.Bus):
		return &diskFault{fmt.Sprintf("disks on bus %q are not replicated", d.Bus), "use virtio, scsi, sata, ide or usb"}
	}
	return nil
}

// unfaithful finds disks that a copy would not stand in for.
func unfaithful(x *libvirtxml.DomainDisk, d Disk) *diskFault {
	switch {
	case d.Shareable:
		return &diskFault{"shareable: what other guests write to it does not pass this one's QEMU and is not replicated",
			"remove <shareable/> if no other guest uses it"}
	case d.Transient:
		return &diskFault{"transient: what the guest writes is thrown away with its QEMU, and libvirt copies no such disk",
			"remove <transient/>"}
	case encrypted(x):
		return &diskFault{"encrypted by QEMU: the copy on the backup would lie there in clear",
			"let the guest encrypt the disk itself"}
	}
	return nil
}

// occupied finds disks in which another job is under way. One that ours left behind is ended when the next begins.
func occupied(x *libvirtxml.DomainDisk) *diskFault {
	if x.Mirror == nil {
		return nil
	}
	if c, ok := copyOf(x); ok && c.Ours() {
		return nil
	}
	return &diskFault{"another block job is under way (" + dashed(x.Mirror.Job) + "), and a disk can have only one",
		"let it finish, or end it with virsh blockjob --abort"}
}
