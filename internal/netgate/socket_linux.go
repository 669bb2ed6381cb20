package netgate

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// inputBatch is how many frames are handed out at a time at most.
	inputBatch = 64
	// inputBufferBytes is what the kernel keeps for a reader that is late.
	inputBufferBytes = 1 << 20

	etherAll      = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xffff // in network byte order
	etherIdle     = 0xb688                                       // 0x88b6, for local experiments
	etherVLAN     = unix.ETH_P_8021Q
	ancillaryPkt  = 0xfffff000 + 4 // SKF_AD_OFF + SKF_AD_PKTTYPE of linux/filter.h
	vlanValid     = 0x10           // TP_STATUS_VLAN_VALID of linux/if_packet.h
	vlanTPIDValid = 0x40           // TP_STATUS_VLAN_TPID_VALID
)

// socket is a packet socket on the guest's tap: it sees what the host sends to
// the guest, and sends to the guest. What it sends itself it does not see.
type socket struct {
	p    *port
	fd   int
	file *os.File
	full atomic.Uint64 // frames that the kernel had no room for
}

// openSocket makes a socket that only sends until listen.
func openSocket(p *port) (*socket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, &UnsupportedError{"opening a packet socket", "needs CAP_NET_RAW and CONFIG_PACKET", err}
	}
	s := &socket{p: p, fd: fd}
	if err := s.configure(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s.file = os.NewFile(uintptr(fd), "packet:"+p.nic.Dev)
	return s, nil
}

func (s *socket) configure() error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR_SZ, VnetHeaderBytes); err != nil {
		return &UnsupportedError{"PACKET_VNET_HDR_SZ", "needs Linux >= 6.6", err}
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return fmt.Errorf("PACKET_AUXDATA: %w", err)
	}
	// Only what goes out of the tap, which is into the guest.
	filter := [...]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: ancillaryPkt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("socket filter: %w", err)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, inputBufferBytes); err != nil {
		return fmt.Errorf("SO_RCVBUFFORCE: %w", err)
	}
	return s.listen(false)
}

// listen says whether the socket receives. One that does not costs nothing: what
// goes out of an interface is shown to sockets of all protocols only. There is
// no way back to no protocol.
func (s *socket) listen(on bool) error {
	addr := &unix.SockaddrLinklayer{Ifindex: s.p.ifindex, Protocol: etherIdle}
	if on {
		addr.Protocol = etherAll
	}
	if err := unix.Bind(s.fd, addr); err != nil {
		return fmt.Errorf("packet socket on %s: %w", s.p.nic.Dev, err)
	}
	return nil
}

func (s *socket) close() {
	_ = s.file.Close() // a second time it says so
}

// overflow returns how many frames the kernel had no room for, of all time. The
// kernel forgets its number when it is read.
func (s *socket) overflow() uint64 {
	if st, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		s.full.Add(uint64(st.Drops))
	}
	return s.full.Load()
}

// read is the goroutine that logs inputs.
func (s *socket) read() {
	g := s.p.g
	conn, err := s.file.SyscallConn()
	var memory slab
	oob := make([]byte, unix.CmsgSpace(int(unsafe.Sizeof(unix.TpacketAuxdata{}))))
	for err == nil && g.in.wait() {
		var batch []Frame
		err = conn.Read(func(uintptr) bool {
			for len(batch) < inputBatch {
				data, rerr := s.receive(&memory, oob)
				switch {
				case rerr == unix.EINTR:
					continue
				case rerr != nil:
					// EAGAIN, or what the interface has to say (it went down):
					// an error that is reported once.
					return len(batch) > 0
				case data == nil || !g.in.take(len(data)):
					return true
				}
				batch = append(batch, Frame{NIC: s.p.nic.Index, Data: data})
			}
			return true
		})
		if len(batch) > 0 && err == nil {
			g.o.Input(batch)
		}
	}
}

// receive returns one frame. It returns nil for one that is too long.
func (s *socket) receive(memory *slab, oob []byte) ([]byte, error) {
	space := memory.space(FrameBytesMax + 1)
	n, oobn, _, _, err := unix.RecvmsgBuffers(s.fd, [][]byte{space[vlanTagBytes : FrameBytesMax+1]}, oob, 0)
	if err != nil {
		return nil, err
	}
	if n > FrameBytesMax-vlanTagBytes || n <= VnetHeaderBytes+etherAddrsBytes {
		s.p.g.in.skipped.Add(1)
		*memory = slab{}
		return nil, nil
	}
	if aux := auxdata(oob[:oobn]); aux != nil && aux.Status&vlanValid != 0 {
		tpid := uint16(etherVLAN)
		if aux.Status&vlanTPIDValid != 0 {
			tpid = aux.Vlan_tpid
		}
		putTag(space, tpid, aux.Vlan_tci)
		return memory.take(n + vlanTagBytes), nil
	}
	return memory.take(n + vlanTagBytes)[vlanTagBytes:], nil
}

func auxdata(oob []byte) *unix.TpacketAuxdata {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA &&
			len(m.Data) >= int(unsafe.Sizeof(unix.TpacketAuxdata{})) {
			return (*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0]))
		}
	}
	return nil
}

// Inject sends frames to the guest, as if they had just arrived for it. It takes
// at most a second; frames that the kernel has no room for are lost, as on any
// network. The error is of the first that could not be sent.
func (g *Gate) Inject(fs []Frame) error {
	end, err := g.use()
	if err != nil {
		return wrap("inject", "", err)
	}
	defer end()
	until := time.Now().Add(injectWithin)
	var first error
	for _, f := range fs {
		err := ErrNoNIC
		if p := g.port(f.NIC); p != nil {
			err = p.sock.send(f.Data, until)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
			return wrap("inject", "", err)
		}
		if first == nil {
			first = err
		}
	}
	return wrap("inject", "", first)
}

// send sends to the guest. It waits for room until then.
func (s *socket) send(data []byte, until time.Time) error {
	return s.sendTo(s.p.ifindex, data, until)
}

// sendTo sends out of an interface. With etherAll the kernel finds out what
// protocol the frame is of.
func (s *socket) sendTo(ifindex int, data []byte, until time.Time) error {
	conn, err := s.file.SyscallConn()
	if err == nil {
		err = s.file.SetWriteDeadline(until)
	}
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Ifindex: ifindex, Protocol: etherAll}
	var sent error
	if err := conn.Write(func(fd uintptr) bool {
		for sent = unix.EINTR; sent == unix.EINTR; {
			sent = unix.Sendto(int(fd), data, 0, to)
		}
		return sent != unix.EAGAIN
	}); err != nil {
		return err
	}
	return sent
}
