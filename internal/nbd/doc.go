// Package nbd is a server of network block devices: the side to which QEMU
// mirrors a disk. It speaks the fixed newstyle of the NBD protocol (doc/proto.md
// of the NBD project) without TLS, for clients on the same host.
//
//	client                                     server
//	       <───── NBDMAGIC, IHAVEOPT, flags ──
//	       ── flags ────────────────────────▶        negotiate.go
//	       ── option ─▶ ◀─ replies ── ...
//	       ── GO name ─────────────────────▶
//	       <───── size, flags, block sizes ──
//	       ── request (28 bytes), payload ──▶        transmit.go: one Backend call
//	       <────────── reply (16 bytes) ─────        at a time, in the order received
//	       ── DISC ────────────────────────▶
//
// The data of a write goes from the socket into a pooled buffer and the backend
// gets that buffer: nothing is copied in between when writes of one size follow
// each other, and at most 64 KiB when the size changes (wire_linux.go).
//
// A client waits for its replies, and a guest for its client. A [Guard] sees to
// it that it does not wait for a server that is stuck, frozen or dead.
package nbd
