// Package diskrep replicates the disks of a protected guest epoch by epoch.
//
// On the primary a [Source] takes every write that QEMU mirrors, in order, and
// cuts them into epochs. On the backup a [Target] keeps the writes of epochs
// that are not committed in a journal and applies them, in order, to flat raw
// images when they are.
package diskrep
