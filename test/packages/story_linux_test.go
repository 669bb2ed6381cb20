package packages

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// TestMachines is a package's life on two machines: installed in an older
// version, used, upgraded under a protected guest, not removed from under it,
// a machine lost, and in the end removed and purged.
func TestMachines(t *testing.T) {
	long(t)
	from := base(t)
	assets, err := lab.FindAssets()
	if err != nil {
		t.Skip(err)
	}
	deb := build(t, root, "deb")
	older := olderThan(t, deb)
	a, b := boot(t, from, "host-a"), boot(t, from, "host-b")
	connect(a, b)
	for _, m := range []*machine{a, b} {
		m.copyIn(deb, "/root/new.deb")
		m.copyIn(older, "/root/old.deb")
	}
	installs(t, a)
	installs(t, b)
	configure(a, b)
	for _, m := range []*machine{a, b} {
		m.run("systemctl", "start", "virt-ft.service")
	}
	startsGuest(t, a, b, assets)
	checks := a.run("virt-ft", "check", guestName, "--to", "host-b")
	t.Log(checks)
	a.run("virt-ft", "protect", guestName, "--to", "host-b")
	t.Log(a.run("virt-ft", "status", guestName))
	before := asks(a)
	upgrades(t, a, b)
	refusesRemoval(t, a)
	refusesRemoval(t, b)
	a.silence()
	a.off()
	// With this arbiter a person decides: A is off, we know.
	b.await("the loss to be noticed", func() error { return inState(b, "orphaned") })
	b.await("its activation", func() error { _, err := b.try("virt-ft", "activate", guestName); return err })
	b.await("the guest to go on", func() error { return inState(b, "active") })
	after := asks(b)
	if before["boot_id"] != after["boot_id"] || after["mem_errors"] != 0.0 {
		t.Errorf("the guest was %v and is %v", before, after)
	}
	status, _ := b.try("virt-ft", "status", guestName) // fails: it is not protected any more
	t.Log(status)
	purges(t, b)
}

const guestName = "web1"

// olderThan is the same package with a lower version.
func olderThan(t *testing.T, deb string) string {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	run(t, dir, nil, "dpkg-deb", "-R", deb, tree)
	control := filepath.Join(tree, "DEBIAN/control")
	var text strings.Builder
	for line := range strings.Lines(read(t, control)) {
		if strings.HasPrefix(line, "Version: ") {
			line = "Version: 0.0~1-1\n"
		}
		text.WriteString(line)
	}
	put(t, control, text.String())
	out := filepath.Join(dir, "old.deb")
	run(t, dir, nil, "dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, out)
	return out
}

// installs the older package, with apt, so that what it depends on is true.
func installs(t *testing.T, m *machine) {
	t.Helper()
	began := strings.TrimSpace(m.run("systemctl", "show", "-P", "ActiveEnterTimestampMonotonic", "libvirtd.service"))
	out := m.run("apt-get", "install", "-y", "-q", "--no-install-recommends", "/root/old.deb")
	if !strings.Contains(out, "not started: this host has no certificate") {
		t.Errorf("%s: nobody is told why the daemon does not run:\n%s", m.name, out)
	}
	for what, c := range map[string][]string{
		"enabled":  {"systemctl", "is-enabled", "virt-ft.service"},
		"inactive": {"sh", "-c", "systemctl is-active virt-ft.service || true"},
	} {
		if got := strings.TrimSpace(m.run(c...)); got != what {
			t.Errorf("%s: the service is %s, should be %s", m.name, got, what)
		}
	}
	m.run("getent", "group", "virt-ft")
	if got := m.run("virt-ft", "version"); !strings.Contains(got, "not running") {
		t.Errorf("%s: %s", m.name, got)
	}
	if line := read(t, m.path("/etc/apparmor.d/local/abstractions/libvirt-qemu")); !strings.Contains(line, "virt-ft-qemu") {
		t.Errorf("%s: libvirt's AppArmor profile says %q", m.name, line)
	}
	// libvirtd was told to look for hooks, and not restarted.
	if now := strings.TrimSpace(m.run("systemctl", "show", "-P", "ActiveEnterTimestampMonotonic", "libvirtd.service")); now != began {
		t.Errorf("%s: libvirtd was started at %s, now at %s", m.name, began, now)
	}
	if strings.Contains(out, "was not reloaded") {
		t.Errorf("%s: %s", m.name, out)
	}
}

// configure names an arbiter and the peer, as a person would.
func configure(a, b *machine) {
	for _, m := range []*machine{a, b} {
		peer := a
		if m == a {
			peer = b
		}
		put(m.t, m.path("/etc/virt-ft/virt-ft.toml"), fmt.Sprintf(`reprotect = false
[control]
group = "virt-ft"
[transport]
mode = "plain"
[arbiter]
kind = "manual"
[peers]
%s = "%[1]s"
`, peer.name))
	}
}

// startsGuest defines and starts the lab's guest, whose QEMU is an ordinary user's, with a disk.
func startsGuest(t *testing.T, m, other *machine, assets lab.Assets) {
	t.Helper()
	const inside = "/var/lib/libvirt/boot/"
	dir := t.TempDir()
	o, err := (&lab.Lab{Dir: dir}).InstallBoot(assets)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []*machine{m, other} { // what a guest boots from is on both hosts
		host.copyIn(o.Kernel, inside+"vmlinuz")
		host.copyIn(o.Initrd+"-disks", inside+"initramfs-disks")
	}
	o.Name, o.Kernel, o.Initrd, o.NIC, o.Disks = guestName, inside+"vmlinuz", inside+"initramfs", true, []lab.GuestDisk{{}}
	xml, err := lab.GuestXML(o)
	if err != nil {
		t.Fatal(err)
	}
	put(t, m.path("/root/guest.xml"), xml)
	m.run("truncate", "-s", "64M", "/var/lib/libvirt/images/"+guestName+"-vda.raw")
	m.run("virsh", "-q", "define", "/root/guest.xml")
	m.run("virsh", "-q", "start", guestName)
	asks(m)
}

// asks the guest what it is, from a machine's bridge, until it answers.
func asks(m *machine) map[string]any {
	m.t.Helper()
	address := lab.GuestAddr + "/" + strconv.Itoa(guestapi.CommandPort)
	var answer map[string]any
	m.await("the guest's answer", func() error {
		text, err := m.try("timeout", "5", "bash", "-c", "exec 3<>/dev/tcp/"+address+"; echo status >&3; head -1 <&3")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(text), &answer)
	})
	return answer
}

