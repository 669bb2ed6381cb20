package virt

import (
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// ScratchXML makes, out of a standby's XML, that of a domain in which the first checkpoint is rehearsed beside
// the standby: the same devices under another name and UUID. Character devices end in nothing, so that the
// scratch domain does not open, and truncate, the files of the real one. disks names an empty raw file for each disk
// that the guest can write, of the disk's size, so that it never opens the replica. It is a pure function.
func ScratchXML(standby, name, uuid string, disks map[string]string) (string, error) {
	d, err := parseDomain(standby)
	if err != nil {
		return "", fmt.Errorf("scratch XML: %w", err)
	}
	if err := scratchDisks(d, disks); err != nil {
		return "", fmt.Errorf("scratch XML: domain %s: %w", d.Name, err)
	}
	d.Name, d.UUID = name, uuid
	d.Title, d.Description = "virt-ft rehearsal of "+name, ""
	if dev := d.Devices; dev != nil {
		null := func(s **libvirtxml.DomainChardevSource) {
			*s = &libvirtxml.DomainChardevSource{Null: &libvirtxml.DomainChardevSourceNull{}}
		}
		for i := range dev.Serials {
			null(&dev.Serials[i].Source)
			dev.Serials[i].Log = nil
		}
		for i := range dev.Parallels {
			null(&dev.Parallels[i].Source)
			dev.Parallels[i].Log = nil
		}
		for i := range dev.Consoles {
			null(&dev.Consoles[i].Source)
			dev.Consoles[i].Log = nil
		}
		for i := range dev.Channels {
			c := &dev.Channels[i]
			if c.Source != nil && (c.Source.SpiceVMC != nil || c.Source.SpicePort != nil) {
				continue // these name no file
			}
			null(&c.Source)
			c.Log = nil
		}
	}
	return d.Marshal()
}
