package lab

import (
	"fmt"
	"path"
	"strings"
)

// GuestDisk is one disk of a lab guest. Zero values mean the default in
// brackets.
type GuestDisk struct {
	Target  string // ["vda"], also its serial number; "sda" for scsi and sata
	Bus     string // "virtio", "scsi" or "sata" ["virtio"]
	Format  string // of the image: "raw" or "qcow2" ["raw"]
	SizeMiB int    // [64]
	Cache   string // "none", "writeback" or "directsync" ["none"]
	// Backing puts a second qcow2 image, which holds data, behind the first.
	Backing bool
	// FS is "" for records, which the guest writes to the bare disk, or "ext4"
	// for files.
	FS string
	// IOThread lets the disk be served by a thread of its own; not for sata.
	IOThread bool
	// Path of the image on the host ["/var/lib/libvirt/images/GUEST-TARGET.FORMAT"].
	Path string
}

// Limits of a guest's disks.
const (
	guestDisksMax   = 8
	guestDiskMaxMiB = 1 << 20
	guestDiskMinMiB = 4
)

// imageDir is where images lie on a host unless a path says otherwise.
const imageDir = "/var/lib/libvirt/images"

func (d GuestDisk) withDefaults(guest string) GuestDisk {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&d.Target, "vda")
	def(&d.Bus, "virtio")
	def(&d.Format, "raw")
	def(&d.Cache, "none")
	def(&d.Path, fmt.Sprintf("%s/%s-%s.%s", imageDir, guest, d.Target, d.Format))
	if d.SizeMiB == 0 {
		d.SizeMiB = 64
	}
	return d
}

// plainTarget tells whether a target is one of the lab's: it goes into the
// kernel's command line, and is a disk's serial number.
func plainTarget(s string) bool {
	return len(s) == 3 && (s[0] == 'v' || s[0] == 's') && s[1] == 'd' && s[2] >= 'a' && s[2] <= 'z'
}

func (d GuestDisk) check() error {
	fails := func(format string, args ...any) error {
		return fmt.Errorf("lab: disk %s: "+format, append([]any{d.Target}, args...)...)
	}
	switch {
	case !plainTarget(d.Target):
		return fails("neither vdX nor sdX")
	case d.Bus != "virtio" && d.Bus != "scsi" && d.Bus != "sata":
		return fails("bus %q is none of virtio, scsi and sata", d.Bus)
	case (d.Bus == "virtio") != (d.Target[0] == 'v'):
		return fails("not a name for the bus %s", d.Bus)
	case d.Format != "raw" && d.Format != "qcow2":
		return fails("format %q is neither raw nor qcow2", d.Format)
	case d.Backing && d.Format != "qcow2":
		return fails("only qcow2 images have something behind them")
	case d.Cache != "none" && d.Cache != "writeback" && d.Cache != "directsync":
		return fails("cache %q is none of none, writeback and directsync", d.Cache)
	case d.FS != "" && d.FS != "ext4":
		return fails("file system %q is not ext4", d.FS)
	case d.SizeMiB < guestDiskMinMiB || d.SizeMiB > guestDiskMaxMiB:
		return fails("%d MiB", d.SizeMiB)
	case d.IOThread && d.Bus == "sata":
		return fails("QEMU has no I/O threads for sata")
	case !path.IsAbs(d.Path) || path.Clean(d.Path) != d.Path || strings.ContainsAny(d.Path, ",\n"):
		return fails("path %q is not plain and absolute", d.Path)
	}
	return nil
}

// backingPath is where the image behind the disk's own lies.
func (d GuestDisk) backingPath() string { return strings.TrimSuffix(d.Path, ".qcow2") + "-base.qcow2" }

// wantsModules tells whether the guest needs more for the disk than plainModules.
func (d GuestDisk) wantsModules() bool { return d.Bus != "virtio" || d.FS != "" }

// workload is how the kernel's command line tells the guest of the disk.
func (d GuestDisk) workload() string {
	if d.FS != "" {
		return " ft.disks=" + d.Target + ":" + d.FS
	}
	return " ft.disks=" + d.Target + ":records"
}

func (o GuestOptions) checkDisks() error {
	if len(o.Disks) > guestDisksMax {
		return fmt.Errorf("lab: %d disks, at most %d", len(o.Disks), guestDisksMax)
	}
	targets, paths, accept := map[string]bool{}, map[string]bool{}, o.AcceptDisk == ""
	for _, d := range o.Disks {
		if err := d.check(); err != nil {
			return err
		}
		if targets[d.Target] || paths[d.Path] {
			return fmt.Errorf("lab: disk %s at %s: there is another such", d.Target, d.Path)
		}
		if o.Rich && d.Bus == "sata" && d.Target == "sda" {
			return fmt.Errorf("lab: disk sda: a rich guest has its CD drive there")
		}
		targets[d.Target], paths[d.Path] = true, true
		accept = accept || d.Target == o.AcceptDisk && d.FS == ""
	}
	if !accept {
		return fmt.Errorf("lab: the acceptance service cannot write to %q: no disk of records", o.AcceptDisk)
	}
	return nil
}

// diskXML is a disk with what the template must know besides.
type diskXML struct {
	GuestDisk
	Thread int // its I/O thread, from 1; 0: none
}

// DiskList numbers the I/O threads. All disks on the SCSI controller have one
// thread, that of the first which wants one.
func (o GuestOptions) DiskList() []diskXML {
	var all []diskXML
	threads := 0
	for _, d := range o.Disks {
		x := diskXML{GuestDisk: d}
		if d.IOThread {
			threads++
			x.Thread = threads
		}
		all = append(all, x)
	}
	return all
}

// IOThreads serves the template.
func (o GuestOptions) IOThreads() (n int) {
	for _, d := range o.DiskList() {
		n = max(n, d.Thread)
	}
	return n
}

// SCSIThread is the I/O thread of the SCSI controller, 0 for none, and -1 if
// the guest has no such controller.
func (o GuestOptions) SCSIThread() int {
	thread := -1
	for _, d := range o.DiskList() {
		if d.Bus == "scsi" && thread <= 0 {
			thread = d.Thread
		}
	}
	return thread
}
