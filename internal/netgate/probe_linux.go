package netgate

import (
	"log/slog"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Probe tells whether guests' output can be held on this host, by doing what a
// gate does to a tap of its own. An error matches ErrUnsupported and says what
// is missing. The tap exists for a moment in the network namespace of the
// calling thread.
func Probe() error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return wrap("probe", "", err)
	}
	defer nl.Close()
	t, err := openTap(nl, slog.New(slog.DiscardHandler))
	if err != nil {
		return wrap("probe", "", err)
	}
	defer t.close()
	s, err := newState()
	if err != nil {
		return wrap("probe", "", unsupported("making a map", err))
	}
	defer s.close()
	progs, err := loadPrograms(s)
	if err != nil {
		return wrap("probe", "", unsupported("loading eBPF programs", err))
	}
	defer progs.close()
	for prog, where := range map[*ebpf.Program]ebpf.AttachType{
		progs.gate: ebpf.AttachTCXIngress, progs.stray: ebpf.AttachTCXEgress, progs.release: ebpf.AttachTCXIngress,
	} {
		l, err := attachTCX(t.ifindex, prog, where)
		if err != nil {
			return wrap("probe", "", err)
		}
		defer l.Close()
	}
	p := &port{nic: NIC{Dev: t.name}, ifindex: t.ifindex}
	sock, err := openSocket(p)
	if err != nil {
		return wrap("probe", "", err)
	}
	sock.close()
	return nil
}
