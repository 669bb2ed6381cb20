package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/diskrep"
	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/pki"
	"github.com/virt-ft/virt-ft/internal/probe"
)

const (
	// certLeftMin is how long before its end a certificate is warned of.
	certLeftMin = 30 * 24 * time.Hour
	// Below these, nothing was tried (docs/ARCHITECTURE.md, "Tested on").
	qemuMin, libvirtMin = "7.2.0", "9.0.0"
)

// hostLooks are what this host must be able to do, probed by use where that can be
// done. With peer somebody else says whether both hosts see one arbiter.
func (d *Daemon) hostLooks(peer bool) []look {
	many := func(id, item string, see func() []probe.Finding) look {
		return look{id, item, func(context.Context) []control.Finding { return fromProbe(see()...) }}
	}
	single := func(id, item string, see func() probe.Finding) look {
		return many(id, item, func() []probe.Finding { return []probe.Finding{see()} })
	}
	return []look{
		single("host.kernel", "kernel", func() probe.Finding { return probe.Kernel(probe.Release()) }),
		one("host.dirty_tracking", "dirty page tracking", func(context.Context) control.Finding { return checkTracking() }),
		one("host.network_output", "network output", func(context.Context) control.Finding { return checkGate() }),
		single("host.bpffs", "bpffs", func() probe.Finding { return probe.Pins(filepath.Join(d.cfg.RunDir, "bpf")) }),
		many("host.capabilities", "capabilities", func() []probe.Finding { return probe.Rights("/", d.cfg.Nice) }),
		single("host.memfd", "memfd", probe.Memfd),
		single("host.zerocopy", "zero-copy sending", probe.ZeroCopy),
		many("host.thp", "memory management", func() []probe.Finding { return probe.Memory("/") }),
		{"host.libvirt", "libvirt", d.checkLibvirt},
		{"host.lock_manager", "lock manager", func(ctx context.Context) []control.Finding {
			return fromVirt("host", d.virt.LockManager(ctx))
		}},
		single("host.hook", "libvirt's hook", func() probe.Finding { return probe.Hook("/") }),
		single("host.confinement", "confinement of QEMU", func() probe.Finding { return probe.Confinement("/") }),
		one("host.memory", "memory for standbys", func(context.Context) control.Finding { return d.checkMemory() }),
		single("host.space", "room for journals", func() probe.Finding { return probe.Space(d.cfg.StateDir, d.cfg.Disks.JournalBytesMax) }),
		{"host.transport", "transport", func(context.Context) []control.Finding { return d.checkTransport(time.Now()) }},
		single("host.control", "control socket", func() probe.Finding { return probe.Group(d.cfg.Control.Group) }),
		one("host.arbiter", "arbiter", func(ctx context.Context) control.Finding { return d.checkArbiter(ctx, peer) }),
		one("host.reprotect", "protection after a failover", func(context.Context) control.Finding {
			if d.cfg.Reprotect {
				return okay("host.reprotect", "protection after a failover", "begins by itself when the old host is back")
			}
			return okay("host.reprotect", "protection after a failover", "is left to you (reprotect = false)")
		}),
		single("host.time_sync", "time synchronisation", probe.Time),
	}
}

func checkTracking() control.Finding {
	if err := guestram.ProbeUffd(); err != nil {
		return failed("host.dirty_tracking", "dirty page tracking", "boot Linux 6.7 or newer (Debian 12: the backports kernel)", err)
	}
	return okay("host.dirty_tracking", "dirty page tracking", "userfaultfd write-protection and PAGEMAP_SCAN work")
}

func checkGate() control.Finding {
	if err := netgate.Probe(); err != nil {
		return failed("host.network_output", "network output", "run the daemon by its unit, on Linux 6.6 or newer with CONFIG_BPF_SYSCALL, CONFIG_NET_XGRESS and CONFIG_TUN", err)
	}
	return okay("host.network_output", "network output", "it can be held until the backup has what it depends on")
}

func (d *Daemon) checkLibvirt(ctx context.Context) []control.Finding {
	h, err := d.virt.Host(ctx)
	if err != nil {
		return []control.Finding{failed("host.libvirt", "libvirt", "is libvirtd running, and is "+d.cfg.LibvirtURI+" right?", err)}
	}
	f := okay("host.libvirt", "libvirt", "libvirt %s, QEMU %s", h.LibvirtVersion, h.QEMUVersion)
	if older(h.LibvirtVersion, libvirtMin) || older(h.QEMUVersion, qemuMin) {
		f.Level, f.Remedy = control.LevelWarn, fmt.Sprintf("use libvirt %s and QEMU %s or newer: older ones were never tried", libvirtMin, qemuMin)
	}
	return []control.Finding{f}
}

