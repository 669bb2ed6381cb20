// Package vmstate reads and writes QEMU migration streams: it finds the
// sections in the device state that xen-save-devices-state writes, composes the
// stream that a standby QEMU loads, and writes libvirt's save-image header.
// Nothing here talks to QEMU; the formats are those of QEMU's
// migration/savevm.c and migration/ram.c and of libvirt's qemu_saveimage.c.
//
// All integers of QEMU's formats are big endian, sizes are in bytes.
//
// # Device state
//
//	u32 "QEVM" | u32 3
//	any number of
//	    04 | u32 id | u8 n, n bytes name | u32 instance | u32 version   header
//	    payload                                                         no length!
//	    7e | u32 id                                                     footer
//	00                                                                  end
//	06 | u32 n | n bytes JSON                                           optional
//
// QEMU knows a payload's layout from its device models, we do not. A section
// ends where its footer is followed by another section's header or by the end
// of the blob; payload may contain such bytes by accident, or because a guest
// put them there. ParseDevices therefore lists every place that could be a
// boundary, keeps those from which the end of the blob can be reached, and then
// walks forward through the nearest ones. This costs time linear in the blob,
// whatever it contains, and never ends in a blind alley. A section id occurs
// once, so where the walk comes back to an id, the loop was payload.
//
// A guest which forges whole sections inside a device's state can still choose
// among parses that are all well formed. QEMU itself is not misled, because the
// blob is passed on unchanged. Who edits a section must check that its version
// and size are the expected ones.
//
// # Incoming stream
//
//	u32 "QEVM" | u32 3
//	07 | u32 n | n bytes machine type                                   configuration
//	01 | id | 3 "ram" | u32 0 | u32 4 | sizes | u64 10 | footer         RAM start
//	     sizes: u64 sum|04, then per block: u8 n, name, u64 used
//	02 | id | records | u64 10 | footer                                 RAM part, any number
//	03 | id | u64 10 | footer                                           RAM end
//	device sections and 00, as above
//	06 | u32 0                                                          empty description
//
//	record: u64 offset|flags, u8 n, name (absent with flag 20), contents
//	     flag 08: 4096 bytes         flag 02: one byte 0, the page is zero
//	     flag 20: same block as the record before. QEMU continues a block from
//	              one part into the next; Incoming names it again in each part
//
// # Save image
//
// Little endian; the stream follows.
//
//	"LibvirtQemudSave" | u32 2 | u32 n+1 | u32 running | u32 0 | u32 0 | 14 x u32 0
//	n bytes XML | 00
package vmstate
