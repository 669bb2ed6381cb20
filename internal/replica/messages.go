package replica

import (
	"fmt"
	"math"
)

// Message is one of the message structs of this package.
type Message interface {
	Type() Type
	fields(*codec) // lists the fields in wire order, in either direction
}

// Token pairs the data connections with their control connection. It is random,
// works once for each of them, and is worth as much as the connection it
// travelled on.
type Token [32]byte

// Role is what a daemon is in a protection. Zero is invalid.
type Role uint8

// The roles.
const (
	RolePrimary Role = 1
	RoleBackup  Role = 2
	// RoleAsking only wants to know what the other daemon has of a domain: the
	// connection ends with the answer, and no session begins.
	RoleAsking Role = 3
)

// Capabilities are optional abilities, as bits; both sides use the common ones.
type Capabilities uint64

// CapPlainPages: data connections without TLS, sealed by keys of the control
// connection's TLS session. The dialer offers it, and the listener, if it wants it
// too, has it in its Welcome on the control connection.
const CapPlainPages Capabilities = 1 << 1

// Hello is the first message on each connection. The dialer fills in versions,
// channel, token and stream by itself.
type Hello struct {
	VersionMin, VersionMax uint8
	Channel                Channel
	Role                   Role // of the sender
	Capabilities           Capabilities
	WantGeneration         uint64 // the generation the sender wants to run the protection in
	Token                  Token  // zero on the control connection
	Domain                 UUID
	DomainName             string
	Host                   string
	Software               string // version of the daemon, for people
	Streams                uint8  // data connections that the sender wants; 0 counts as 1
	Stream                 uint8  // which of them this one is, from 0; 0 on the control connection
}

func (*Hello) Type() Type { return TypeHello }

func (m *Hello) fields(c *codec) {
	c.u8("versionMin", &m.VersionMin)
	c.u8("versionMax", &m.VersionMax)
	c.check(m.VersionMin > 0 && m.VersionMax >= m.VersionMin, "versionMax", "versions are zero or reversed")
	c.u8("channel", (*uint8)(&m.Channel))
	c.check(m.Channel == ControlChannel || m.Channel == DataChannel, "channel", "is neither control nor data")
	c.u8("role", (*uint8)(&m.Role))
	c.check(m.Role >= RolePrimary && m.Role <= RoleAsking, "role", "is unknown")
	c.u64("capabilities", (*uint64)(&m.Capabilities))
	c.u64("wantGeneration", &m.WantGeneration)
	c.fixed("token", m.Token[:])
	c.fixed("domain", m.Domain[:])
	c.check(m.Domain != UUID{}, "domain", "zero is invalid")
	c.str("domainName", &m.DomainName, MaxNameBytes)
	c.str("host", &m.Host, MaxNameBytes)
	c.str("software", &m.Software, MaxNameBytes)
	if c.more() { // since version 2
		c.u8("streams", &m.Streams)
		c.u8("stream", &m.Stream)
		c.check(m.Stream == 0 || m.Channel == DataChannel, "stream", "is not zero on the control connection")
	}
}

// BackupState is what the listener has of the protection. Zero is invalid.
type BackupState uint8

// The backup states.
const (
	BackupNone    BackupState = 1 // nothing: Setup and an initial sync are needed
	BackupStandby BackupState = 2 // a standby, with LastCommitted complete
	BackupActive  BackupState = 3 // the guest runs there
)

// Welcome answers a Hello. Version, Channel, Token and Streams are filled in by
// the Listener.
type Welcome struct {
	Version           uint8 // chosen for the session
	Channel           Channel
	State             BackupState
	Capabilities      Capabilities
	Token             Token  // to be presented on the data connections; zero there
	HeartbeatPeriodNs int64  // both sides send one each period
	SilenceLimitNs    int64  // both sides give up after it; the lease of docs/PROTOCOL.md
	LastCommitted     uint64 // epoch
	Generation        uint64 // of the listener
	Host, Software    string
	Streams           uint8 // data connections granted: 1 to what the Hello wanted
}

func (*Welcome) Type() Type { return TypeWelcome }

