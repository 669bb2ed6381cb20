package virt

import (
	"strings"

	"libvirt.org/go/libvirtxml"
)

// ClockAdvice says what becomes of a guest's time while it is protected, as far as its XML tells. Which clock a guest counts
// by is its own choice; Linux prefers the TSC if invtsc promises that it is steady, else kvmclock, else hpet.
type ClockAdvice struct {
	KVM      bool `json:"kvm"`      // false: TCG
	KVMClock bool `json:"kvmclock"` // the guest is offered KVM's clock
	HyperV   bool `json:"hyperv"`   // the guest is offered Hyper-V's clock
	TSC      bool `json:"tsc"`      // the guest is told that its TSC is steady (CPU feature invtsc)
	HPET     bool `json:"hpet"`     // there is an emulated high precision timer, which stands still in each pause

	Level  Level  `json:"level"`
	Text   string `json:"text"`             // one line: what virt-ft does about the clock
	Remedy string `json:"remedy,omitempty"` // one line: what to change in the XML; empty if nothing
}

// Finding is the advice as `check` shows it.
func (a ClockAdvice) Finding() Finding { return Finding{"clock", a.Level, a.Text, a.Remedy} }

// JudgeClock tells from the live XML of a domain what becomes of its clock. It is a pure function. libvirt's defaults count
// for what the XML does not mention: kvmclock is there, invtsc and Hyper-V's clock are not, and hpet is.
func JudgeClock(domainXML string) ClockAdvice {
	d, err := parseDomain(domainXML)
	if err != nil {
		return ClockAdvice{Level: Fail, Text: err.Error(), Remedy: "report this: virt-ft cannot read what libvirt says about the domain"}
	}
	a := ClockAdvice{KVM: d.Type == "kvm", HPET: timerPresent(d, "hpet", true)}
	if !a.KVM {
		a.Level = Warn
		a.Text = "TCG: not corrected. The guest's clock stands still in each pause, and falls behind by their sum"
		a.Remedy = "let the guest ask a time server (chrony, with makestep), or use KVM (<domain type='kvm'>)"
		return a
	}
	a.KVMClock = timerPresent(d, "kvmclock", true) && !hidden(d) && cpuFeature(d, "kvmclock", true)
	a.HyperV = timerPresent(d, "hypervclock", false)
	a.TSC = cpuFeature(d, "invtsc", false)
	a.judge(timer(d, "tsc"))
	return a
}

// judge fills in the words for a guest under KVM. tsc is its timer of that name, or nil.
func (a *ClockAdvice) judge(tsc *libvirtxml.DomainTimer) {
	var does, put []string
	a.Level = OK
	switch {
	case a.KVMClock:
		does = append(does, "kvmclock: corrected at each resume, and after a failover")
	case a.HyperV:
		does = append(does, "Hyper-V's clock: counts with kvmclock, which is corrected at each resume")
	case a.TSC:
		does = append(does, "no kvmclock")
	default:
		a.Level = Warn
		does = append(does, "no kvmclock: what the guest counts by instead may stand still in each pause, which is not corrected")
	}
	if !a.KVMClock {
		put = append(put, "put <timer name='kvmclock' present='yes'/> into <clock>, and remove what hides KVM or its clock from the guest")
	}
	if a.TSC {
		does = append(does, "TSC (invtsc; Linux prefers it): runs on by itself in a pause, and is advanced right after activation")
		if tsc == nil || tsc.Frequency == 0 {
			a.Level = Warn
			does = append(does, "its rate is that of this host's CPU, and another one's may differ")
			put = append(put, "fix the rate by <timer name='tsc' frequency='HZ'/>, with the HZ of the host that has it lower, or remove "+
				"the feature invtsc, so that Linux prefers kvmclock")
		}
	}
	if a.HPET {
		// It is what a guest checks its TSC by if it has no clock of the hypervisor, and falls back to.
		does = append(does, "hpet: stands still in each pause; not corrected")
		put = append(put, "put <timer name='hpet' present='no'/> into <clock>, so that no guest counts by it")
		if !a.KVMClock {
			a.Level = Warn
		}
	}
	a.Text, a.Remedy = strings.Join(does, ". "), strings.Join(put, "; ")
}

// timer is what the XML says of a timer; nil for nothing.
func timer(d *libvirtxml.Domain, name string) *libvirtxml.DomainTimer {
	if d.Clock == nil {
		return nil
	}
	for i := range d.Clock.Timer {
		if d.Clock.Timer[i].Name == name {
			return &d.Clock.Timer[i]
		}
	}
	return nil
}

// timerPresent says whether the guest has that timer; byDefault is the answer of an XML that does not say.
func timerPresent(d *libvirtxml.Domain, name string, byDefault bool) bool {
	t := timer(d, name)
	if t == nil || t.Present == "" { // QEMU is told of what is said only
		return byDefault
	}
	return t.Present == "yes"
}

// hidden says whether the guest is kept from seeing that it runs under KVM.
func hidden(d *libvirtxml.Domain) bool {
	f := d.Features
	return f != nil && f.KVM != nil && f.KVM.Hidden != nil && f.KVM.Hidden.State == "on"
}

// cpuFeature says whether the virtual CPU has a feature; byDefault is the answer of an XML that does not say.
func cpuFeature(d *libvirtxml.Domain, name string, byDefault bool) bool {
	if d.CPU == nil {
		return byDefault
	}
	for _, f := range d.CPU.Features {
		if f.Name == name {
			return f.Policy == "" || f.Policy == "require" || f.Policy == "force" || f.Policy == "optional"
		}
	}
	return byDefault
}
