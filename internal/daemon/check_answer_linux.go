package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/hostmem"
	"github.com/virt-ft/virt-ft/internal/probe"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
)

const (
	// peerNeedsMax bounds each list in a question.
	peerNeedsMax = 256
	// versionsPatience is how long libvirtd may take to tell what it is.
	versionsPatience = time.Second
)

// peerNeeds is what a guest needs of the host that is to hold its standby.
type peerNeeds struct {
	virt.Needs
	Memory *hostmem.Need  `json:"memory,omitempty"` // nil: not known
	Disks  []replica.Disk `json:"disks,omitempty"`
}

func (g *guest) peerNeeds() (*peerNeeds, error) {
	if g.err != nil {
		return nil, g.err
	}
	needs, err := virt.NeedsOf(g.source, g.live)
	if err != nil {
		return nil, err
	}
	n := &peerNeeds{Needs: needs}
	if r, err := g.ram(); err == nil {
		n.Memory = &r.need
	}
	n.Disks, _ = g.disks() // that they cannot be read is a finding of the domain
	return n, nil
}

func (n *peerNeeds) check() error {
	if len(n.Networks) > peerNeedsMax || len(n.Bridges) > peerNeedsMax || len(n.Disks) > replica.MaxDisks {
		return errors.New("more networks, bridges or disks than a guest can have")
	}
	if _, err := replica.ParseUUID(n.UUID); err != nil {
		return err
	}
	if n.Name == "" || len(n.Name) > replica.MaxNameBytes || len(n.Emulator) > replica.MaxPathBytes || len(n.CPU) > replica.MaxXMLBytes {
		return errors.New("the domain's name, emulator or CPU is missing or too long")
	}
	for _, disk := range n.Disks {
		if disk.SizeBytes == 0 || disk.SizeBytes >= 1<<60 || disk.UsedBytes >= 1<<60 {
			return fmt.Errorf("disk %q of %d bytes", disk.Name, disk.SizeBytes)
		}
	}
	return nil
}

// versions tells what runs here; what libvirt does not tell in time stays empty.
func (d *Daemon) versions(ctx context.Context) hostVersion {
	ctx, cancel := context.WithTimeout(ctx, versionsPatience)
	defer cancel()
	v := hostVersion{Kernel: probe.Release()}
	if h, err := d.virt.Host(ctx); err == nil {
		v.Libvirt, v.QEMU = h.LibvirtVersion, h.QEMUVersion
	}
	return v
}

// answerQuestion tells another daemon what this host is like for its guest; see
// replica.ListenerOptions. The peer is one that may protect guests to here, so
// it may also know this.
func (d *Daemon) answerQuestion(ctx context.Context, _ replica.Peer, _ *replica.Hello, question []byte) ([]byte, error) {
	var q peerQuestion
	if err := json.Unmarshal(question, &q); err != nil {
		return nil, fmt.Errorf("the question cannot be read: %w", err)
	}
	if q.Guest != nil {
		if err := q.Guest.check(); err != nil {
			return nil, fmt.Errorf("the question makes no sense: %w", err)
		}
	}
	patience := min(max(time.Duration(q.PatienceNs), 2*versionsPatience), refusePatience) - versionsPatience
	looks := slices.DeleteFunc(d.hostLooks(true), func(l look) bool { return l.id == "host.arbiter" || l.id == "host.reprotect" })
	looks = append(looks, d.answerLooks(q)...)
	a := peerAnswer{Host: d.cfg.Host, Software: d.Version().Version, Versions: d.versions(ctx)}
	fine := 0
	for _, f := range d.gather(ctx, patience*4/5, looks) {
		rest, ofHost := strings.CutPrefix(f.ID, "host.")
		switch {
		case !ofHost:
		case f.Level == control.LevelOK:
			fine++
			continue
		case f.ID == "host.dirty_tracking" || f.ID == "host.transport" || f.ID == "host.certificate":
			// It can hold a standby; the guest could not be protected from there.
			f.ID, f.Level = "peer."+rest, control.LevelWarn
		default:
			f.ID = "peer." + rest
		}
		a.Findings = append(a.Findings, f)
	}
	a.Findings = append(a.Findings, okay("peer.host", "that host", "%d things are as they should be", fine))
	return json.Marshal(a)
}

// answerLooks are what only somebody else's guest makes worth looking at.
func (d *Daemon) answerLooks(q peerQuestion) []look {
	looks := []look{one("peer.arbiter", "arbiter", func(ctx context.Context) control.Finding { return d.answerArbiter(ctx, q) })}
	n := q.Guest
	if n == nil {
		return looks
	}
	looks = append(looks,
		look{"peer.machine", "machine and CPU", func(ctx context.Context) []control.Finding { return fromVirt("host", d.virt.CanRun(ctx, n.Needs)...) }},
		one("peer.name", "name and UUID", func(ctx context.Context) control.Finding { return d.answerName(ctx, n.Name, n.UUID) }),
		look{"peer.network", "networks", func(ctx context.Context) []control.Finding { return d.answerNetworks(ctx, n.Needs) }},
	)
	if n.Memory != nil {
		looks = append(looks, one("peer.room", "memory", func(context.Context) control.Finding { return d.answerMemory(n.Name, *n.Memory) }))
	}
	if len(n.Disks) > 0 {
		looks = append(looks, look{"peer.disk", "disks", func(ctx context.Context) []control.Finding { return d.answerDisks(ctx, q) }})
	}
	return looks
}