func inState(m *machine, want string) error {
	out, _ := m.try("virt-ft", "status", "-o", "json", guestName)
	if !strings.Contains(out, `"state": "`+want+`"`) && !strings.Contains(out, `"state":"`+want+`"`) {
		return fmt.Errorf("it is not %s: %s", want, out)
	}
	return nil
}

// upgrades both hosts, the guest's first, and finds it protected again each time.
func upgrades(t *testing.T, a, b *machine) {
	t.Helper()
	for _, m := range []*machine{a, b} {
		pid := m.run("systemctl", "show", "-P", "MainPID", "virt-ft.service")
		m.run("apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold", "/root/new.deb")
		if now := m.run("systemctl", "show", "-P", "MainPID", "virt-ft.service"); now == pid || strings.TrimSpace(now) == "0" {
			t.Errorf("%s: the daemon was process %s and is %s", m.name, pid, now)
		}
		if text := read(t, m.path("/etc/virt-ft/virt-ft.toml")); !strings.Contains(text, `mode = "plain"`) {
			t.Errorf("%s: the configuration was replaced", m.name)
		}
		a.await("the guest to be protected again", func() error { return inState(a, "protected") })
		asks(a)
	}
}

// refusesRemoval: the package stays, and so does its daemon.
func refusesRemoval(t *testing.T, m *machine) {
	t.Helper()
	out, err := m.try("dpkg", "--purge", "virt-ft")
	if err == nil || !strings.Contains(out, "is refused: a protection is not over for: "+guestName) {
		t.Errorf("%s: removed under a protected guest: %v\n%s", m.name, err, out)
	}
	m.run("systemctl", "is-active", "virt-ft.service")
	m.run("test", "-e", "/var/lib/virt-ft")
	m.run("sh", "-c", "echo virt-ft install | dpkg --set-selections") // it was noted as to be purged
}

// purges: the guest ends, then the package goes, and nothing of it is left.
func purges(t *testing.T, m *machine) {
	t.Helper()
	m.run("virsh", "-q", "destroy", guestName)
	m.await("the protection to end", func() error {
		out, err := m.try("sh", "-c", "cat /var/lib/virt-ft/*.json")
		if !strings.Contains(strings.ReplaceAll(out, " ", ""), `"phase":"ended"`) {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	m.run("apt-get", "remove", "-y", "-q", "virt-ft")
	if out, _ := m.try("systemctl", "is-active", "virt-ft.service"); strings.TrimSpace(out) == "active" {
		t.Error("the daemon runs on")
	}
	m.run("test", "-e", "/etc/virt-ft/virt-ft.toml")
	m.run("test", "-e", "/var/lib/virt-ft")
	m.run("dpkg", "--purge", "virt-ft")
	left := m.run("find", "/", "-xdev", "-name", "*virt-ft*", "-not", "-path", "/proc/*", "-not", "-path", "/var/log/*", "-not", "-path", "/root/*")
	left += m.run("sh", "-c", "ls -d /run/virt-ft /run/systemd/system/*virt-ft* 2>/dev/null || true")
	left += m.run("sh", "-c", "grep -rl virt-ft /etc/apparmor.d /etc/libvirt/hooks 2>/dev/null || true")
	if left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}