// older compares two versions of libvirt's, such as "9.0.0". What cannot be read
// is not older.
func older(a, b string) bool {
	var x, y [3]int
	if n, _ := fmt.Sscanf(a, "%d.%d.%d", &x[0], &x[1], &x[2]); n == 0 {
		return false
	}
	if n, _ := fmt.Sscanf(b, "%d.%d.%d", &y[0], &y[1], &y[2]); n == 0 {
		return false
	}
	for i := range x {
		if x[i] != y[i] {
			return x[i] < y[i]
		}
	}
	return false
}

// sameSeries tells whether two versions differ by updates of one release at most.
func sameSeries(a, b string) bool {
	series := func(v string) string { return v[:max(strings.LastIndexByte(v, '.'), 0)] }
	return strings.Count(a, ".") == 2 && series(a) == series(b)
}

// checkTransport judges how daemons talk to each other, and the certificates.
func (d *Daemon) checkTransport(now time.Time) []control.Finding {
	const id, item = "host.transport", "transport"
	t := d.cfg.Transport
	if t.Mode == config.TransportPlain {
		return []control.Finding{warned(id, item, `set transport.mode = "tls" on both hosts`,
			"plain: whoever reaches the port may read guests' memory, and pretend to be a host")}
	}
	if err := d.transport().Check(); err != nil {
		return []control.Finding{failed(id, item, "see docs/SECURITY.md", err)}
	}
	var fs []control.Finding
	files := pki.Files{CACert: t.CA, ServerCert: t.ServerCert, ServerKey: t.ServerKey, ClientCert: t.ClientCert, ClientKey: t.ClientKey}
	for _, c := range files.Certificates(now) {
		fs = append(fs, judgeCertificate(c, now))
	}
	return append([]control.Finding{okay(id, item, "%s", cmp.Or(t.Mode, config.TransportTLS))}, fs...)
}

func judgeCertificate(c pki.Certificate, now time.Time) control.Finding {
	const id, remedy = "host.certificate", "renew it: see docs/SECURITY.md"
	item := string(c.Use) + " certificate"
	if c.Err != nil {
		return failed(id, item, remedy, fmt.Errorf("%s: %w", c.File, c.Err))
	}
	text := fmt.Sprintf("%s, good until %s", strings.Join(c.Names, ", "), c.NotAfter.UTC().Format(time.DateOnly))
	if left := c.Left(now); left < certLeftMin {
		return warned(id, item, remedy, "%s: only %d days", text, left/(24*time.Hour))
	}
	return okay(id, item, "%s", text)
}

// checkArbiter asks the arbiter something, as a claim would ask it.
func (d *Daemon) checkArbiter(ctx context.Context, peer bool) control.Finding {
	const id, item = "host.arbiter", "arbiter"
	kind := d.cfg.Arbiter.Kind
	if kind == "" {
		return warned(id, item, "set arbiter.kind", "none is configured: protect asks for --arbiter")
	}
	a, err := d.arbiterFor(ctx, kind, "")
	if err != nil {
		return failed(id, item, "see docs/OPERATIONS.md", err)
	}
	if _, err := a.Inspect(ctx, randomUUID()); err != nil {
		return failed(id, item, "see docs/OPERATIONS.md", fmt.Errorf("%s does not answer: %w", kind, err))
	}
	if f, ok := a.(powerAsker); ok && fences(kind) {
		return checkFence(ctx, f)
	}
	if kind != config.ArbiterFile {
		return okay(id, item, "%s answers", kind)
	}
	name, shared, err := diskrep.NetworkFilesystem(d.cfg.Arbiter.Dir)
	if err == nil && !shared && !peer {
		return warned(id, item, "check again with --to HOST, which asks that host whether it sees the same directory",
			"%s is on %s, which looks like storage of this host alone: the file arbiter needs storage that both hosts share", d.cfg.Arbiter.Dir, name)
	}
	return okay(id, item, "file: %s can be read and was written to when it was opened", d.cfg.Arbiter.Dir)
}

// powerAsker is a fence agent, or a chain with one.
type powerAsker interface {
	Check(ctx context.Context) (on bool, err error)
}

// checkFence asks the fence agent for the peer's power.
func checkFence(ctx context.Context, f powerAsker) control.Finding {
	const id, item = "host.arbiter", "arbiter"
	on, err := f.Check(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return warned(id, item, "ask it by hand: its status action must answer sooner than the failover may take", "the fence agent took longer than this check waits")
	case err != nil:
		return failed(id, item, "see arbiter.fence in the configuration, and ask the agent by hand", err)
	case !on:
		return warned(id, item, "is arbiter.fence.plug the peer's?", "the fence agent answers that the peer is off")
	}
	return okay(id, item, "the fence agent answers, and the peer is on")
}

func fromProbe(fs ...probe.Finding) []control.Finding {
	out := make([]control.Finding, 0, len(fs))
	for _, f := range fs {
		out = append(out, control.Finding{ID: f.ID, Item: f.Item, Level: control.Level(f.Level), Text: f.Text, Remedy: f.Remedy})
	}
	return out
}