func (m *Welcome) fields(c *codec) {
	c.u8("version", &m.Version)
	c.check(m.Version > 0, "version", "zero is invalid")
	c.u8("channel", (*uint8)(&m.Channel))
	c.check(m.Channel == ControlChannel || m.Channel == DataChannel, "channel", "is neither control nor data")
	c.u8("state", (*uint8)(&m.State))
	c.check(m.State >= BackupNone && m.State <= BackupActive, "state", "is unknown")
	c.u64("capabilities", (*uint64)(&m.Capabilities))
	c.fixed("token", m.Token[:])
	c.i64("heartbeatPeriodNs", &m.HeartbeatPeriodNs)
	c.i64("silenceLimitNs", &m.SilenceLimitNs)
	c.check(m.HeartbeatPeriodNs > 0 && m.SilenceLimitNs > m.HeartbeatPeriodNs, "silenceLimitNs", "is not above the heartbeat period, or that is not positive")
	c.u64("lastCommitted", &m.LastCommitted)
	c.u64("generation", &m.Generation)
	c.str("host", &m.Host, MaxNameBytes)
	c.str("software", &m.Software, MaxNameBytes)
	if c.more() { // since version 2
		c.u8("streams", &m.Streams)
	}
}

// Code classifies a Refuse or an Error for programs. Zero is invalid.
type Code uint16

// The codes. Unknown ones are accepted and shown as numbers.
const (
	CodeVersion    Code = 1 // no common protocol version
	CodeGeneration Code = 2 // the peer's generation is over
	CodeToken      Code = 3 // unknown or used token
	CodeBusy       Code = 4 // try again later
	CodePolicy     Code = 5 // this host does not want this protection
	CodeSetup      Code = 6 // the standby cannot be made
	CodeProtocol   Code = 7 // the peer broke the protocol
	CodeInternal   Code = 8
)

func (c Code) String() string {
	names := [...]string{"", "version", "generation", "token", "busy", "policy", "setup", "protocol", "internal"}
	if c == 0 || int(c) >= len(names) {
		return fmt.Sprintf("code %d", uint16(c))
	}
	return names[c]
}

// Refuse answers a Hello; the connection is closed after it.
type Refuse struct {
	Code   Code
	Reason string // what and why, for people
	Remedy string // what to do, for people
}

func (*Refuse) Type() Type { return TypeRefuse }

func (m *Refuse) fields(c *codec) {
	c.u16("code", (*uint16)(&m.Code))
	c.check(m.Code != 0, "code", "zero is invalid")
	c.text("reason", &m.Reason)
	c.text("remedy", &m.Remedy)
}

// Block is a RAM block of the source; runs refer to it by its index in Setup.
type Block struct {
	Name      string
	UsedBytes uint64
}

// EpochConfig is the pacing the primary intends.
type EpochConfig struct {
	MinNs, IdleNs int64  // shortest and idle epoch
	InFlightMax   uint32 // epochs sent and not acknowledged
}

// Setup tells the backup what to prepare a standby for.
type Setup struct {
	SourceXML               string // the source's migratable XML
	LiveXML                 string // its live XML, for the CPU as the guest sees it
	Machine                 string // canonical machine type
	Blocks                  []Block
	QEMUVersion, LibVersion uint32 // major*1,000,000 + minor*1,000 + release, as libvirt counts
	VCPUs                   uint32
	Epochs                  EpochConfig
	// Arbiter is the kind of arbiter both sides must ask, and ArbiterIdentity
	// what tells two of a kind apart.
	Arbiter, ArbiterIdentity string
	Durability               Durability // of disk writes, before an epoch is acknowledged
	Disks                    []Disk     // the writable ones
}

func (*Setup) Type() Type { return TypeSetup }

