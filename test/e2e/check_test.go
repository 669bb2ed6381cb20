package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// finding is what this test reads of one in `virt-ft check -o json`.
type finding struct{ ID, Item, Level, Text, Remedy string }

type checkReport struct {
	Host, Peer, Domain []finding
	Link               *struct {
		RTTP50Us     float64 `json:"rtt_p50_us"`
		RTTP99Us     float64 `json:"rtt_p99_us"`
		BandwidthBps float64 `json:"bandwidth_bps"`
		Clock        *struct {
			AheadUs float64 `json:"ahead_us"`
			ErrUs   float64 `json:"err_us"`
		}
	}
}

// check runs virt-ft check for a domain and the other host.
func (p *pair) check(domain string, args ...string) checkReport {
	p.t.Helper()
	out, err := p.A.Ctl(p.step(), append([]string{"check", domain, "--to", p.B.Name, "-o", "json"}, args...)...)
	var r checkReport
	if jerr := json.Unmarshal([]byte(out), &r); jerr != nil {
		p.t.Fatalf("%v: %v\n%s", err, jerr, out)
	}
	fails := 0
	for _, f := range slices.Concat(r.Host, r.Peer, r.Domain) {
		if f.ID == "" || f.Text == "" || f.Level != "ok" && f.Remedy == "" {
			p.t.Errorf("a finding is not whole: %+v", f)
		}
		if f.Level == "fail" {
			fails++
		}
	}
	if (fails > 0) != (err != nil) {
		p.t.Errorf("%d fail, and the command says %v", fails, err)
	}
	return r
}

// of returns the findings of one id.
func (r checkReport) of(id string) (fs []finding) {
	for _, f := range slices.Concat(r.Host, r.Peer, r.Domain) {
		if f.ID == id {
			fs = append(fs, f)
		}
	}
	return fs
}

