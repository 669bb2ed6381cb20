package lab

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
	"text/template"
)

// GuestOptions shape a lab guest. Zero values mean the default in brackets.
type GuestOptions struct {
	Name    string // ["web1"]
	UUID    string // [derived by libvirt]
	Machine string // "q35" or "pc" ["q35"]
	MemMiB  int    // [256]
	VCPUs   int    // [1]
	// Memory is "anonymous" or "memfd" (shared) ["anonymous"].
	Memory string
	// NUMACells splits memory and CPUs evenly when it is 2 or more.
	NUMACells int
	// Rich adds USB, VGA, sound, rng, balloon, virtio-serial, watchdog, panic
	// device, an empty CD drive and two more network cards.
	Rich bool
	// NIC gives the guest a virtio network card on br0.
	NIC bool
	// Number tells guests apart that live at once: each has an address of its own,
	// see IP and MAC. 0 is the one at GuestAddr, where Command asks.
	Number int
	// Disks are made by StartGuest, on its host, where they do not exist yet. A
	// guest with disks waits at boot until it has them all.
	Disks []GuestDisk
	// AcceptDisk is the target of a disk of records to which the acceptance
	// service writes before it answers [none].
	AcceptDisk string
	// Cmdline is put behind the lab's own kernel command line; a repeated
	// ft. key overrides the earlier one.
	Cmdline string
	// Kernel and Initrd are paths that both hosts see, as InstallBoot returns
	// them. A rich guest, and one with disks that want more than virtio, boots from
	// an initramfs beside Initrd.
	Kernel, Initrd string
	// Firmware is a path that both hosts see, of what the guest runs in place of a
	// firmware and all that it would boot: nothing is known of such a guest, and
	// StartGuest does not wait for it [QEMU's, with Kernel and Initrd].
	Firmware string
	// Emulator is a path that both hosts see, as InstallKVM returns it [QEMU].
	Emulator string
}

// Limits of GuestOptions.
const (
	guestMemMaxMiB = 1 << 20
	guestVCPUMax   = 64
	guestCellsMax  = 16
	guestNumberMax = 200
)

const qemuPath = "/usr/bin/qemu-system-x86_64"

// guestMAC is fixed, so that a guest keeps it wherever it runs.
const guestMAC = "52:54:00:f7:00:0a"

// ConsolePath is where a host's guest writes its serial console.
func ConsolePath(guest string) string { return "/var/log/libvirt/" + guest + ".console" }

// guestCmdline is what every lab guest boots with. Nobody has its IPv6 address but
// the guest, which would look for such a one for a second or two otherwise. Its
// kernel neither tests its cryptography, nor looks for writable code, nor rewrites
// itself for one processor: under emulation all of that takes long.
func (o GuestOptions) guestCmdline() string {
	return fmt.Sprintf("console=ttyS0 loglevel=4 mitigations=off cryptomgr.notests rodata=off noreplace-smp sysctl.net.ipv6.conf.default.dad_transmits=0 ft.ip=%s/24 ft.observer=%s:%d ft.mem_mb=64 ft.dirty_pages_s=2000 ft.tick_ms=2",
		o.IP(), ClientAddr, ObserverPort)
}

func (o GuestOptions) withDefaults() GuestOptions {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&o.Name, "web1")
	def(&o.Machine, "q35")
	def(&o.Memory, "anonymous")
	def(&o.Emulator, qemuPath)
	if o.MemMiB == 0 {
		o.MemMiB = 256
	}
	if o.VCPUs == 0 {
		o.VCPUs = max(1, o.NUMACells)
	}
	disks := make([]GuestDisk, 0, len(o.Disks)) // the caller's stay as they are
	workloads := ""
	for _, d := range o.Disks {
		d = d.withDefaults(o.Name)
		disks, workloads = append(disks, d), workloads+d.workload()
	}
	switch {
	case slices.ContainsFunc(disks, GuestDisk.wantsModules) || o.Rich && len(disks) > 0:
		o.Initrd = diskInitrd(o.Initrd)
	case o.Rich:
		o.Initrd = RichInitrd(o.Initrd)
	}
	if len(disks) > 0 {
		o.Disks = disks
	}
	if o.AcceptDisk != "" {
		workloads += " ft.disk=" + o.AcceptDisk
	}
	o.Cmdline = strings.TrimSpace(o.guestCmdline() + workloads + " " + o.Cmdline)
	return o
}

func (o GuestOptions) check() error {
	switch {
	case o.Machine != "q35" && o.Machine != "pc":
		return fmt.Errorf("lab: machine %q is neither q35 nor pc", o.Machine)
	case o.Memory != "anonymous" && o.Memory != "memfd":
		return fmt.Errorf("lab: memory %q is neither anonymous nor memfd", o.Memory)
	case o.MemMiB < 1 || o.MemMiB > guestMemMaxMiB:
		return fmt.Errorf("lab: %d MiB of memory", o.MemMiB)
	case o.VCPUs < 1 || o.VCPUs > guestVCPUMax:
		return fmt.Errorf("lab: %d vCPUs", o.VCPUs)
	case o.Number < 0 || o.Number > guestNumberMax:
		return fmt.Errorf("lab: guest number %d, at most %d", o.Number, guestNumberMax)
	case o.NUMACells < 0 || o.NUMACells > guestCellsMax || o.NUMACells > o.VCPUs || o.NUMACells > o.MemMiB:
		return fmt.Errorf("lab: %d NUMA cells for %d vCPUs", o.NUMACells, o.VCPUs)
	}
	return o.checkDisks()
}

