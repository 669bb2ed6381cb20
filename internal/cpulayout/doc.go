// Package cpulayout learns where the fields of a virtual CPU lie in the device
// state that a QEMU binary writes.
//
// Device state has no description of itself (see vmstate), and its layout is
// QEMU's own affair. A whole migration stream ends with a description, though,
// and any QEMU writes one when it is asked to: Learn starts the binary once more,
// as a machine of a few MiB whose CPU never runs, lets it migrate into a socket of
// ours, and reads the description. That takes a fraction of a second. The
// fields are those of the QEMU version, whatever accelerator and CPU model; what
// comes and goes with those is behind all fields.
//
// The process is a child of ours with no network, disk, file or listening
// socket, and is killed by its pid at the end, or by the kernel with us.
package cpulayout