// grave returns the ids of what is not ok.
func (r checkReport) grave(level string) (ids []string) {
	for _, f := range slices.Concat(r.Host, r.Peer, r.Domain) {
		if f.Level == level {
			ids = append(ids, f.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// TestCheck: a good pair is found good; then it is broken in one way after the
// other, and each time check says so, and what to do.
func TestCheck(t *testing.T) {
	p := newPair(t, "")
	g := p.guest(small(lab.GuestOptions{Disks: []lab.GuestDisk{{Target: "vda", SizeMiB: 64}}}))
	for _, s := range []struct {
		name string
		tell func(*pair, *lab.Guest)
	}{
		{"good", checkGood}, {"disk", checkDisk}, {"bridge", checkBridge}, {"name", checkName}, {"arbiter", checkArbiter}, {"authority", checkAuthority}, {"hook", checkHook}, {"room", checkRoom}, {"daemon", checkDaemon},
	} {
		p.story(s.name, func(p *pair) { s.tell(p, g) })
	}
}

func checkGood(p *pair, g *lab.Guest) {
	start := time.Now()
	r := p.check(g.Name)
	p.t.Logf("check took %v, link %+v", time.Since(start).Round(time.Millisecond), r.Link)
	for _, f := range slices.Concat(r.Host, r.Peer, r.Domain) {
		p.t.Logf("%-4s %-22s %s: %s", f.Level, f.ID, f.Item, f.Text)
	}
	if fails := r.grave("fail"); len(fails) > 0 {
		p.t.Errorf("a good pair fails: %v", fails)
	}
	for _, id := range []string{"host.kernel", "host.dirty_tracking", "host.network_output", "host.libvirt", "host.transport", "host.certificate", "host.arbiter", "peer.reachable", "peer.version", "peer.qemu",
		"peer.libvirt", "peer.arbiter", "peer.machine", "peer.name", "peer.network", "peer.room", "peer.disk", "link.rtt", "link.clock", "link.bandwidth",
		"domain.ram", "domain.disk", "domain.disk_size", "domain.state", "domain.sync", "domain.pace"} {
		fs := r.of(id)
		if len(fs) == 0 {
			p.t.Errorf("nothing was found of %s", id)
		}
		for _, f := range fs {
			if f.Level != "ok" {
				p.t.Errorf("%+v", f)
			}
		}
	}
	// What the lab has on purpose: no hook, a clock that nobody keeps.
	for _, id := range r.grave("warn") {
		if !strings.HasPrefix(id, "domain.") && !slices.Contains([]string{"host.hook", "host.time_sync", "host.overcommit", "host.confinement", "host.open_files",
			"peer.hook", "peer.time_sync", "peer.overcommit", "peer.confinement", "peer.open_files"}, id) {
			p.t.Errorf("a good pair is warned of %s: %+v", id, r.of(id))
		}
	}
	if r.Link == nil || r.Link.RTTP50Us <= 0 || r.Link.RTTP99Us < r.Link.RTTP50Us || r.Link.BandwidthBps <= 0 || r.Link.Clock == nil {
		p.t.Fatalf("what was measured is not whole: %+v", r.Link)
	}
	// Both hosts have one clock here, which the bounds must not rule out.
	if c := r.Link.Clock; max(c.AheadUs, -c.AheadUs) > c.ErrUs+1 {
		p.t.Errorf("the peer's clock, which is ours, is said to be ahead by %v µs ± %v", c.AheadUs, c.ErrUs)
	}
	if quiet := p.check(g.Name, "--no-bandwidth"); len(quiet.of("link.bandwidth")) > 0 || quiet.Link == nil || quiet.Link.BandwidthBps != 0 {
		p.t.Errorf("the link was measured all the same: %+v", quiet.Link)
	}
}

// fails expects that check finds id wrong, with words in its text or remedy, and
// that protect refuses for it.
func (p *pair) fails(g *lab.Guest, id string, words ...string) {
	p.t.Helper()
	r := p.check(g.Name, "--no-bandwidth")
	var bad []finding
	for _, f := range r.of(id) {
		if f.Level == "fail" {
			bad = append(bad, f)
		}
	}
	if len(bad) == 0 {
		p.t.Fatalf("%s is not found wrong: %+v", id, r.of(id))
	}
	for _, w := range words {
		if !slices.ContainsFunc(bad, func(f finding) bool { return strings.Contains(f.Text+" "+f.Remedy, w) }) {
			p.t.Errorf("%s does not say %q: %+v", id, w, bad)
		}
	}
	if others := r.grave("fail"); !slices.Equal(others, []string{id}) {
		p.t.Errorf("what else fails: %v", others)
	}
	if id == "peer.reachable" {
		return
	}
	_, err := p.A.Ctl(p.step(), "protect", g.Name, "--to", p.B.Name)
	if err == nil || !strings.Contains(err.Error(), words[0]) {
		p.t.Errorf("protect: %v", err)
	}
}

func checkDisk(p *pair, g *lab.Guest) {
	p.must(os.WriteFile(p.B.ImagePath(filepath.Join(imagesDir, g.Name+"-vda.raw")), []byte("somebody else's\n"), 0o600))
	p.fails(g, "peer.disk", "is there already", "--disk")
	p.must(os.Remove(p.B.ImagePath(filepath.Join(imagesDir, g.Name+"-vda.raw"))))
}

func checkBridge(p *pair, g *lab.Guest) {
	r := p.check(g.Name, "--no-bandwidth").of("peer.network")
	if len(r) != 1 {
		p.t.Fatalf("%+v", r)
	}
	bridge := strings.TrimPrefix(r[0].Item, "bridge ")
	_, err := p.B.Run(p.step(), "ip", "link", "set", bridge, "name", "gone0")
	if err != nil { // a name changes only while it is down
		_, err = p.B.Run(p.step(), "sh", "-c", "ip link set "+bridge+" down && ip link set "+bridge+" name gone0")
	}
	p.must(err)
	p.fails(g, "peer.network", "no bridge "+bridge, "make it as on the other host")
	_, err = p.B.Run(p.step(), "sh", "-c", "ip link set gone0 down && ip link set gone0 name "+bridge+" && ip link set "+bridge+" up")
	p.must(err)
}

func checkName(p *pair, g *lab.Guest) {
	xml := "<domain type='qemu'><name>" + g.Name + "</name><memory unit='MiB'>16</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
	path, err := p.B.Root("/tmp/other.xml")
	p.must(err)
	p.must(os.MkdirAll(filepath.Dir(path), 0o777))
	p.must(os.WriteFile(path, []byte(xml), 0o644))
	_, err = p.B.Virsh(p.step(), "define", "/tmp/other.xml")
	p.must(err)
	p.fails(g, "peer.name", "no two of one name", "rename or undefine")
	_, err = p.B.Virsh(p.step(), "undefine", g.Name)
	p.must(err)
	p.must(os.Remove(path))
}

func checkArbiter(p *pair, g *lab.Guest) {
	p.must(p.B.ConfigureWith(lab.DaemonOptions{Arbiter: func(*lab.Host) string { return "kind = \"file\"\ndir = \"/var/lib/alone\"\n" }}))
	dir, err := p.B.Root("/var/lib/alone")
	p.must(err)
	p.must(os.MkdirAll(dir, 0o755))
	p.must(p.B.Daemon.Restart(p.step()))
	p.fails(g, "peer.arbiter", "must be seen from both hosts", "same arbiter")
	p.must(p.B.ConfigureWith(lab.DaemonOptions{}))
	p.must(p.B.Daemon.Restart(p.step()))
	if bad := p.check(g.Name, "--no-bandwidth").grave("fail"); len(bad) > 0 {
		p.t.Errorf("the pair is whole again, and fails: %v", bad)
	}
}

func checkDaemon(p *pair, g *lab.Guest) {
	p.must(p.B.Daemon.Stop())
	p.fails(g, "peer.reachable", "start virt-ft's daemon there")
	p.must(p.B.Daemon.Start(p.step()))
}

// checkHook: any program will do for who looks whether there is one.
func checkHook(p *pair, g *lab.Guest) {
	p.must(p.A.InstallHook(p.step(), "/bin/true"))
	if f := p.check(g.Name, "--no-bandwidth").of("host.hook"); len(f) != 1 || f[0].Level != "ok" {
		p.t.Errorf("with a hook: %+v", f)
	}
	p.must(p.A.RemoveHook())
	if f := p.check(g.Name, "--no-bandwidth").of("host.hook"); len(f) != 1 || f[0].Level != "warn" || !strings.Contains(f[0].Remedy, "install the package") {
		p.t.Errorf("without a hook: %+v", f)
	}
}

// checkRoom: storage that the guest could fill, and storage that cannot take what
// is there already.
func checkRoom(p *pair, g *lab.Guest) {
	p.must(p.B.LimitDisk(imagesDir, 32))
	if f := p.check(g.Name, "--no-bandwidth").of("peer.disk"); len(f) == 0 || f[0].Level != "warn" || !strings.Contains(f[0].Text, "has not room for all") || !strings.Contains(f[0].Remedy, "make room on "+p.B.Name) {
		p.t.Errorf("on 32 MiB: %+v", f)
	}
	image, err := p.A.DiskImage(p.step(), g.Name, "vda")
	p.must(err)
	f, err := os.OpenFile(image.Path, os.O_RDWR, 0)
	p.must(err)
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 40<<20), 0) // as if the guest had; it does not look
	p.must(err)
	p.fails(g, "peer.disk", "is missing on the file system of "+imagesDir, "make room on "+p.B.Name)
}

// checkAuthority: the peer's certificates are of an authority that this host does
// not trust, and so are its own.
func checkAuthority(p *pair, g *lab.Guest) {
	trusted, err := p.A.Root("/etc/pki/CA/cacert.pem")
	p.must(err)
	other, err := p.A.Root("/etc/pki/libvirt/servercert.pem")
	p.must(err)
	good, err := os.ReadFile(trusted)
	p.must(err)
	wrong, err := os.ReadFile(other)
	p.must(err)
	p.must(os.WriteFile(trusted, wrong, 0o644))
	r := p.check(g.Name, "--no-bandwidth")
	for id, remedy := range map[string]string{"peer.reachable": "signed by", "host.certificate": "SECURITY.md"} {
		if !slices.ContainsFunc(r.of(id), func(f finding) bool { return f.Level == "fail" && strings.Contains(f.Remedy, remedy) }) {
			p.t.Errorf("%s: %+v", id, r.of(id))
		}
	}
	p.must(os.WriteFile(trusted, good, 0o644))
	if bad := p.check(g.Name, "--no-bandwidth").grave("fail"); len(bad) > 0 {
		p.t.Errorf("with the right authority: %v", bad)
	}
}