func (m *Setup) fields(c *codec) {
	c.str("sourceXML", &m.SourceXML, MaxXMLBytes)
	c.str("liveXML", &m.LiveXML, MaxXMLBytes)
	c.str("machine", &m.Machine, MaxNameBytes)
	n := c.count("blocks", len(m.Blocks), MaxBlocks, 12)
	if !c.encoding && n > 0 {
		m.Blocks = make([]Block, n)
	}
	for i := range n {
		b := &m.Blocks[i]
		c.str("block name", &b.Name, MaxNameBytes)
		c.check(b.Name != "", "block name", "is empty")
		c.u64("block used", &b.UsedBytes)
	}
	c.u32("qemuVersion", &m.QEMUVersion)
	c.u32("libvirtVersion", &m.LibVersion)
	c.u32("vcpus", &m.VCPUs)
	c.i64("epochMinNs", &m.Epochs.MinNs)
	c.i64("epochIdleNs", &m.Epochs.IdleNs)
	c.u32("inFlightMax", &m.Epochs.InFlightMax)
	c.check(m.Epochs.MinNs >= 0 && m.Epochs.IdleNs >= 0, "epochMinNs", "is negative")
	c.str("arbiter", &m.Arbiter, MaxNameBytes)
	c.str("arbiterIdentity", &m.ArbiterIdentity, MaxNameBytes)
	c.u8("durability", (*uint8)(&m.Durability))
	c.check(m.Durability == DurabilityMemory || m.Durability == DurabilityFsync, "durability", "is neither memory nor fsync")
	c.disks(&m.Disks)
}

// Ready says that the standby exists, and images for its disks, and that pages
// and disk writes may come.
type Ready struct{ Disks []DiskReady } // in the order of Setup.Disks, one for each

// Device is the device state of a checkpoint: the blob of xen-save-devices-state.
type Device struct{ Blob []byte }

// EpochFlags describe an epoch.
type EpochFlags uint32

// The flags of an epoch. Others are refused.
const (
	EpochInitial EpochFlags = 1 << 0 // the first, which holds all memory
	EpochFinal   EpochFlags = 1 << 1 // the last: the guest was shut down
)

// GuestClock says what the guest's own clock was at an instant of the primary's
// CLOCK_REALTIME, and when it last stood still. All zero if that is not known: the
// guest has no clock that goes on while it is stopped.
type GuestClock struct {
	ClockNs    uint64 // of the guest
	RealtimeNs uint64 // of the primary, at that instant
	PausedNs   uint64 // of the primary's CLOCK_REALTIME, when the pause of the epoch was seen to begin
}

// EpochEnd ends an epoch on the first data connection, after its Pages, its
// DiskWrites, its Device and its Outputs. Those of the others that carried pages of
// it end it with a StreamEnd: it is whole when all these have arrived.
type EpochEnd struct {
	Pages          uint64 // pages in the runs of the epoch's Pages and PackedPages on all streams, zero runs included
	Packets        uint64 // packets in the epoch's Outputs
	DiskWrites     uint64 // runs in the epoch's DiskWrites
	Flags          EpochFlags
	CapturedUnixNs int64 // wall clock of the primary; for people, never for logic
	Streams        uint8 // further data connections that carried pages of the epoch: bit i is stream i; bit 0 is not set
	Clock          GuestClock
}

// Ack says that the backup has staged the header's epoch completely, its
// Outputs included: those may be released. Its disk writes are as durable as
// Setup asked for.
type Ack struct{}

// Dropped says that the backup cannot go on any more from anything that an older
// session brought. It comes long before Ready where disks are to be compared.
type Dropped struct{}

// Committed says that the backup has applied the header's epoch.
type Committed struct{}

// Rehearsed tells whether the first checkpoint loaded into a scratch QEMU.
type Rehearsed struct {
	OK     bool
	Reason string // why not
}

// Released says that the outputs of the header's epoch and all before have been
// performed: the backup forgets them, and the inputs of those epochs.
type Released struct{}

// Heartbeat is sent by both sides each period.
type Heartbeat struct {
	Seq    uint64 // from 1
	SentNs int64  // sender's clock, from an origin of its own
}

// HeartbeatAck returns a heartbeat's fields, and tells what the clock on the wall
// of its sender showed (CLOCK_REALTIME, Unix nanoseconds) when the heartbeat came
// and when this was sent.
type HeartbeatAck struct {
	Seq                uint64
	EchoedNs           int64
	CameUnixNs, UnixNs int64
}

// GuestDead says that QEMU died on the primary and that its outputs are closed.
type GuestDead struct{ Reason string }

// StandDown ends a protection in order, without failover.
type StandDown struct{ Reason string }

