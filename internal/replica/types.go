package replica

import "fmt"

// Type is the type of a message. Zero is invalid. Numbers are never reused.
type Type uint8

// The message types, the first 21 in the order in which they appear in a session.
const (
	TypeHello Type = iota + 1
	TypeWelcome
	TypeRefuse
	TypeSetup
	TypeReady
	TypePages
	TypeDevice
	TypeOutput
	TypeEpochEnd
	TypeAck
	TypeCommitted
	TypeRehearsed
	TypeReleased
	TypeInput
	TypeHeartbeat
	TypeHeartbeatAck
	TypeGuestDead
	TypeStandDown
	TypeActivated
	TypeBye
	TypeError
	TypeDiskSums
	TypeDiskWrites
	TypeDropped
	TypePackedPages
	TypeStreamEnd
	TypeQuestion
	TypeAnswer
	typeEnd
)

// Channel tells the two kinds of connection of a protection apart. Zero is invalid.
type Channel uint8

// The kinds of connection.
const (
	ControlChannel Channel = 1
	DataChannel    Channel = 2
)

// What only the table of types says: the data connections other than the first,
// and the places in which a type may appear.
const (
	furtherData Channel = 4
	asking      Channel = 8 // a control connection on which questions are answered
	onBoth      Channel = ControlChannel | DataChannel
	onAllData   Channel = DataChannel | furtherData
	onAll       Channel = ControlChannel | onAllData
)

func (c Channel) String() string {
	switch c {
	case ControlChannel:
		return "control"
	case DataChannel:
		return "data"
	case furtherData:
		return "further data"
	case asking:
		return "asking"
	}
	return fmt.Sprintf("channel %d", uint8(c))
}

// Bounds of what a message may hold. All are checked before allocating, and by
// senders as well as receivers.
const (
	MaxNameBytes   = 255
	MaxTextBytes   = 1024 // reasons and remedies; longer ones are cut by the sender
	MaxXMLBytes    = 512 << 10
	MaxBlocks      = 1024
	MaxRuns        = 65536
	MaxPageData    = 4 << 20  // data of the runs of one Pages, PackedPages (unpacked) or DiskWrites
	MaxDeviceBytes = 64 << 20 // device state of one checkpoint
	PageSize       = 4096

	MaxStreams  = 8       // data connections of a session
	RegionBytes = 2 << 20 // of a RAM block: its pages travel on one stream, see StreamOf

	VnetHeaderBytes = 12                                 // struct virtio_net_hdr_mrg_rxbuf, before each frame
	MinPacketBytes  = VnetHeaderBytes + 14               // an Ethernet header
	MaxPacketBytes  = 65568                              // VnetHeaderBytes, 65535 of IP, Ethernet header and VLAN tag, in whole words
	MaxPackets      = MaxOutputBytes / minPacketWireSize // in one Output or Input
	MaxOutputBytes  = 1 << 20                            // payload of one Output
	MaxInputBytes   = 256 << 10                          // payload of one Input

	MaxDisks      = 64
	MaxPathBytes  = 4096
	SumBlockBytes = 64 << 10 // of a disk, for each sum
	SumBytes      = 16
	MaxSums       = 4096 // in one DiskSums

	maxSmallPayload = 4 << 10
	runBytes        = 16
	codecBytes      = 1
	maxRunsPayload  = 4 + MaxRuns*runBytes + MaxPageData

	diskEnd           = 1 << 60 // no disk is as large, so that a size or an offset is an int64 with room to spare
	minDiskBytes      = 4 + 1 + 8 + 8 + 4 + 4 + 4
	minDiskReadyBytes = 4 + 1 + 1
	maxReadyPayload   = 4 + MaxDisks*(4+MaxPathBytes+1)
	diskSumsHeadBytes = 2 + 8 + 4

	packetHeadBytes   = 6 // before the data of a packet
	minPacketWireSize = packetHeadBytes + MinPacketBytes
)

// kind is what is fixed about a type.
type kind struct {
	name     string
	max      uint32  // payload bytes
	channel  Channel // where it may appear
	growable bool    // later versions may append fields: trailing bytes are ignored
	message  func() Message
}

