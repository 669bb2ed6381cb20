package replica

import "encoding/binary"

// Packet is an Ethernet frame that a guest sent or was to receive, as a tap with
// IFF_VNET_HDR passes it: 12 bytes of virtio-net header, which says what
// checksums and segmentation are still to be done, then the frame.
type Packet struct {
	NIC  uint16 // index of the guest's interface, in the order of the domain's XML
	Data []byte // MinPacketBytes to MaxPacketBytes
}

// Output carries frames that the guest sent in the header's epoch, in the order
// in which it sent them. An epoch has any number of Outputs, between its Pages
// and its EpochEnd, which counts their packets; see [Batch].
type Output struct{ Packets []Packet }

// Input carries frames that arrived for the guest in the header's epoch. They
// are a log for after a failover, kept as far as it goes: an epoch may lack some
// or all of its inputs, which for the guest is a network that lost them.
type Input struct{ Packets []Packet }

func (*Output) Type() Type { return TypeOutput }
func (*Input) Type() Type  { return TypeInput }

func (m *Output) fields(c *codec) { c.packets(&m.Packets) }
func (m *Input) fields(c *codec)  { c.packets(&m.Packets) }

func (m *Output) payloadBytes() int { return packetsBytes(m.Packets) }
func (m *Input) payloadBytes() int  { return packetsBytes(m.Packets) }

// packets is a count (u32, at least 1) and that many packets: u16 NIC, u32
// length, data. Decoded, their data are slices of the payload.
func (c *codec) packets(v *[]Packet) {
	n := c.count("packets", len(*v), MaxPackets, minPacketWireSize)
	if n == 0 {
		c.check(c.err != nil, "packets", "zero is invalid")
		return
	}
	if !c.encoding {
		*v = make([]Packet, n)
	}
	be := binary.BigEndian
	for i := range n { // written out, because there may be many
		p := &(*v)[i]
		size := len(p.Data)
		if !c.encoding {
			head := c.take("packet", packetHeadBytes)
			if head == nil {
				return
			}
			p.NIC, size = be.Uint16(head), int(be.Uint32(head[2:]))
		}
		if size < MinPacketBytes || size > MaxPacketBytes {
			c.fail("packet length", "%d bytes, %d to %d are allowed", size, MinPacketBytes, MaxPacketBytes)
			return
		}
		if c.encoding {
			c.buf = be.AppendUint16(c.buf, p.NIC)
			c.buf = be.AppendUint32(c.buf, uint32(size))
			c.buf = append(c.buf, p.Data...)
			continue
		}
		data := c.take("packet data", size)
		if data == nil {
			return
		}
		p.Data = data[:size:size] // so that nobody appends into the next one
	}
}

// packetsBytes is the payload that packets make.
func packetsBytes(packets []Packet) int {
	n := 4
	for i := range packets {
		n += packetHeadBytes + len(packets[i].Data)
	}
	return n
}

// Batch splits packets in two: as many as fit into one message of type t
// (TypeOutput or TypeInput), and the rest. batch is empty only when packets is,
// or when the first of them is larger than any message may be, which
// MaxPacketBytes excludes.
func Batch(t Type, packets []Packet) (batch, rest []Packet) {
	left := int(t.MaxPayload()) - 4
	for i := range packets {
		left -= packetHeadBytes + len(packets[i].Data)
		if left < 0 || i == MaxPackets {
			return packets[:i], packets[i:]
		}
	}
	return packets, nil
}
