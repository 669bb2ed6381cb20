// Package netgate stands between a guest's network interface and the world. On
// the primary it holds what the guest sends until somebody says that it may
// go: output commit (Bressoud and Schneider, "Hypervisor-based fault
// tolerance", 1995; Cully et al., "Remus", 2008).
//
// The gate is three eBPF programs and a second tap, the capture tap, for each
// interface of the guest. Nothing of the guest, its bridge or its qdiscs is
// changed:
//
//	guest ──▶ guest's tap, ingress ── pass ─────────────────────────▶ bridge
//	             │ hold                        ▲ lease checked, mark cleared
//	             ▼                             │ marked
//	          capture tap, egress           capture tap, ingress
//	             │ what is not of the guest    ▲ lease checked, mark set
//	             │ is dropped                  │
//	             ▼ read                        │ write
//	          open queue ── Cut ──▶ []Frame ── Release
//
// A frame is read with its virtio-net header and written back as it was, so
// checksums that are still to be made and frames that are still to be
// segmented leave the host as they would have without a gate.
//
// What decides is in the kernel, in one map for each interface: mode, lease and
// counters. The map and the link of the program on the guest's tap are pinned
// in a bpffs. A daemon that dies takes the capture tap with it: a gate that
// holds then drops what the guest sends, without stalling the guest, and one
// that passes goes on passing. The daemon that comes after takes the pins over.
//
//	          Hold                    Seal
//	passing ───────▶ holding ──────────────────▶ sealed
//	   ▲                │        (also from passing)
//	   └─────────────── ┘
//	          Pass
//
// TCX programs (Linux 6.6) run before classifiers of tc, so that what libvirt
// makes of a <bandwidth> element sees each frame once: when it really leaves.
package netgate

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

const (
	// VnetHeaderBytes is the size of struct virtio_net_hdr_mrg_rxbuf, with
	// which the data of every Frame begins.
	VnetHeaderBytes = 12
	// FrameBytesMax bounds Frame.Data: header, 65535 bytes of IP, Ethernet
	// header and VLAN tag, in whole words. A longer frame, which no guest
	// makes, is dropped and counted.
	FrameBytesMax = 65568

	// QueueBytesDefault and QueueFramesDefault bound what is held if Options
	// does not say otherwise.
	QueueBytesDefault  = 64 << 20
	QueueFramesDefault = 65536
	// NICsMax bounds the interfaces of one gate.
	NICsMax = 64

	// slabBytes is how much memory frames are read into at a time. A new slab
	// is begun when the longest frame would not fit into what is left.
	slabBytes = 1 << 20
	// captureQueueFrames is the capture tap's own queue, in the kernel. It has
	// to last until our reader gets to run, and is what a guest may fill
	// when the bound of held frames is reached: up to 128 MiB if each of them
	// is as large as can be.
	captureQueueFrames = 2048
	// readBatch is how many frames a reader takes before it lets a Cut in.
	readBatch = 64
	// injectWithin bounds one Inject.
	injectWithin = time.Second
)

var (
	// ErrLease means that frames are left that may not leave now, because the
	// lease is over. See LeaseError.
	ErrLease = errors.New("the lease to perform output is over")
	// ErrSealed means that nothing leaves through this gate any more.
	ErrSealed = errors.New("the gate is sealed")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("the gate is closed")
	// ErrNoNIC means that the gate has no interface of this number.
	ErrNoNIC = errors.New("no such interface")
	// ErrBusy means that another gate stands before the same interface.
	ErrBusy = errors.New("another gate stands before this interface")
	// ErrLayout means that a daemon of another version put a gate before this
	// interface. It stays as it is; Remove takes it away.
	ErrLayout = errors.New("the gate before this interface is of another version")
	// ErrUnsupported is matched by every UnsupportedError.
	ErrUnsupported = errors.New("not supported")
)

// LeaseError says how far a Release came. It matches ErrLease.
type LeaseError struct {
	Out int // frames at the front that surely left, or are surely lost
}

