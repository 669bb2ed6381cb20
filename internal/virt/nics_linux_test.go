package virt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/virt/virttest"
)

// TestLiveNICs asks a real libvirt what its live XML says of each kind of interface it can make here, and
// checks that the taps it names exist and that QEMU announces.
func TestLiveNICs(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		if _, err := os.Stat("/dev/net/tun"); err != nil {
			t.Skip("needs /dev/net/tun")
		}
		ctx := testContext(t)
		c := mustOpen(t, h)
		mustBridge(t, "br0")
		mustNetwork(t, ctx, c, `<network><name>bridged</name><forward mode='bridge'/><bridge name='br0'/></network>`)
		d := mustCreateXML(t, c, withNICs(`
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><model type='virtio'/></interface>
<interface type='network'><mac address='52:54:00:00:00:02'/><source network='bridged'/><model type='e1000'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:03'/><target dev='tap9'/><model type='virtio'/></interface>`))
		xml, err := d.LiveXML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		nics, err := NICs(xml)
		if err != nil || len(nics) != 3 {
			t.Fatalf("%+v, %v in\n%s", nics, err, xml)
		}
		t.Logf("%+v of\n%s", nics, xml[strings.Index(xml, "<interface"):strings.LastIndex(xml, "</interface>")])
		for i, n := range nics {
			link, err := netlink.LinkByName(n.Dev)
			if err != nil || link.Type() != "tuntap" && link.Type() != "tun" {
				t.Errorf("%s: %v, %v", n.Dev, link, err)
			}
			if n.MAC != fmt.Sprintf("52:54:00:00:00:%02d", i+1) || n.Alias != fmt.Sprintf("net%d", i) || n.Model == "" {
				t.Errorf("interface %d: %+v", i, n)
			}
		}
		if nics[2].Dev != "tap9" {
			t.Errorf("ethernet: %+v", nics[2])
		}
		for _, f := range Judge(xml) {
			if f.Level == Fail || strings.HasPrefix(f.Item, "interface ") && f.Level != OK {
				t.Errorf("refused: %+v", f)
			}
		}
		testAnnounce(t, ctx, d, nics)
		testLiveRefusals(t, ctx, d, c)
	})
}

// testLiveRefusals runs the domain again with interfaces that have no tap.
func testLiveRefusals(t *testing.T, ctx context.Context, d *Domain, c *Conn) {
	t.Helper()
	if err := d.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	d = mustCreateXML(t, c, withNICs(`
<interface type='user'><mac address='52:54:00:00:00:01'/></interface>
<interface type='server'><mac address='52:54:00:00:00:02'/><source address='127.0.0.1' port='5558'/></interface>
<interface type='udp'><mac address='52:54:00:00:00:03'/><source address='127.0.0.1' port='5559'><local address='127.0.0.1' port='5560'/></source></interface>`))
	xml, err := d.LiveXML(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if nics, err := NICs(xml); !errors.Is(err, ErrNotHeld) {
		t.Errorf("%+v, %v", nics, err)
	}
	for i, kind := range []string{"user", "server", "udp"} {
		expect(t, Judge(xml), fmt.Sprintf("interface 52:54:00:00:00:%02d", i+1), Fail, "type "+kind)
	}
}

// TestLiveBandwidth: a limit on what the guest sends is a qdisc of libvirt's on the tap, and the interface is
// told like any other.
func TestLiveBandwidth(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		if _, err := os.Stat("/dev/net/tun"); err != nil {
			t.Skip("needs /dev/net/tun")
		}
		ctx := testContext(t)
		c := mustOpen(t, h)
		mustBridge(t, "br0")
		d, err := createXML(ctx, c, withNICs(`
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>
  <bandwidth><outbound average='128' peak='256' burst='256'/></bandwidth><model type='virtio'/></interface>`))
		if err != nil && strings.Contains(err.Error(), "Child process (tc ") {
			t.Skipf("needs a kernel with the traffic control that libvirt asks for: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		xml, err := d.LiveXML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		nics, err := NICs(xml)
		if err != nil || len(nics) != 1 || nics[0].MAC != "52:54:00:00:00:01" || !strings.Contains(xml, "<bandwidth>") {
			t.Fatalf("%+v, %v in\n%s", nics, err, xml)
		}
		link, err := netlink.LinkByName(nics[0].Dev)
		if err != nil {
			t.Fatal(err)
		}
		qdiscs, err := netlink.QdiscList(link)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == "ingress" }) {
			t.Errorf("no ingress qdisc on %s: %v", nics[0].Dev, qdiscs)
		}
	})
}

// testAnnounce sees the announcement of each interface come out of its tap.
func testAnnounce(t *testing.T, ctx context.Context, d *Domain, nics []NIC) {
	t.Helper()
	const rarp = 0x8035
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, rarp>>8|rarp&0xff<<8)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval((30 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	if err := d.Announce(ctx); err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{}
	for _, n := range nics {
		missing[n.MAC] = true
	}
	for b := make([]byte, 2048); len(missing) > 0; {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			t.Fatalf("no announcement of %v: %v", missing, err)
		}
		if n >= 12 {
			delete(missing, fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[6], b[7], b[8], b[9], b[10], b[11]))
		}
	}
}

func withNICs(xml string) string {
	return strings.Replace(virttest.IdleXML("web1", guestUUID), "</devices>", xml+"</devices>", 1)
}

func mustBridge(t *testing.T, name string) {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	err := netlink.LinkAdd(bridge)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("needs a kernel with bridges")
	}
	if err == nil {
		err = netlink.LinkSetUp(bridge)
	}
	if err != nil {
		t.Fatalf("bridge %s: %v", name, err)
	}
}

func mustNetwork(t *testing.T, ctx context.Context, c *Conn, xml string) {
	t.Helper()
	_, err := call(ctx, c, "create network", "", func(l *link) (struct{}, error) {
		n, err := l.conn.NetworkCreateXML(xml)
		if err == nil {
			err = n.Free()
		}
		return struct{}{}, err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}
