package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/diskrep"
	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/hostmem"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
)

// guest is a domain that is looked at.
type guest struct {
	dom     *virt.Domain
	arbiter string            // kind that its protection would use
	places  map[string]string // where the operator wants copies of its disks, by target

	live, source string // XML
	err          error  // why there is none
	active       bool
	protected    bool // from here, already
	ram          func() (ram, error)
	disks        func() ([]replica.Disk, error) // the writable ones

	mu       sync.Mutex
	dirtyBps float64 // bytes per second that it writes to its memory
	dirty    bool    // dirtyBps is known
}

// ram is a guest's memory, as a standby needs it.
type ram struct {
	need   hostmem.Need
	blocks int
	bytes  uint64
}

// guestOf reads what all looks need. What takes longer is asked once, by who needs
// it first.
func (d *Daemon) guestOf(ctx context.Context, dom *virt.Domain, patience time.Duration) *guest {
	g := &guest{dom: dom, arbiter: d.cfg.Arbiter.Kind}
	d.mu.Lock()
	g.protected = d.primaries[dom.UUID()] != nil
	d.mu.Unlock()
	brief, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var st virt.State
	if g.live, g.err = dom.LiveXML(brief); g.err == nil {
		g.source, g.err = dom.XML(brief)
	}
	if g.err == nil {
		st, g.err = dom.State(brief)
		g.active = st.Active()
	}
	g.ram = sync.OnceValues(func() (ram, error) {
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return within(bounded, g.readRAM)
	})
	g.disks = sync.OnceValues(func() ([]replica.Disk, error) {
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return g.readDisks(bounded)
	})
	return g
}

// within is f, or the end of ctx if f does not heed it: what /proc says of a process
// that hangs in the kernel may never be read. Then f is left to itself.
func within[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	said := make(chan answer, 1)
	go func() {
		v, err := f(ctx)
		said <- answer{v, err}
	}()
	select {
	case a := <-said:
		return a.v, a.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("no answer in time: %w", ctx.Err())
	}
}

var errNotActive = errors.New("the domain does not run")

func (g *guest) readRAM(ctx context.Context) (ram, error) {
	if g.err != nil {
		return ram{}, g.err
	}
	if !g.active {
		return ram{}, errNotActive
	}
	pid, err := g.dom.PID()
	if err != nil {
		return ram{}, err
	}
	blocks, err := guestram.Blocks(ctx, pid, g.dom.HMP)
	if err != nil {
		return ram{}, err
	}
	page, err := virt.HugePageBytes(g.source)
	if err != nil {
		return ram{}, err
	}
	r := ram{need: standbyNeed(page)}
	for _, b := range blocks {
		if b.Migratable {
			r.bytes += b.Used
			r.blocks++
			addBlock(&r.need, b.Name, b.Used)
		}
	}
	return r, nil
}

func (g *guest) readDisks(ctx context.Context) ([]replica.Disk, error) {
	if g.err != nil {
		return nil, g.err
	}
	if !g.active {
		return nil, errNotActive
	}
	list, err := virt.Disks(g.live)
	if err != nil {
		return nil, err
	}
	var ds []replica.Disk
	for _, disk := range list {
		if !disk.Replicated() {
			continue
		}
		size, err := g.dom.DiskSize(ctx, disk.Target)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", disk.Target, err)
		}
		ds = append(ds, replica.Disk{Name: disk.Target, SizeBytes: size.SizeBytes, UsedBytes: size.AllocatedBytes, Source: disk.Path, Format: disk.Format, Path: g.places[disk.Target]})
	}
	return ds, nil
}

// guestLooks are what a domain must be like.
func (d *Daemon) guestLooks(g *guest) []look {
	if g.err != nil {
		return []look{one("domain.xml", "domain XML", func(context.Context) control.Finding {
			return failed("domain.xml", "domain XML", "is libvirtd running?", g.err)
		})}
	}
	looks := []look{
		{"domain.device", "devices", func(context.Context) []control.Finding { return fromVirt("domain", virt.Judge(g.live)...) }},
		one("domain.clock", "clock", func(context.Context) control.Finding { return fromVirt("domain", virt.JudgeClock(g.live).Finding())[0] }),
		{"domain.storage", "storage", func(context.Context) []control.Finding { return checkStorage(g.live) }},
		{"domain.confinement", "confinement", func(context.Context) []control.Finding { return checkConfinement(g.live) }},
	}
	if !g.active {
		return append(looks, one("domain.ram", "memory", func(context.Context) control.Finding {
			return warned("domain.ram", "memory", "start it and check again", "the domain does not run: its memory could not be looked at")
		}))
	}
	looks = append(looks, one("domain.ram", "RAM blocks", func(context.Context) control.Finding { return checkRAM(g) }),
		look{"domain.disk_size", "size of disks", func(context.Context) []control.Finding { return checkDiskSizes(g) }})
	if g.protected {
		return append(looks, one("domain.state", "state", func(context.Context) control.Finding {
			return okay("domain.state", "state", "protected from here already")
		}))
	}
	return append(looks, look{"domain.state", "state", func(ctx context.Context) []control.Finding { return fromVirt("domain", g.dom.Activity(ctx)...) }})
}

func checkRAM(g *guest) control.Finding {
	r, err := g.ram()
	if err != nil {
		return failed("domain.ram", "RAM blocks", "see whether the daemon may trace QEMU (host: tracing QEMU, capabilities)", err)
	}
	return okay("domain.ram", "RAM blocks", "%d, %d MiB; a standby takes %d MiB, twice that during its rehearsal", r.blocks, r.bytes>>20, (r.need.Bytes+r.need.HugeBytes)>>20)
}

