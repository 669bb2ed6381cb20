package virt

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"libvirt.org/go/libvirtxml"
)

// placeDisks gives the standby its own images. What belongs to the source's images goes: backing files, a block
// copy of them, encryption, and where and how they are reached. What the guest sees stays: target, address, serial
// and wwn, geometry, and the driver's attributes, among them the cache mode, which decides whether the guest sees a
// write cache.
func placeDisks(d *libvirtxml.Domain, images map[string]StandbyDisk) error {
	unused := map[string]bool{}
	for target := range images {
		unused[target] = true
	}
	if d.Devices != nil {
		if n := len(d.Devices.Disks); n > maxDisks {
			return fmt.Errorf("%d disks, at most %d", n, maxDisks)
		}
		for i := range d.Devices.Disks {
			x := &d.Devices.Disks[i]
			disk := diskOf(x)
			if !disk.Replicated() {
				continue
			}
			image, found := images[disk.Target]
			if !found {
				return fmt.Errorf("disk %s can be written by the guest and has no image on this host", dashed(disk.Target))
			}
			delete(unused, disk.Target)
			if err := place(x, disk, image); err != nil {
				return fmt.Errorf("disk %s: %w", disk.Target, err)
			}
		}
	}
	for target := range unused {
		return fmt.Errorf("there is an image for disk %s, and no such disk that the guest can write", target)
	}
	return nil
}

func place(x *libvirtxml.DomainDisk, disk Disk, image StandbyDisk) error {
	switch {
	case disk.Device == "lun":
		return errors.New("a passed-through SCSI device has no image")
	case disk.Shareable:
		return errors.New("it is shareable: other guests write to the source as well")
	case disk.Transient:
		return errors.New("it is transient: its contents go with the source's QEMU")
	case !filepath.IsAbs(image.Path):
		return fmt.Errorf("image %q is no absolute path", image.Path)
	}
	x.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: image.Path}}
	if image.Block {
		x.Source = &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: image.Path}}
	}
	x.BackingStore, x.Mirror, x.Encryption, x.Auth, x.BackendDomain = nil, nil, nil, nil, nil
	driver := libvirtxml.DomainDiskDriver{}
	if x.Driver != nil {
		driver = *x.Driver
	}
	driver.Name, driver.Type = "qemu", "raw"
	driver.MetadataCache, driver.DiscardNoUnref = nil, "" // of qcow2
	driver.CopyOnRead = ""                                // a flat image has nothing to copy from
	x.Driver = &driver
	return nil
}

// scratchDisks gives a rehearsal empty files instead of the standby's images. They may lie in a file system that
// cannot do direct I/O: the cache mode becomes the one that looks the same to the guest and needs none.
func scratchDisks(d *libvirtxml.Domain, files map[string]string) error {
	images := map[string]StandbyDisk{}
	for target, path := range files {
		images[target] = StandbyDisk{Path: path}
	}
	if err := placeDisks(d, images); err != nil {
		return err
	}
	if d.Devices == nil {
		return nil
	}
	for i := range d.Devices.Disks {
		x := &d.Devices.Disks[i]
		if !diskOf(x).Replicated() {
			continue
		}
		switch x.Driver.Cache {
		case "none", "unsafe":
			x.Driver.Cache = "writeback"
		case "directsync":
			x.Driver.Cache = "writethrough"
		}
		if x.Driver.IO == "native" { // needs direct I/O
			x.Driver.IO = ""
		}
	}
	return nil
}

// encrypted tells whether an image, or one of those behind it, is encrypted by QEMU.
func encrypted(x *libvirtxml.DomainDisk) bool {
	if x.Encryption != nil || (x.Source != nil && x.Source.Encryption != nil) {
		return true
	}
	return slices.ContainsFunc(chain(x.BackingStore), func(b *libvirtxml.DomainDiskBackingStore) bool {
		return b.Source != nil && b.Source.Encryption != nil
	})
}

// chain lists the backing files of an image.
func chain(b *libvirtxml.DomainDiskBackingStore) []*libvirtxml.DomainDiskBackingStore {
	var all []*libvirtxml.DomainDiskBackingStore
	for ; b != nil; b = b.BackingStore {
		all = append(all, b)
	}
	return all
}
