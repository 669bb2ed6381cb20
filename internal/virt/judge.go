package virt

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// Level is the weight of a Finding.
type Level string

// Fail refuses protection, Warn is told to the user, OK is protected in full.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing a domain or host has, and what it means for protection.
type Finding struct {
	Item   string `json:"item"` // for instance "disk vda"
	Level  Level  `json:"level"`
	Text   string `json:"text"`             // what is so, and why it matters
	Remedy string `json:"remedy,omitempty"` // what to do about it; empty for OK
}

// verdicts collects findings.
type verdicts struct{ list []Finding }

func (v *verdicts) ok(item, text string) { v.list = append(v.list, Finding{item, OK, text, ""}) }
func (v *verdicts) warn(item, text, remedy string) {
	v.list = append(v.list, Finding{item, Warn, text, remedy})
}
func (v *verdicts) fail(item, text, remedy string) {
	v.list = append(v.list, Finding{item, Fail, text, remedy})
}

// Judge tells for everything in the live XML of a domain whether it can be protected. It is a pure function;
// what cannot be seen in XML is told by others (see Conn.LockManager). Elements it does not know are refused.
func Judge(liveXML string) []Finding {
	v := &verdicts{}
	d, err := parseDomain(liveXML)
	if err != nil {
		v.fail("domain XML", err.Error(), "report this: virt-ft cannot read what libvirt says about the domain")
		return v.list
	}
	judgeHypervisor(v, d)
	judgeMachine(v, d)
	judgeCPU(v, d)
	judgeMemory(v, d)
	judgeFirmware(v, d)
	judgeCommandLine(v, d)
	if d.LaunchSecurity != nil {
		v.fail("launch security", "the guest's memory is encrypted; it cannot be read to replicate it",
			"run the guest without <launchSecurity>")
	}
	if d.Devices != nil {
		judgeDevices(v, d.Devices)
	}
	judgeUnknown(v, liveXML)
	return v.list
}

func judgeHypervisor(v *verdicts, d *libvirtxml.Domain) {
	switch d.Type {
	case "kvm":
		v.ok("hypervisor", "KVM")
	case "qemu":
		v.ok("hypervisor", "QEMU without KVM (TCG)")
	default:
		v.fail("hypervisor", fmt.Sprintf("domain type %q", d.Type), "only domains of type kvm and qemu can be protected")
	}
}

func judgeMachine(v *verdicts, d *libvirtxml.Domain) {
	if d.OS == nil || d.OS.Type == nil {
		v.fail("machine", "the domain names no machine", "report this with the output of virsh dumpxml")
		return
	}
	t := d.OS.Type
	switch {
	case t.Type != "hvm":
		v.fail("machine", fmt.Sprintf("operating system type %q", t.Type), "only fully virtualized guests (hvm) can be protected")
	case t.Arch != "x86_64":
		v.fail("machine", fmt.Sprintf("architecture %q", t.Arch), "only x86_64 guests can be protected")
	case strings.HasPrefix(t.Machine, "pc-") || t.Machine == "pc" || t.Machine == "q35":
		v.ok("machine", t.Machine)
	default:
		v.warn("machine", fmt.Sprintf("machine type %q is untested", t.Machine), "prefer q35 or pc")
	}
}

func judgeCPU(v *verdicts, d *libvirtxml.Domain) {
	n := uint(1)
	if d.VCPU != nil {
		n = d.VCPU.Value
	}
	v.ok("vcpu", fmt.Sprintf("%d virtual CPUs", n))
	if d.CPU == nil {
		return
	}
	switch d.CPU.Mode {
	case "host-passthrough", "maximum":
		v.warn("cpu", fmt.Sprintf("CPU mode %s: the guest can only go on where the CPU, its microcode and the kernel offer "+
			"the same features", d.CPU.Mode), "use identical hosts, or a named CPU model")
	default:
		v.ok("cpu", "CPU model is named")
	}
	if d.CPU.Numa != nil && len(d.CPU.Numa.Cell) > 0 {
		v.ok("numa", fmt.Sprintf("%d guest NUMA nodes", len(d.CPU.Numa.Cell)))
	}
}

