package vmstate

// Marks and numbers of QEMU's stream (migration/savevm.h, migration/ram.c).
const (
	streamMagic   = 0x5145564d // "QEVM"
	streamVersion = 3
	streamHeader  = 8 // magic and version

	markEOF     = 0x00
	markStart   = 0x01
	markPart    = 0x02
	markEnd     = 0x03
	markFull    = 0x04
	markVMDesc  = 0x06
	markConfig  = 0x07
	markFooter  = 0x7e
	footerBytes = 5 // mark and section id

	ramName    = "ram"
	ramVersion = 4

	flagZero     = 0x02
	flagMemSize  = 0x04
	flagPage     = 0x08
	flagEOS      = 0x10
	flagContinue = 0x20
	flagMask     = PageSize - 1
)

// ramSectionID is far above the ids that QEMU hands out (it counts up from 0),
// so that our RAM section never has the id of a device section.
const ramSectionID = 0x7fff0001

// Bounds. They are checked before anything is allocated.
const (
	// PageSize is the size in bytes of a target page of x86.
	PageSize = 4096
	// MaxNameBytes is the longest name of a section or RAM block: QEMU's length is one byte.
	MaxNameBytes = 255
	// MaxDeviceBytes bounds a device blob. A virtio-gpu stores its guest's
	// pictures in its section, 256 MiB of them by default.
	MaxDeviceBytes = 512 << 20
	// MaxBlocks bounds the RAM blocks of a stream.
	MaxBlocks = 4096
	// MaxXMLBytes bounds the domain XML in a save image.
	MaxXMLBytes = 16 << 20

	// maxBoundaries bounds the places that look like an end of a section. A
	// rich guest has about 150 sections, and next to no false ones.
	maxBoundaries = 1 << 16
	// maxMachineBytes bounds the machine type's name.
	maxMachineBytes = 255
	// minHeaderBytes is a FULL section's header with a name of one byte.
	minHeaderBytes = 1 + 4 + 1 + 1 + 4 + 4
)