func (d *Daemon) answerArbiter(ctx context.Context, q peerQuestion) control.Finding {
	const id, item = "peer.arbiter", "arbiter"
	if q.Arbiter == "" {
		return warned(id, item, "set arbiter.kind on both hosts", "the other host names none")
	}
	a, err := d.arbiterFor(ctx, q.Arbiter, q.ArbiterIdentity)
	if err != nil {
		return failed(id, item, "set up the same arbiter on both hosts: see docs/OPERATIONS.md", err)
	}
	if _, err := a.Inspect(ctx, randomUUID()); err != nil {
		return failed(id, item, "see docs/OPERATIONS.md", fmt.Errorf("%s does not answer on %s: %w", q.Arbiter, d.cfg.Host, err))
	}
	switch kind := d.cfg.Arbiter.Kind; {
	case kind != "" && kind != q.Arbiter:
		return warned(id, item, "set the same arbiter.kind on both hosts", "%s is what %s uses for guests of its own, and %s answers there, too", kind, d.cfg.Host, q.Arbiter)
	case q.ArbiterIdentity == "":
		return okay(id, item, "%s answers there, too", q.Arbiter)
	}
	return okay(id, item, "%s: both hosts see the same one", q.Arbiter)
}

// answerName finds a domain that would be in the standby's way.
func (d *Daemon) answerName(ctx context.Context, name, uuid string) control.Finding {
	const id, item = "peer.name", "name and UUID"
	for _, by := range []string{name, uuid} {
		dom, err := d.virt.Lookup(ctx, by)
		switch {
		case errors.Is(err, virt.ErrNoDomain):
		case err != nil:
			return warned(id, item, "check again", "cannot be told: %v", err)
		case dom.UUID() != uuid || dom.Name() != name:
			return failed(id, item, "rename or undefine one of them", fmt.Errorf("%s has a domain %s (%s) already, and libvirt takes no two of one name or UUID", d.cfg.Host, dom.Name(), dom.UUID()))
		}
	}
	return okay(id, item, "no other domain has them there")
}

func (d *Daemon) answerNetworks(ctx context.Context, n virt.Needs) []control.Finding {
	var fs []control.Finding
	for _, name := range n.Networks {
		fs = append(fs, fromVirt("host", d.virt.CheckNetwork(ctx, name))...)
	}
	for _, name := range n.Bridges {
		if _, err := net.InterfaceByName(name); err != nil {
			fs = append(fs, failed("peer.network", "bridge "+name, "make it as on the other host, with a port in the same network", fmt.Errorf("%s has no bridge %s", d.cfg.Host, name)))
			continue
		}
		fs = append(fs, okay("peer.network", "bridge "+name, "is there"))
	}
	return fs
}

func (d *Daemon) answerMemory(name string, need hostmem.Need) control.Finding {
	const id, item = "peer.room", "memory for the standby"
	err := d.memory.Fits(name, need)
	var short *hostmem.ShortError
	switch {
	case errors.As(err, &short):
		return failed(id, item, short.Remedy(), err)
	case err != nil:
		return failed(id, item, "see the daemon's log there", err)
	}
	r, err := d.memory.Report()
	if err != nil {
		return failed(id, item, "see the daemon's log there", err)
	}
	room, _ := r.RoomBytes()
	f := okay(id, item, "%d MiB are needed, %d MiB can be had", (need.Bytes+need.HugeBytes)>>20, room>>20)
	twice := hostmem.Need{Bytes: 2 * need.Bytes, HugeBytes: 2 * need.HugeBytes, HugePageBytes: need.HugePageBytes}
	if d.memory.Fits(name, twice) != nil {
		f.Level, f.Remedy = control.LevelWarn, "free memory there"
		f.Text += ": its rehearsal needs as much again for a moment"
	}
	return f
}

// answerDisks tells whether copies of the guest's disks have a place here.
func (d *Daemon) answerDisks(ctx context.Context, q peerQuestion) []control.Finding {
	const id, remedy = "peer.disk", "name another place with --disk, or set disks.place there"
	n := q.Guest
	rec, err := d.disks.Get(n.UUID)
	if err != nil {
		return []control.Finding{failed(id, "disks", "see the daemon's log there", err)}
	}
	if a, err := d.arbiterFor(ctx, q.Arbiter, ""); err == nil {
		d.lookUpStale(ctx, a, n.UUID, &rec)
	}
	var fs []control.Finding
	var placed []replica.Disk
	var paths []string
	for _, disk := range n.Disks {
		path, err := d.placeDisk(n.UUID, n.Name, rec, disk)
		if err == nil && slices.Contains(paths, path) {
			err = fmt.Errorf("%s is where another disk of this guest goes: each needs a place of its own", path)
		}
		if err != nil {
			fs = append(fs, failed(id, "disk "+disk.Name, remedy, err))
			continue
		}
		placed, paths = append(placed, disk), append(paths, path)
	}
	warnings, err := roomFor(placed, paths)
	if err != nil {
		return append(fs, failed(id, "room for disks", "make room on "+d.cfg.Host+", or "+remedy, err))
	}
	for _, w := range warnings {
		fs = append(fs, warned(id, "room for disks", "make room on "+d.cfg.Host+" before the guest fills its disk", "%s", w))
	}
	for i, disk := range placed {
		fs = append(fs, okay(id, "disk "+disk.Name, "%s on %s, %d MiB in use", paths[i], d.cfg.Host, disk.UsedBytes>>20))
	}
	return fs
}
