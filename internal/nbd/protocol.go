package nbd

import "encoding/binary"

// The numbers of doc/proto.md, all big endian on the wire.
const (
	magicInit       uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicRep        uint64 = 0x3e889045565a9
	magicRequest    uint32 = 0x25609513
	magicSimple     uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags, the same in both directions.
const (
	handshakeFixed    = 1 << 0
	handshakeNoZeroes = 1 << 1
)

// Transmission flags.
const (
	flagHasFlags    uint16 = 1 << 0
	flagFlush       uint16 = 1 << 2
	flagFUA         uint16 = 1 << 3
	flagTrim        uint16 = 1 << 5
	flagWriteZeroes uint16 = 1 << 6
	flagDF          uint16 = 1 << 7
	flagFastZero    uint16 = 1 << 11
)

// Options.
const (
	optExportName      uint32 = 1
	optAbort           uint32 = 2
	optList            uint32 = 3
	optInfo            uint32 = 6
	optGo              uint32 = 7
	optStructuredReply uint32 = 8
	optListMeta        uint32 = 9
	optSetMeta         uint32 = 10
)

// Replies to options.
const (
	repAck         uint32 = 1
	repServer      uint32 = 2
	repInfo        uint32 = 3
	repMeta        uint32 = 4
	repErrUnsup    uint32 = 1<<31 + 1
	repErrInvalid  uint32 = 1<<31 + 3
	repErrUnknown  uint32 = 1<<31 + 6
	repErrShutdown uint32 = 1<<31 + 7
	repErrTooBig   uint32 = 1<<31 + 9
)

// What an information reply is about.
const (
	infoExport    uint16 = 0
	infoBlockSize uint16 = 3
)

// Commands.
const (
	cmdRead        uint16 = 0
	cmdWrite       uint16 = 1
	cmdDisc        uint16 = 2
	cmdFlush       uint16 = 3
	cmdTrim        uint16 = 4
	cmdWriteZeroes uint16 = 6
	cmdBlockStatus uint16 = 7
)

// Flags of commands.
const (
	cmdFlagFUA      uint16 = 1 << 0
	cmdFlagNoHole   uint16 = 1 << 1
	cmdFlagDF       uint16 = 1 << 2
	cmdFlagReqOne   uint16 = 1 << 3
	cmdFlagFastZero uint16 = 1 << 4
)

// Structured replies.
const (
	chunkDone       uint16 = 1 << 0
	chunkOffsetData uint16 = 1
	chunkStatus     uint16 = 5
	chunkError      uint16 = 1<<15 + 1
)

const (
	stateHole uint32 = 1 << 0
	stateZero uint32 = 1 << 1
)

const (
	allocationContext   = "base:allocation"
	allocationContextID = 1
)

const (
	// RequestBytesMax bounds the payload of a read or a write.
	RequestBytesMax = 32 << 20

	nameBytesMax   = 4096 // any string in the protocol
	optionBytesMax = 64 << 10
	optionsMax     = 256 // of one connection
	queriesMax     = 64  // of one option about metadata
	exportsMax     = 1024
	extentsMax     = 4096 // in one reply

	blockBytesMin       = 1
	blockBytesPreferred = 4096

	requestBytes     = 28
	simpleReplyBytes = 16
	chunkHeadBytes   = 20
)

// request is the head of a request.
//
//	0      4      6      8             16            24      28
//	| magic| flags| type | cookie      | offset      | length|
type request struct {
	flags  uint16
	kind   uint16
	cookie uint64
	off    uint64
	length uint32
}

// parseRequest returns false if head does not begin with the magic.
func parseRequest(head *[requestBytes]byte) (request, bool) {
	be := binary.BigEndian
	return request{
		flags:  be.Uint16(head[4:]),
		kind:   be.Uint16(head[6:]),
		cookie: be.Uint64(head[8:]),
		off:    be.Uint64(head[16:]),
		length: be.Uint32(head[24:]),
	}, be.Uint32(head[:]) == magicRequest
}

// fits tells whether the range of r lies within size bytes.
func (r *request) fits(size int64) bool {
	return r.off <= uint64(size) && uint64(r.length) <= uint64(size)-r.off
}

func appendSimple(b []byte, e errno, cookie uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// appendChunk appends the head of a structured reply's last chunk; payloadBytes
// have to follow.
func appendChunk(b []byte, kind uint16, cookie uint64, payloadBytes uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, chunkDone)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, payloadBytes)
}
