package virt

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// Needs is what a domain wants of a host that is to hold its standby, beside memory and room for disks.
type Needs struct {
	Name     string   `json:"name"`
	UUID     string   `json:"uuid"`
	Type     string   `json:"type"` // kvm or qemu
	Arch     string   `json:"arch"`
	Machine  string   `json:"machine"` // with its version
	Emulator string   `json:"emulator"`
	CPU      string   `json:"cpu"` // the <cpu> element as the guest sees it; empty: none
	Networks []string `json:"networks,omitempty"`
	Bridges  []string `json:"bridges,omitempty"`
}

// NeedsOf reads what a domain needs out of its migratable and its live XML. It is a pure function.
func NeedsOf(sourceXML, liveXML string) (Needs, error) {
	source, err := parseDomain(sourceXML)
	if err != nil {
		return Needs{}, err
	}
	live, err := parseDomain(liveXML)
	if err != nil {
		return Needs{}, err
	}
	n := Needs{Name: live.Name, UUID: live.UUID, Type: live.Type}
	if live.OS != nil && live.OS.Type != nil {
		n.Arch, n.Machine = live.OS.Type.Arch, live.OS.Type.Machine
	}
	if live.CPU != nil {
		cpu, err := xml.Marshal(live.CPU)
		if err != nil {
			return Needs{}, fmt.Errorf("domain %s: its <cpu>: %w", live.Name, err)
		}
		n.CPU = string(cpu)
	}
	if live.Devices != nil {
		n.Emulator = live.Devices.Emulator
	}
	if source.Devices == nil {
		return n, nil
	}
	for i := range source.Devices.Interfaces {
		switch s := source.Devices.Interfaces[i].Source; {
		case s == nil:
		case s.Network != nil && !slices.Contains(n.Networks, s.Network.Network):
			n.Networks = append(n.Networks, s.Network.Network)
		case s.Bridge != nil && !slices.Contains(n.Bridges, s.Bridge.Bridge):
			n.Bridges = append(n.Bridges, s.Bridge.Bridge)
		}
	}
	return n, nil
}

// CanRun tells whether this host's QEMU has the machine and the CPU that a domain of another host needs, as
// findings "emulator", "machine" and "cpu". The first call after a start of libvirtd may take seconds.
func (c *Conn) CanRun(ctx context.Context, n Needs) []Finding {
	v := &verdicts{}
	if n.Emulator != "" {
		if _, err := os.Stat(n.Emulator); err != nil {
			v.fail("emulator", err.Error(), "install the same QEMU packages on both hosts")
			return v.list
		}
	}
	_, err := call(ctx, c, "ask for machine "+n.Machine, n.Name, func(l *link) (string, error) {
		return l.conn.GetDomainCapabilities(n.Emulator, n.Arch, n.Machine, n.Type, 0)
	}, nil)
	var refused libvirt.Error
	switch {
	case err == nil:
		v.ok("machine", n.Machine+" on "+cmp.Or(n.Emulator, "the default emulator"))
	case errors.As(err, &refused):
		v.fail("machine", fmt.Sprintf("%s of type %s: %s", n.Machine, n.Type, refused.Message),
			"install a QEMU that is at least as new as the one the guest runs on, or run the guest with a machine type that both have")
		return v.list
	default:
		v.warn("machine", "could not be asked: "+err.Error(), "check again")
		return v.list
	}
	if n.CPU != "" {
		c.judgeCPU(ctx, v, n)
	}
	return v.list
}

