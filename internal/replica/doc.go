// Package replica is the wire between two daemons: message formats, the two
// TCP connections of a protection, how they are set up and authenticated, and
// how their end is told apart. docs/PROTOCOL.md draws every byte.
//
// A protection has a control connection (handshake, setup, heartbeats,
// acknowledgements, the log of inputs, sums of disks) and a data connection
// (pages, disk writes, device state, outputs, ends of epochs), so that a
// heartbeat never waits behind four megabytes of pages.
// The dialer asks for the control connection first, is given a token in the
// [Welcome], and presents it on the data connection; the [Listener] pairs the
// two into a [Session].
//
// Nothing a peer sends makes this package panic, or allocate more than the
// bound of the message type it announced ([Type.MaxPayload]).
package replica
