// Package replica is the wire between two daemons: message formats, the TCP
// connections of a protection, how they are set up and authenticated, and
// how their end is told apart. docs/PROTOCOL.md draws every byte.
//
// A protection has a control connection (handshake, setup, heartbeats,
// acknowledgements, the log of inputs, sums of disks) and one or more data
// connections (pages, disk writes, device state, outputs, ends of epochs), so that
// a heartbeat never waits behind four megabytes of pages. The first data
// connection carries everything of an epoch; others, which a network or a host may
// need to be filled, share the pages with it ([StreamOf]).
// The dialer asks for the control connection first, is given a token in the
// [Welcome], and presents it on the data connections; the [Listener] joins them
// into a [Session].
//
// Nothing a peer sends makes this package panic, or allocate more than the
// bound of the message type it announced ([Type.MaxPayload]).
package replica