func judgeMemory(v *verdicts, d *libvirtxml.Domain) {
	b := d.MemoryBacking
	switch {
	case b != nil && b.MemoryHugePages != nil:
		v.fail("memory", "backed by huge pages, of which a single written byte would be a whole huge page to send; tracking "+
			"them is unproven", "remove <hugepages> from <memoryBacking>; transparent huge pages are used anyway")
	case b != nil && b.MemorySource != nil && b.MemorySource.Type == "file":
		v.fail("memory", "backed by a file: the kernel tracks written pages of anonymous and memfd memory only",
			"use <source type='memfd'/> or no <source> at all in <memoryBacking>")
	case b != nil && b.MemorySource != nil && b.MemorySource.Type == "memfd":
		v.ok("memory", "memfd")
	default:
		v.ok("memory", "anonymous")
	}
	if d.MaximumMemory != nil && d.MaximumMemory.Slots > 0 {
		v.warn("memory slots", "memory may be hot-plugged; protection ends when it is", "do not attach memory while protected")
	}
}

func judgeFirmware(v *verdicts, d *libvirtxml.Domain) {
	if d.OS == nil {
		return
	}
	if d.OS.NVRam != nil {
		v.fail("firmware", "UEFI variables are kept in a file of this host, which is not replicated yet: after a failover "+
			"the firmware would see others", "use BIOS, or UEFI without variable store (<loader stateless='yes'>)")
		return
	}
	if l := d.OS.Loader; l != nil && l.Type == "pflash" && l.Readonly != "yes" && l.Stateless != "yes" {
		v.fail("firmware", "the firmware's flash is written to a file of this host, which is not replicated", "make the <loader> readonly")
		return
	}
	v.ok("firmware", "no state of its own")
}

func judgeCommandLine(v *verdicts, d *libvirtxml.Domain) {
	if q := d.QEMUCommandline; q != nil {
		var args []string
		for _, a := range withoutIncoming(q.Args) {
			args = append(args, a.Value)
		}
		if len(args) > 0 || len(q.Envs) > 0 {
			v.warn("qemu:commandline", fmt.Sprintf("QEMU gets arguments that libvirt and virt-ft know nothing about (%s)",
				strings.Join(args, " ")), "make sure that they are good on the backup host too, and add no device")
		}
	}
	if d.QEMUOverride != nil {
		v.warn("qemu:override", "device properties are overridden behind libvirt's back",
			"make sure that they are good on the backup host too")
	}
}

// judgeUnknown refuses devices that are newer than this program: what the XML library does not know would be
// missing in the standby.
func judgeUnknown(v *verdicts, doc string) {
	dec := xml.NewDecoder(strings.NewReader(doc))
	var path []string
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			v.fail("domain XML", err.Error(), "report this with the output of virsh dumpxml")
			return
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if len(path) == 2 && path[1] == "devices" && !knownDevice(t.Name.Local) {
				v.fail("device "+t.Name.Local, "virt-ft does not know this kind of device", "remove it, or use a newer virt-ft")
			}
			path = append(path, t.Name.Local)
		case xml.EndElement:
			path = path[:len(path)-1]
		}
	}
}

func knownDevice(element string) bool {
	switch element {
	case "emulator", "disk", "controller", "lease", "filesystem", "interface", "smartcard", "serial", "parallel",
		"console", "channel", "input", "tpm", "graphics", "sound", "audio", "video", "hostdev", "redirdev",
		"redirfilter", "hub", "watchdog", "memballoon", "rng", "nvram", "panic", "shmem", "memory", "iommu",
		"vsock", "crypto", "pstore":
		return true
	}
	return false
}