func kindOf(t Type) kind {
	switch t {
	case TypeHello:
		return kind{"Hello", maxSmallPayload, onAll, true, func() Message { return new(Hello) }}
	case TypeWelcome:
		return kind{"Welcome", maxSmallPayload, onAll, true, func() Message { return new(Welcome) }}
	case TypeRefuse:
		return kind{"Refuse", maxSmallPayload, onAll, true, func() Message { return new(Refuse) }}
	case TypeSetup:
		return kind{"Setup", 2 << 20, ControlChannel, false, func() Message { return new(Setup) }}
	case TypeReady:
		return kind{"Ready", maxReadyPayload, ControlChannel, false, func() Message { return new(Ready) }}
	case TypePages:
		return kind{"Pages", maxRunsPayload, onAllData, false, func() Message { return new(Pages) }}
	case TypeDevice:
		return kind{"Device", 4 + MaxDeviceBytes, DataChannel, false, func() Message { return new(Device) }}
	case TypeOutput:
		return kind{"Output", MaxOutputBytes, DataChannel, false, func() Message { return new(Output) }}
	case TypeEpochEnd:
		return kind{"EpochEnd", 61, DataChannel, false, func() Message { return new(EpochEnd) }}
	case TypeAck:
		return kind{"Ack", 0, ControlChannel, false, func() Message { return new(Ack) }}
	case TypeCommitted:
		return kind{"Committed", 0, ControlChannel, false, func() Message { return new(Committed) }}
	case TypeRehearsed:
		return kind{"Rehearsed", maxSmallPayload, ControlChannel, false, func() Message { return new(Rehearsed) }}
	case TypeReleased:
		return kind{"Released", 0, ControlChannel, false, func() Message { return new(Released) }}
	case TypeInput:
		return kind{"Input", MaxInputBytes, ControlChannel, false, func() Message { return new(Input) }}
	case TypeHeartbeat:
		return kind{"Heartbeat", 16, ControlChannel, false, func() Message { return new(Heartbeat) }}
	case TypeHeartbeatAck:
		return kind{"HeartbeatAck", 32, ControlChannel, false, func() Message { return new(HeartbeatAck) }}
	case TypeGuestDead:
		return kind{"GuestDead", maxSmallPayload, ControlChannel, false, func() Message { return new(GuestDead) }}
	case TypeStandDown:
		return kind{"StandDown", maxSmallPayload, ControlChannel, false, func() Message { return new(StandDown) }}
	case TypeActivated:
		return kind{"Activated", 0, ControlChannel, false, func() Message { return new(Activated) }}
	case TypeBye:
		return kind{"Bye", maxSmallPayload, ControlChannel, false, func() Message { return new(Bye) }}
	case TypeError:
		return kind{"Error", maxSmallPayload, onBoth, false, func() Message { return new(Error) }}
	case TypeDropped:
		return kind{"Dropped", 0, ControlChannel, false, func() Message { return new(Dropped) }}
	case TypeDiskSums:
		return kind{"DiskSums", diskSumsHeadBytes + MaxSums*SumBytes, ControlChannel, false, func() Message { return new(DiskSums) }}
	case TypeDiskWrites:
		return kind{"DiskWrites", maxRunsPayload, DataChannel, false, func() Message { return new(DiskWrites) }}
	case TypePackedPages:
		return kind{"PackedPages", maxRunsPayload + codecBytes, onAllData, false, func() Message { return new(PackedPages) }}
	case TypeStreamEnd:
		return kind{"StreamEnd", 8, furtherData, false, func() Message { return new(StreamEnd) }}
	case TypeQuestion:
		return kind{"Question", questionHeadBytes + MaxQuestionBytes, asking, false, func() Message { return new(Question) }}
	case TypeAnswer:
		return kind{"Answer", answerHeadBytes + MaxTextBytes + MaxAnswerBytes, asking, false, func() Message { return new(Answer) }}
	}
	return kind{}
}

// Valid reports whether t is a known type.
func (t Type) Valid() bool { return t > 0 && t < typeEnd }

// MaxPayload returns the largest payload of a message of type t, in bytes.
func (t Type) MaxPayload() uint32 { return kindOf(t).max }

func (t Type) String() string {
	if !t.Valid() {
		return fmt.Sprintf("type %d", uint8(t))
	}
	return kindOf(t).name
}
