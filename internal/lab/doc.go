// Package lab makes two hosts out of one Linux machine, for the demo and for
// end-to-end tests.
//
// A host is a process that is process 1 of its own pid, mount, network, IPC
// and UTS namespaces, with its own /run, /etc, /var/lib/libvirt and libvirtd;
// it thinks it is alone. Killing that process is a power loss: the kernel
// takes everything in the host with it, and the process itself dies with the
// lab, so nothing stays behind however the lab ends.
//
//	      host-a                    switch                   host-b
//	repl 10.77.0.1/24 ───────┐  ┌──────────┐  ┌─────── repl 10.77.0.2/24
//	                         └──┤ replnet  ├──┘
//	br0 10.78.0.2/24 ─ uplink ┐ ├──────────┤ ┌ uplink ─ br0 10.78.0.3/24
//	 └ taps of guests         └─┤ clients  ├─┘            taps of guests ┘
//	                            ├──────────┤
//	arb 10.79.0.2/24 ───────────┤  arbnet  ├────────── arb 10.79.0.3/24
//	                            └──────────┘
//	                             10.78.0.1 (clients and the observer)
//	                             10.79.0.1 (an arbiter that is asked by network)
//
// The switch is a network namespace of its own. Cutting a link takes a port
// off its bridge: the carrier stays, frames vanish, as behind a dead switch.
//
// A program that uses the package calls MaybeHost first in main or TestMain.
// It needs root, QEMU and libvirtd; New says what is missing.
package lab

import (
	"errors"
	"fmt"
)

// Addresses of the lab, the same in every lab: each has its own namespaces.
const (
	ReplicationA = "10.77.0.1"
	ReplicationB = "10.77.0.2"
	ClientAddr   = "10.78.0.1"
	GuestAddr    = "10.78.0.10"
	ArbiterAddr  = "10.79.0.1"
	ObserverPort = 9999
	// SharedDir is one directory that both hosts see, for the file arbiter.
	SharedDir = "/run/virt-ft-shared"
)

// ErrClosed is returned by what is used after Close or after a power loss.
var ErrClosed = errors.New("lab: closed")

// MissingError says what this machine lacks for a lab, and how to get it.
// Tests skip on it, and on nothing else.
type MissingError struct {
	What   string // "qemu-system-x86_64", "root"
	Remedy string // "run make deps"
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("lab: %s is missing (%s)", e.What, e.Remedy)
}