// Activated says that the guest runs at the sender, in the header's generation.
type Activated struct{}

// Bye ends a session, not the protection; the sender closes after it.
type Bye struct{ Reason string }

// Error reports a failure; the sender closes after it.
type Error struct {
	Code Code
	Text string
}

func (*Ready) Type() Type        { return TypeReady }
func (*Device) Type() Type       { return TypeDevice }
func (*EpochEnd) Type() Type     { return TypeEpochEnd }
func (*Ack) Type() Type          { return TypeAck }
func (*Committed) Type() Type    { return TypeCommitted }
func (*Dropped) Type() Type      { return TypeDropped }
func (*Rehearsed) Type() Type    { return TypeRehearsed }
func (*Released) Type() Type     { return TypeReleased }
func (*Heartbeat) Type() Type    { return TypeHeartbeat }
func (*HeartbeatAck) Type() Type { return TypeHeartbeatAck }
func (*GuestDead) Type() Type    { return TypeGuestDead }
func (*StandDown) Type() Type    { return TypeStandDown }
func (*Activated) Type() Type    { return TypeActivated }
func (*Bye) Type() Type          { return TypeBye }
func (*Error) Type() Type        { return TypeError }

func (*Ack) fields(*codec)           {}
func (*Committed) fields(*codec)     {}
func (*Dropped) fields(*codec)       {}
func (*Released) fields(*codec)      {}
func (*Activated) fields(*codec)     {}
func (m *Device) fields(c *codec)    { c.bytes("blob", &m.Blob, MaxDeviceBytes) }
func (m *GuestDead) fields(c *codec) { c.text("reason", &m.Reason) }
func (m *StandDown) fields(c *codec) { c.text("reason", &m.Reason) }
func (m *Bye) fields(c *codec)       { c.text("reason", &m.Reason) }

func (m *Ready) fields(c *codec) {
	n := c.count("disks", len(m.Disks), MaxDisks, minDiskReadyBytes)
	if !c.encoding && n > 0 {
		m.Disks = make([]DiskReady, n)
	}
	for i := range n {
		d := &m.Disks[i]
		c.str("disk path", &d.Path, MaxPathBytes)
		c.check(d.Path != "", "disk path", "is empty")
		c.boolean("disk fresh", &d.Fresh)
	}
}

func (m *EpochEnd) fields(c *codec) {
	c.u64("pages", &m.Pages)
	c.u64("packets", &m.Packets)
	c.u64("diskWrites", &m.DiskWrites)
	c.u32("flags", (*uint32)(&m.Flags))
	c.check(m.Flags&^(EpochInitial|EpochFinal) == 0, "flags", "has unknown bits")
	c.i64("capturedUnixNs", &m.CapturedUnixNs)
	c.u8("streams", &m.Streams)
	c.check(m.Streams&1 == 0, "streams", "names the first data connection, which EpochEnd itself ends")
	c.u64("clockNs", &m.Clock.ClockNs)
	c.u64("clockRealtimeNs", &m.Clock.RealtimeNs)
	c.u64("pausedRealtimeNs", &m.Clock.PausedNs)
	c.check(max(m.Clock.ClockNs, m.Clock.RealtimeNs, m.Clock.PausedNs) <= math.MaxInt64, "clockNs", "is later than any clock")
}

func (m *Rehearsed) fields(c *codec) {
	c.boolean("ok", &m.OK)
	c.text("reason", &m.Reason)
}

func (m *Heartbeat) fields(c *codec) {
	c.u64("seq", &m.Seq)
	c.check(m.Seq > 0, "seq", "zero is invalid")
	c.i64("sentNs", &m.SentNs)
}

func (m *HeartbeatAck) fields(c *codec) {
	c.u64("seq", &m.Seq)
	c.check(m.Seq > 0, "seq", "zero is invalid")
	c.i64("echoedNs", &m.EchoedNs)
	c.i64("cameUnixNs", &m.CameUnixNs)
	c.i64("unixNs", &m.UnixNs)
}

func (m *Error) fields(c *codec) {
	c.u16("code", (*uint16)(&m.Code))
	c.check(m.Code != 0, "code", "zero is invalid")
	c.text("text", &m.Text)
}