// numaCell is one cell of the guest's NUMA topology.
type numaCell struct {
	ID     int
	CPUs   string
	MemMiB int
}

// Cells divides vCPUs and memory; the last cell takes the rest.
func (o GuestOptions) Cells() []numaCell {
	var cells []numaCell
	for i := range o.NUMACells {
		first, last := i*o.VCPUs/o.NUMACells, (i+1)*o.VCPUs/o.NUMACells-1
		mem := o.MemMiB / o.NUMACells
		if i == o.NUMACells-1 {
			mem = o.MemMiB - mem*i
		}
		cells = append(cells, numaCell{ID: i, CPUs: fmt.Sprintf("%d-%d", first, last), MemMiB: mem})
	}
	return cells
}

// IP is the guest's address on the client network.
func (o GuestOptions) IP() string {
	if o.Number == 0 {
		return GuestAddr
	}
	return fmt.Sprintf("10.78.0.%d", 20+o.Number)
}

// MAC is that of its first network card.
func (o GuestOptions) MAC() string {
	if o.Number == 0 {
		return guestMAC
	}
	return fmt.Sprintf("52:54:00:f7:01:%02x", o.Number)
}

// Console serves the template.
func (o GuestOptions) Console() string { return ConsolePath(o.Name) }

// GuestXML returns the domain XML of a lab guest: an ordinary domain that
// boots a kernel directly and, as far as libvirt knows, runs under TCG.
func GuestXML(o GuestOptions) (string, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return "", err
	}
	t, err := template.New("guest").Funcs(template.FuncMap{"x": escapeXML}).Parse(guestTemplate)
	if err != nil {
		return "", fmt.Errorf("lab: guest template: %w", err)
	}
	var out strings.Builder
	if err := t.Execute(&out, o); err != nil {
		return "", fmt.Errorf("lab: guest template: %w", err)
	}
	return out.String(), nil
}

func escapeXML(s string) (string, error) {
	var b strings.Builder
	err := xml.EscapeText(&b, []byte(s))
	return b.String(), err
}

const guestTemplate = `<domain type='qemu'>
  <name>{{x .Name}}</name>
{{- if .UUID}}
  <uuid>{{x .UUID}}</uuid>
{{- end}}
  <memory unit='MiB'>{{.MemMiB}}</memory>
{{- if eq .Memory "memfd"}}
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
{{- end}}
  <vcpu>{{.VCPUs}}</vcpu>
{{- with .IOThreads}}
  <iothreads>{{.}}</iothreads>
{{- end}}
  <os>
    <type arch='x86_64' machine='{{x .Machine}}'>hvm</type>
{{- if .Firmware}}
    <loader readonly='yes' type='rom'>{{x .Firmware}}</loader>
{{- else}}
    <kernel>{{x .Kernel}}</kernel>
    <initrd>{{x .Initrd}}</initrd>
    <cmdline>{{x .Cmdline}}</cmdline>
{{- end}}
  </os>
  <features><acpi/><apic/></features>
{{- with .Cells}}
  <cpu><numa>
{{- range .}}
    <cell id='{{.ID}}' cpus='{{.CPUs}}' memory='{{.MemMiB}}' unit='MiB'/>
{{- end}}
  </numa></cpu>
{{- end}}
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{{x .Emulator}}</emulator>
    <serial type='file'><source path='{{x .Console}}'/><target port='0'/></serial>
    <console type='file'><source path='{{x .Console}}'/><target type='serial' port='0'/></console>
{{- range .DiskList}}
    <disk type='file' device='disk'>
      <driver name='qemu' type='{{.Format}}' cache='{{.Cache}}' discard='unmap'{{if and .Thread (eq .Bus "virtio")}} iothread='{{.Thread}}'{{end}}/>
      <source file='{{x .Path}}'/>
      <target dev='{{.Target}}' bus='{{.Bus}}'/>
      <serial>{{.Target}}</serial>
    </disk>
{{- end}}
{{- if ge .SCSIThread 0}}
    <controller type='scsi' model='virtio-scsi'>{{with .SCSIThread}}<driver iothread='{{.}}'/>{{end}}</controller>
{{- end}}
{{- if .NIC}}
    <interface type='bridge'><mac address='{{.MAC}}'/><source bridge='br0'/><model type='virtio'/></interface>
{{- end}}
{{- if .Rich}}
    <interface type='bridge'><mac address='52:54:00:f7:00:0b'/><source bridge='br0'/><model type='e1000'/></interface>
    <interface type='bridge'><mac address='52:54:00:f7:00:0c'/><source bridge='br0'/><model type='virtio'/></interface>
    <controller type='usb' model='qemu-xhci'/>
    <input type='tablet' bus='usb'/>
    <video><model type='vga' vram='16384'/></video>
    <sound model='ich6'/>
    <audio id='1' type='none'/>
    <disk type='file' device='cdrom'><target dev='{{if eq .Machine "q35"}}sda{{else}}hda{{end}}' bus='{{if eq .Machine "q35"}}sata{{else}}ide{{end}}'/><readonly/></disk>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <watchdog model='i6300esb' action='none'/>
    <panic model='isa'/>
    <memballoon model='virtio'/>
{{- else}}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
{{- end}}
  </devices>
</domain>
`