// judgeCPU compares the CPU that the guest sees with what this host's hypervisor offers. It
// only warns: libvirt's comparison was seen to miss features that the hypervisor has, and a
// standby that cannot have its CPU does not start.
func (c *Conn) judgeCPU(ctx context.Context, v *verdicts, n Needs) {
	const remedy = "give the guest a CPU model that both hosts have (virsh hypervisor-cpu-baseline), or use identical hosts"
	result, err := call(ctx, c, "compare CPU", n.Name, func(l *link) (libvirt.CPUCompareResult, error) {
		return l.conn.CompareHypervisorCPU(n.Emulator, n.Arch, n.Machine, n.Type, n.CPU, libvirt.CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
	}, nil)
	var refused libvirt.Error
	errors.As(err, &refused)
	switch {
	case err == nil && (result == libvirt.CPU_COMPARE_IDENTICAL || result == libvirt.CPU_COMPARE_SUPERSET):
		v.ok("cpu", "all that the guest's CPU has can be had")
	case refused.Code == libvirt.ERR_CPU_INCOMPATIBLE || err == nil:
		v.warn("cpu", "by libvirt's comparison not all that the guest's CPU has can be had: "+cmp.Or(refused.Message, "incompatible"), remedy)
	case n.Type != "kvm":
		v.ok("cpu", "emulated: every host can") // libvirt compares with the host's own CPU, which does not matter here
	default:
		v.warn("cpu", "cannot be compared: "+cmp.Or(refused.Message, err.Error()), remedy)
	}
}

// CheckNetwork tells whether a virtual network is there and active.
func (c *Conn) CheckNetwork(ctx context.Context, name string) Finding {
	item := "network " + name
	active, err := call(ctx, c, "look up network "+name, "", func(l *link) (bool, error) {
		n, err := l.conn.LookupNetworkByName(name)
		if err != nil {
			return false, err
		}
		defer func() { _ = n.Free() }()
		return n.IsActive()
	}, nil)
	var refused libvirt.Error
	switch {
	case err == nil && active:
		return Finding{item, OK, "active", ""}
	case err == nil:
		return Finding{item, Fail, "is not active", "virsh net-start " + name + " && virsh net-autostart " + name}
	case errors.As(err, &refused) && refused.Code == libvirt.ERR_NO_NETWORK:
		return Finding{item, Fail, "is not there", "define it as on the other host (virsh net-dumpxml, virsh net-define)"}
	}
	return Finding{item, Warn, "cannot be told: " + err.Error(), "check again"}
}

// Activity tells what is under way with a running domain that a protection would meet, and where libvirt
// confines it.
func (d *Domain) Activity(ctx context.Context) []Finding {
	v := &verdicts{}
	type facts struct {
		state     State
		job       libvirt.DomainJobType
		snapshots int
	}
	f, err := onDomain(ctx, d, "look at jobs", func(h *libvirt.Domain) (f facts, err error) {
		state, reason, err := h.GetState()
		if err != nil {
			return f, err
		}
		f.state = stateOf(state, reason)
		if info, err := h.GetJobStats(0); err == nil {
			f.job = info.Type
		}
		f.snapshots, err = h.SnapshotNum(0)
		if err != nil && unsupported(err) {
			err = nil
		}
		return f, err
	})
	if err != nil {
		v.warn("activity", "cannot be told: "+err.Error(), "check again")
		return v.list
	}
	switch {
	case f.state.Status == Paused:
		v.warn("state", "paused: nobody would notice that it is protected", "virsh resume "+d.name)
	case f.job != libvirt.DOMAIN_JOB_NONE && f.job != libvirt.DOMAIN_JOB_COMPLETED:
		v.fail("state", "a job is under way: a migration, save or dump", "wait for its end, or virsh domjobabort "+d.name)
	default:
		v.ok("state", "runs, with no job under way")
	}
	if f.snapshots > 0 {
		v.warn("snapshots", fmt.Sprintf("%d, which stay on this host: a copy of a disk is one raw image without them", f.snapshots),
			"keep them, and know that the backup does not have them")
	}
	return v.list
}

// Confinement tells by what label libvirt keeps a running domain's QEMU from the rest of its host: "apparmor",
// "selinux", or empty. It is a pure function.
func Confinement(liveXML string) (string, error) {
	d, err := parseDomain(liveXML)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(d.SecLabel, func(s libvirtxml.DomainSecLabel) bool {
		return s.Type != "none" && (s.Model == "apparmor" || s.Model == "selinux")
	})
	if i < 0 {
		return "", nil
	}
	return strings.ToLower(d.SecLabel[i].Model), nil
}
