// Package virt is virt-ft's door to libvirt: domains, their XML, state, events and monitor, and the standby
// domain of the backup. It is the only package of the project that uses cgo.
//
// # Connection
//
// [Open] connects and keeps the connection: when libvirtd restarts or stops answering, calls fail with
// [ErrDisconnected] until a background goroutine has connected again and registered the events anew. [Conn]
// and [Domain] may be used by several goroutines at once. A Domain stays valid over reconnects: it knows the
// domain's UUID and finds its libvirt handle again by itself.
//
//	libvirtd ──► event loop (one thread per process) ──► publish ──► queue ──► pump ──► subscriber
//	   ▲                                                 (never       (bounded, one per subscription;
//	   └── calls, each on a goroutine of its own          blocks)      overflow drops the oldest and says so)
//
// # Contexts and unknown outcomes
//
// A libvirt call cannot be interrupted. Each one runs on a goroutine of its own; when the context ends first,
// the method returns an error that is [ErrOutcomeUnknown] and the call goes on in the background until
// libvirt answers or the connection's keepalive gives it up. The effect may therefore still happen after the
// method returned. At most maxCalls calls are under way on a connection; further ones wait for their turn.
//
// libvirt's client library can lose the wake-up of a call that begins while another is under way on the same
// connection (virNetClientIO): the new one then waits for the other's answer, or for the next keepalive, which is
// keepAliveSeconds away. So what has to be answered while a monitor command is held needs a Conn of its own.
//
// # Monitor
//
// [Domain.QMP], [Domain.HMP] and [Domain.QMPWithFiles] pass commands to QEMU through libvirt. The first one
// makes libvirt mark the domain as tainted (custom-monitor); nothing else of it is changed.
package virt
