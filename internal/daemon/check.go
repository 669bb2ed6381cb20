package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/diskrep"
	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/virt"
)

// Check implements control.Service.
func (d *Daemon) Check(ctx context.Context, domain, to string) (control.CheckReport, error) {
	r := control.CheckReport{HostName: d.cfg.Host, Host: d.checkHost(ctx)}
	if to != "" {
		r.Host = append(r.Host, d.checkPeer(ctx, to))
	}
	if domain == "" {
		return r, nil
	}
	dom, err := d.lookup(ctx, domain)
	if err != nil {
		return r, err
	}
	r.DomainName = dom.Name()
	r.Domain, err = d.checkDomain(ctx, dom)
	return r, err
}

func ok(item, format string, args ...any) control.Finding {
	return control.Finding{Item: item, Level: control.LevelOK, Text: fmt.Sprintf(format, args...)}
}

func fail(item, remedy string, err error) control.Finding {
	return control.Finding{Item: item, Level: control.LevelFail, Text: err.Error(), Remedy: remedy}
}

// checkHost probes by use what the host must be able to do.
func (d *Daemon) checkHost(ctx context.Context) []control.Finding {
	var fs []control.Finding
	if err := guestram.ProbeUffd(); err != nil {
		fs = append(fs, fail("dirty page tracking", "boot Linux 6.7 or newer (Debian 12: the backports kernel)", err))
	} else {
		fs = append(fs, ok("dirty page tracking", "userfaultfd write-protection and PAGEMAP_SCAN work"))
	}
	if err := netgate.Probe(); err != nil {
		fs = append(fs, fail("network output", "", err))
	} else {
		fs = append(fs, ok("network output", "it can be held until the backup has what it depends on"))
	}
	if h, err := d.virt.Host(ctx); err != nil {
		fs = append(fs, fail("libvirt", "is libvirtd running, and is "+d.cfg.LibvirtURI+" right?", err))
	} else {
		fs = append(fs, ok("libvirt", "libvirt %s, QEMU %s", h.LibvirtVersion, h.QEMUVersion))
	}
	fs = append(fs, d.checkMemory())
	fs = append(fs, fromVirt(d.virt.LockManager(ctx))...)
	if err := d.transport().Check(); err != nil {
		fs = append(fs, fail("transport", "", err))
	} else {
		fs = append(fs, ok("transport", "%s", d.cfg.Transport.Mode))
	}
	switch {
	case d.cfg.Arbiter.Kind == "":
		fs = append(fs, control.Finding{Item: "arbiter", Level: control.LevelWarn, Text: "none is configured: protect asks for --arbiter", Remedy: "set arbiter.kind"})
	default:
		if _, err := d.arbiterFor(ctx, d.cfg.Arbiter.Kind, ""); err != nil {
			fs = append(fs, fail("arbiter", "see docs/OPERATIONS.md", err))
		} else {
			fs = append(fs, ok("arbiter", "%s", d.cfg.Arbiter.Kind))
		}
	}
	return fs
}

func (d *Daemon) checkPeer(ctx context.Context, to string) control.Finding {
	addr, err := d.peerAddr(to)
	if err != nil {
		return fail("peer", "", err)
	}
	start := time.Now()
	c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return fail("peer", "is virt-ft's daemon running there, and the port open?", err)
	}
	defer c.Close()
	return ok("peer", "%s answers on %s after %v", to, addr, time.Since(start).Round(time.Microsecond))
}

