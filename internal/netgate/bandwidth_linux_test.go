package netgate

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestBandwidth: the qdiscs that libvirt makes of <bandwidth> (htb at the root
// of the guest's tap, ingress with a filter for what the guest sends) stay and
// work, whether they were there before the gate or came after.
func TestBandwidth(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		// On the goroutine of this test: a subtest has a thread of its own.
		bandwidth(t, when == "before")
		if t.Failed() {
			t.Fatalf("qdiscs made %s the gate", when)
		}
	}
}

func bandwidth(t *testing.T, before bool) {
	inNamespace(t)
	guest, world, other := plug(t, "g0", 1), plug(t, "w0", 1), plug(t, "w1", 1)
	odd := plug(t, "odd", 1)
	must(t, netlink.LinkSetNoMaster(linkOf(t, "odd")))
	defer func() { guest.unplug(); world.unplug(); other.unplug(); odd.unplug() }()
	var g *Gate
	if before {
		limit(t, odd)
		g = open(t, Options{}, guest)
	} else {
		g = open(t, Options{}, guest)
		limit(t, odd)
	}
	// The filter drops odd frames of the guest, whatever the gate does.
	guest.send(1, 2)
	world.expect(2)
	must(t, g.Hold())
	guest.send(3, 4)
	fs := g.Cut()
	checkFrames(t, fs, 3, 4) // held before the filter saw them
	world.expectNothing(other)
	odd.expect(1)
	if !odd.idle() {
		t.Error("the filter saw a frame that is held")
	}
	must(t, g.Pass(t.Context(), fs))
	world.expect(4)
	guest.send(5, 6)
	world.expect(6)
	odd.expect(3, 5)
	if !odd.idle() {
		t.Error("the filter saw a frame twice")
	}
	must(t, g.Inject([]Frame{{0, frame(8)}}))
	guest.receive() // through htb; what world and other sent comes before
	must(t, g.Close(false))
	guest.send(7, 8)
	world.expect(8)
	qdiscs, err := netlink.QdiscList(linkOf(t, "g0"))
	must(t, err)
	kinds := map[string]bool{}
	for _, q := range qdiscs {
		kinds[q.Type()] = true
	}
	if !kinds["htb"] || !kinds["ingress"] {
		t.Errorf("qdiscs of the tap: %v", kinds)
	}
}

// limit makes what libvirt makes (virNetDevBandwidthSet), with one difference:
// the filter sends odd frames to another tap, where they can be counted, because a
// police action drops by time.
func limit(t *testing.T, odd *machine) {
	t.Helper()
	index := linkOf(t, "g0").Attrs().Index
	htb := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT})
	htb.Defcls = 1
	must(t, netlink.QdiscReplace(htb))
	must(t, netlink.ClassAdd(netlink.NewHtbClass(
		netlink.ClassAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 1), Parent: netlink.MakeHandle(1, 0)},
		netlink.HtbClassAttrs{Rate: 1e9, Ceil: 1e9})))
	must(t, netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}))
	must(t, netlink.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL},
		// From the network header on: the last byte of the number.
		Sel:     &netlink.TcU32Sel{Nkeys: 1, Flags: netlink.TC_U32_TERMINAL, Keys: []netlink.TcU32Key{{Mask: 1, Val: 1, Off: 4}}},
		Actions: []netlink.Action{netlink.NewMirredAction(linkOf(t, odd.dev).Attrs().Index)},
	}))
}