func (e *LeaseError) Error() string { return fmt.Sprintf("%v; %d frames left before", ErrLease, e.Out) }

// Is makes the error match ErrLease.
func (e *LeaseError) Is(target error) bool { return target == ErrLease }

// UnsupportedError says what this host lacks for a gate. It matches
// ErrUnsupported.
type UnsupportedError struct {
	What   string // what was tried
	Remedy string // what an operator can do
	Err    error
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("output cannot be held on this host: %s: %v; %s", e.What, e.Err, e.Remedy)
}

// Is makes the error match ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }

// Unwrap returns what the kernel said.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// Frame is an Ethernet frame that a guest sent or is to receive, behind 12
// bytes of virtio-net header in this host's byte order. Nobody writes to Data
// once the frame was handed out; frames read one after the other share memory.
type Frame struct {
	NIC  uint16
	Data []byte
}

// NIC is an interface of the guest.
type NIC struct {
	Index uint16 // its number in Frame.NIC; each once
	Dev   string // the guest's tap on this host
}

// Options say how a gate works.
type Options struct {
	// Dir is where the gate's state in the kernel is pinned, a directory of
	// this gate alone in a bpffs; it is made if need be (see MountPins). Empty:
	// nothing is pinned, and the gate is gone with the process.
	Dir string
	// QueueBytesMax and QueueFramesMax bound all frames that are held, open
	// and cut. One frame for each interface may come on top. Zero: the defaults.
	QueueBytesMax, QueueFramesMax int
	// Held is told when a frame comes into an empty open queue. It must not
	// block, and must not call the gate. May be nil.
	Held func()
	// InputBytesMax bounds how much of what arrives for the guest is logged
	// between two cuts. Zero: nothing is.
	InputBytesMax int
	// Input gets what arrived for the guest while the gate holds, in batches
	// that belong to it. It is called from one goroutine for each interface,
	// which reads nothing more meanwhile; it must return when Close is called.
	Input func([]Frame)
	// Mute keeps everything from the guest until Unmute: one that does not run
	// yet would find its tap full of old news. Not together with Dir.
	Mute bool
	// Log may be nil.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.QueueBytesMax <= 0 {
		o.QueueBytesMax = QueueBytesDefault
	}
	if o.QueueFramesMax <= 0 {
		o.QueueFramesMax = QueueFramesDefault
	}
	if o.Input == nil {
		o.InputBytesMax = 0
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Mode is what a gate does with what the guest sends. Its numbers are in maps
// that outlive a daemon, so they do not change; zero is invalid, and drops.
type Mode uint64

// See the drawing at the top of the package.
const (
	Passing Mode = iota + 1 // frames go their way, and are counted
	Holding                 // frames go into the open queue
	Sealed                  // frames are dropped
)

func (m Mode) String() string {
	switch m {
	case Passing:
		return "passing"
	case Holding:
		return "holding"
	case Sealed:
		return "sealed"
	}
	return fmt.Sprintf("mode(%d)", uint64(m))
}

// Stats are a gate's state and counters, of all its interfaces together. Those
// marked with * are kept in the kernel and go on after a daemon's restart.
type Stats struct {
	Mode Mode // *

	HeldFrames int           // now, in the open queue or cut and not done
	HeldBytes  int           // of their data
	HeldAge    time.Duration // of the oldest; 0 if none is held

	Passed        uint64 // * frames that went by a passing gate
	Captured      uint64 // * frames that the kernel sent to the capture tap
	Released      uint64 // * frames that left after they were held
	DroppedFull   uint64 // frames the capture tap had no room for
	DroppedLease  uint64 // * times the kernel refused a frame whose lease was over; it stays held
	DroppedSealed uint64 // * frames that met a sealed gate
	DroppedStray  uint64 // * frames on the capture tap that were not of the guest
	Lost          uint64 // frames that were performed and did not come out (interface down or gone), or were malformed

	InputsLogged  uint64
	InputsSkipped uint64 // over the bound, or not read in time
}