func checkDiskSizes(g *guest) []control.Finding {
	disks, err := g.disks()
	if err != nil {
		return []control.Finding{failed("domain.disk_size", "size of disks", "see virsh domblkinfo "+g.dom.Name(), err)}
	}
	var fs []control.Finding
	for _, disk := range disks {
		fs = append(fs, okay("domain.disk_size", "size of disk "+disk.Name, "%d MiB, of which %d MiB are in use", disk.SizeBytes>>20, disk.UsedBytes>>20))
	}
	return fs
}

// checkStorage refuses disks on storage that the backup may share: a copy of
// them could be themselves.
func checkStorage(liveXML string) []control.Finding {
	disks, err := virt.Disks(liveXML)
	if err != nil {
		return []control.Finding{failed("domain.storage", "disks", "", err)}
	}
	var fs []control.Finding
	for _, disk := range disks {
		if !disk.Replicated() || disk.Type != "file" {
			continue
		}
		const remedy = "move it to storage of this host (virsh blockcopy --pivot)"
		name, remote, err := diskrep.NetworkFilesystem(disk.Path)
		switch {
		case err != nil:
			fs = append(fs, failed("domain.storage", "disk "+disk.Target, remedy, err))
		case remote:
			fs = append(fs, failed("domain.storage", "disk "+disk.Target, remedy, fmt.Errorf("%s is on %s, which other hosts may share: replicating it would keep two copies of what is already in one place", disk.Path, name)))
		}
	}
	return fs
}

func checkConfinement(liveXML string) []control.Finding {
	by, err := virt.Confinement(liveXML)
	switch {
	case err != nil:
		return []control.Finding{failed("domain.confinement", "confinement", "", err)}
	case by == "":
		return []control.Finding{okay("domain.confinement", "confinement", "QEMU is not confined by a label")}
	}
	return []control.Finding{okay("domain.confinement", "confinement", "QEMU is confined by %s; see what the host says of it", by)}
}

// sampleDirty finds out how fast the guest writes, without stopping it.
func (g *guest) sampleDirty(ctx context.Context) {
	rate, known := g.dom.DirtyBytesPerSecond(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dirtyBps, g.dirty = rate, known
}

// domainKinds are the kinds of items that package virt judges, and the ids of
// what it finds. Longer names come before those that they begin with.
func domainKinds() [][2]string {
	return [][2]string{
		{"domain XML", "domain.xml"}, {"hypervisor", "domain.hypervisor"}, {"machine", "domain.machine"}, {"vcpu", "domain.vcpu"}, {"cpu", "domain.cpu"},
		{"numa", "domain.numa"}, {"memory device", "domain.memory_device"}, {"memory slots", "domain.memory_slots"}, {"memory", "domain.memory"},
		{"firmware", "domain.firmware"}, {"qemu:commandline", "domain.commandline"}, {"qemu:override", "domain.override"}, {"launch security", "domain.launch_security"},
		{"device", "domain.device"}, {"disk", "domain.disk"}, {"interface", "domain.interface"}, {"hostdev", "domain.hostdev"}, {"filesystem", "domain.filesystem"},
		{"shmem", "domain.shmem"}, {"tpm", "domain.tpm"}, {"redirdev", "domain.redirdev"}, {"smartcard", "domain.smartcard"}, {"crypto", "domain.crypto"},
		{"pstore", "domain.pstore"}, {"lease", "domain.lease"}, {"input", "domain.input"}, {"vsock", "domain.vsock"}, {"serial", "domain.serial"},
		{"parallel", "domain.parallel"}, {"console", "domain.console"}, {"channel", "domain.channel"}, {"graphics", "domain.graphics"}, {"video", "domain.video"},
		{"watchdog", "domain.watchdog"}, {"rng", "domain.rng"}, {"panic", "domain.panic"}, {"iommu", "domain.iommu"}, {"sound", "domain.sound"}, {"hub", "domain.hub"},
		{"controller", "domain.controller"}, {"memballoon", "domain.memballoon"}, {"nvram", "domain.nvram"}, {"audio", "domain.audio"}, {"clock", "domain.clock"},
		{"state", "domain.state"}, {"snapshots", "domain.snapshots"}, {"activity", "domain.state"},
	}
}

// hostKinds are the same for what it finds of a host.
func hostKinds() [][2]string {
	return [][2]string{
		{"lock manager", "host.lock_manager"},
		{"emulator", "peer.machine"}, {"machine", "peer.machine"}, {"cpu", "peer.cpu"}, {"network", "peer.network"},
	}
}

// fromVirt gives findings their ids; of is "domain", or "host" also for a peer's.
func fromVirt(of string, fs ...virt.Finding) []control.Finding {
	kinds, other := hostKinds(), "host.other"
	if of == "domain" {
		kinds, other = domainKinds(), "domain.other"
	}
	out := make([]control.Finding, 0, len(fs))
	for _, f := range fs {
		id := other
		for _, k := range kinds {
			if f.Item == k[0] || strings.HasPrefix(f.Item, k[0]+" ") {
				id = k[1]
				break
			}
		}
		out = append(out, control.Finding{ID: id, Item: f.Item, Level: control.Level(f.Level), Text: f.Text, Remedy: f.Remedy})
	}
	return out
}
