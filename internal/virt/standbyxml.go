package virt

import (
	"errors"
	"fmt"
	"strings"

	"libvirt.org/go/libvirtxml"
)

const (
	maxDomainXMLBytes = 4 << 20 // libvirt's own limit for a string in one message
	incomingArg       = "-incoming"
	incomingDeferred  = "defer"
)

// StandbyOptions says what the standby's XML shall tell about the protection.
type StandbyOptions struct {
	Protection  string // protection id
	Generation  uint64
	PrimaryHost string
	// LiveXML is the source's live XML (may be empty). The CPU in it is the one the guest sees, feature by
	// feature, while the migratable XML holds the one that was asked for, which another host may resolve
	// differently.
	LiveXML string
	// Disks names the image on this host of every disk that the guest can write, by the disk's target.
	Disks map[string]StandbyDisk
}

// StandbyDisk is the standby's image of a disk: raw, in a file or on a block device.
type StandbyDisk struct {
	Path  string // absolute
	Block bool   // a block device
}

// StandbyXML makes the XML of the standby domain out of the migratable XML of the protected one. It is a
// pure function. What it changes:
//   - memory comes from a memfd and is shared, so that checkpoints can be written into it from outside
//   - QEMU waits for an incoming stream (-incoming defer); other <qemu:arg>s stay as they are
//   - our Note in <metadata>, and a title and description that tell people what this domain is; the guest's
//     own ones are kept in the Note
//   - disks that the guest can write get images of this host (see placeDisks); others stay as they are
//   - host-bound traces go: the id, dynamic security labels, pty paths
//
// Additions of ours from an earlier failover are taken out first. Elements that libvirtxml does not know are
// lost; should one change the guest's hardware, the rehearsal of the first checkpoint fails.
func StandbyXML(src string, o StandbyOptions) (string, error) {
	if o.Protection == "" {
		return "", errors.New("standby XML: no protection id")
	}
	d, err := parseDomain(src)
	if err != nil {
		return "", fmt.Errorf("standby XML: %w", err)
	}
	if err := checkSource(d); err != nil {
		return "", fmt.Errorf("standby XML: domain %s: %w", d.Name, err)
	}
	if o.LiveXML != "" {
		live, err := parseDomain(o.LiveXML)
		if err != nil {
			return "", fmt.Errorf("standby XML: live XML: %w", err)
		}
		if live.CPU != nil {
			d.CPU = live.CPU
		}
	}
	d.ID = nil
	shareMemory(d)
	waitForIncoming(d)
	dropHostTraces(d)
	if err := placeDisks(d, o.Disks); err != nil {
		return "", fmt.Errorf("standby XML: domain %s: %w", d.Name, err)
	}
	if err := label(d, o); err != nil {
		return "", fmt.Errorf("standby XML: domain %s: %w", d.Name, err)
	}
	return d.Marshal()
}

func parseDomain(src string) (*libvirtxml.Domain, error) {
	if len(src) > maxDomainXMLBytes {
		return nil, fmt.Errorf("domain XML of %d bytes, at most %d", len(src), maxDomainXMLBytes)
	}
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(src); err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	return d, nil
}

// checkSource refuses what would silently become another machine on another host.
func checkSource(d *libvirtxml.Domain) error {
	switch {
	case d.Name == "" || d.UUID == "":
		return errors.New("name or UUID is missing")
	case d.OS == nil || d.OS.Type == nil || d.OS.Type.Machine == "":
		return errors.New("no machine type")
	case d.OS.Type.Machine == "pc" || d.OS.Type.Machine == "q35":
		return fmt.Errorf("machine type %q is an alias, which another QEMU may resolve differently: the XML of the "+
			"running domain names the version", d.OS.Type.Machine)
	}
	return nil
}

func shareMemory(d *libvirtxml.Domain) {
	if d.MemoryBacking == nil {
		d.MemoryBacking = &libvirtxml.DomainMemoryBacking{}
	}
	d.MemoryBacking.MemorySource = &libvirtxml.DomainMemorySource{Type: "memfd"}
	d.MemoryBacking.MemoryAccess = &libvirtxml.DomainMemoryAccess{Mode: "shared"}
	if d.CPU != nil && d.CPU.Numa != nil {
		for i := range d.CPU.Numa.Cell {
			d.CPU.Numa.Cell[i].MemAccess = "shared" // a cell's own setting would win
		}
	}
}

func waitForIncoming(d *libvirtxml.Domain) {
	if d.QEMUCommandline == nil {
		d.QEMUCommandline = &libvirtxml.DomainQEMUCommandline{}
	}
	args := withoutIncoming(d.QEMUCommandline.Args)
	d.QEMUCommandline.Args = append(args,
		libvirtxml.DomainQEMUCommandlineArg{Value: incomingArg},
		libvirtxml.DomainQEMUCommandlineArg{Value: incomingDeferred})
}

// withoutIncoming drops "-incoming X": a running guest has one only because it was our standby once.
func withoutIncoming(args []libvirtxml.DomainQEMUCommandlineArg) []libvirtxml.DomainQEMUCommandlineArg {
	var kept []libvirtxml.DomainQEMUCommandlineArg
	for i := 0; i < len(args); i++ {
		if args[i].Value == incomingArg {
			i++
			continue
		}
		kept = append(kept, args[i])
	}
	return kept
}

func dropHostTraces(d *libvirtxml.Domain) {
	var labels []libvirtxml.DomainSecLabel
	for _, l := range d.SecLabel {
		if l.Type != "dynamic" { // those, the standby's libvirt makes
			labels = append(labels, l)
		}
	}
	d.SecLabel = labels
	if d.Devices == nil {
		return
	}
	unpty := func(s *libvirtxml.DomainChardevSource) {
		if s != nil && s.Pty != nil {
			s.Pty.Path = ""
		}
	}
	for i := range d.Devices.Serials {
		unpty(d.Devices.Serials[i].Source)
	}
	for i := range d.Devices.Parallels {
		unpty(d.Devices.Parallels[i].Source)
	}
	for i := range d.Devices.Consoles {
		d.Devices.Consoles[i].TTY = ""
		unpty(d.Devices.Consoles[i].Source)
	}
	for i := range d.Devices.Channels {
		unpty(d.Devices.Channels[i].Source)
	}
}

func label(d *libvirtxml.Domain, o StandbyOptions) error {
	inner := ""
	if d.Metadata != nil {
		inner = d.Metadata.XML
	}
	rest, earlier, found, err := cutNotes(inner)
	if err != nil {
		return err
	}
	if found {
		d.Title, d.Description = earlier.Title, earlier.Description
	}
	note := Note{
		Protection: o.Protection, Generation: o.Generation, Role: RoleStandby, PrimaryHost: o.PrimaryHost,
		Title: d.Title, Description: d.Description,
	}
	d.Metadata = &libvirtxml.DomainMetadata{XML: strings.TrimRight(rest, " \n\t") + note.full()}
	d.Title = fmt.Sprintf("virt-ft standby of %s on %s", d.Name, oneLine(o.PrimaryHost))
	d.Description = fmt.Sprintf("This domain holds the latest checkpoint of the domain %s that runs on %s, and takes over "+
		"when that host fails. It is managed by virt-ft: do not start, resume or destroy it by hand; see virt-ft status %s.",
		d.Name, o.PrimaryHost, d.Name)
	return nil
}

// oneLine makes a text fit for a title, in which libvirt refuses line breaks.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