// checkDomain judges the domain's devices, and the RAM blocks of its QEMU.
func (d *Daemon) checkDomain(ctx context.Context, dom *virt.Domain) ([]control.Finding, error) {
	xml, err := dom.LiveXML(ctx)
	if err != nil {
		return nil, err
	}
	fs := append(fromVirt(virt.Judge(xml)...), checkStorage(xml)...)
	fs = append(fs, fromVirt(virt.JudgeClock(xml).Finding())...)
	st, err := dom.State(ctx)
	if err != nil {
		return fs, err
	}
	if !st.Active() {
		return append(fs, control.Finding{Item: "memory", Level: control.LevelWarn, Text: "the domain does not run: its memory could not be looked at", Remedy: "start it and check again"}), nil
	}
	pid, err := dom.PID()
	if err != nil {
		return fs, err
	}
	blocks, err := guestram.Blocks(ctx, pid, dom.HMP)
	if errors.Is(err, guestram.ErrUnsupported) {
		return append(fs, fail("memory", "", err)), nil
	}
	if err != nil {
		return fs, err
	}
	var total uint64
	n := 0
	for _, b := range blocks {
		if b.Migratable {
			total += b.Used
			n++
		}
	}
	return append(fs, ok("memory", "%d RAM blocks, %d MiB", n, total>>20)), nil
}

// checkStorage refuses disks on storage that the backup may share: a copy of
// them could be themselves.
func checkStorage(liveXML string) []control.Finding {
	disks, err := virt.Disks(liveXML)
	if err != nil {
		return []control.Finding{fail("disks", "", err)}
	}
	var fs []control.Finding
	for _, disk := range disks {
		if !disk.Replicated() || disk.Type != "file" {
			continue
		}
		name, remote, err := diskrep.NetworkFilesystem(disk.Path)
		switch {
		case err != nil:
			fs = append(fs, fail("disk "+disk.Target, "", err))
		case remote:
			fs = append(fs, control.Finding{Item: "disk " + disk.Target, Level: control.LevelFail, Text: disk.Path + " is on " + name +
				", which other hosts may share: replicating it would keep two copies of what is already in one place", Remedy: "move it to storage of this host (virsh blockcopy --pivot)"})
		}
	}
	return fs
}

// checkPlaces refuses places for disks that the guest does not have.
func checkPlaces(ctx context.Context, dom *virt.Domain, places map[string]string) error {
	if len(places) == 0 {
		return nil
	}
	live, err := dom.LiveXML(ctx)
	if err != nil {
		return err
	}
	disks, err := virt.Disks(live)
	if err != nil {
		return err
	}
	var names []string
	for _, disk := range disks {
		if disk.Replicated() {
			names = append(names, disk.Target)
		}
	}
	for name, path := range places {
		if !slices.Contains(names, name) {
			return control.Errorf(control.CodeInvalid, "", "%s has no writable disk %s, only: %s", dom.Name(), name, strings.Join(names, ", "))
		}
		if err := checkPlace(path); err != nil {
			return control.Errorf(control.CodeInvalid, "", "disk %s: %w", name, err)
		}
	}
	return nil
}

// checkPlace refuses what cannot be the place of an image.
func checkPlace(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("%q is not an absolute, clean path", path)
	}
	return nil
}

// refuse turns failed findings into one error.
func (d *Daemon) refuse(ctx context.Context, dom *virt.Domain, to string) error {
	fs, err := d.checkDomain(ctx, dom)
	if err != nil {
		return err
	}
	fs = append(fs, d.checkHost(ctx)...)
	var why, remedies []string
	for _, f := range fs {
		if f.Level == control.LevelFail {
			why = append(why, f.Item+": "+f.Text)
			if f.Remedy != "" {
				remedies = append(remedies, f.Remedy)
			}
		}
	}
	if len(why) == 0 {
		return nil
	}
	return control.Errorf(control.CodeRefused, strings.Join(remedies, "; "), "%s cannot be protected: %s", dom.Name(), strings.Join(why, "; "))
}

func fromVirt(fs ...virt.Finding) []control.Finding {
	out := make([]control.Finding, 0, len(fs))
	for _, f := range fs {
		out = append(out, control.Finding{Item: f.Item, Level: control.Level(f.Level), Text: f.Text, Remedy: f.Remedy})
	}
	return out
}
