// Package control is how people's commands reach the daemon: HTTP and JSON over
// a Unix socket. The types here are those of the wire, of the daemon, which
// implements [Service], and of the command line, which also prints them with
// `-o json`: their JSON names are a public interface.
//
//	GET  /v1/version
//	GET  /v1/status?domain=D      []Status; all domains without D
//	GET  /v1/check?domain=D&to=H&no_bandwidth=1
//	                              CheckReport; the host alone without D and H
//	GET  /v1/events?domain=D&last=N&follow=1
//	                              one Event per line: the last N (none without it),
//	                              with follow also those to come
//	GET  /v1/domains              []Domain: those of this host's libvirt
//	GET  /v1/epochs?domain=D&last=N&follow=1
//	                              one Epoch per line: the last N (all that are kept
//	                              without it), with follow also those to come
//	GET  /v1/history?domain=D     History: the last hour of a domain
//	GET  /metrics                 what Prometheus reads
//	POST /v1/protect              ProtectRequest; one ProgressLine per line
//	POST /v1/unprotect            DomainRequest
//	POST /v1/activate             DomainRequest
//	POST /v1/failback             DomainRequest
//	POST /v1/set                  SetRequest; Pacing
//
// Errors are an Error object with an HTTP status other than 200, or in a stream
// the last line. Closing the connection of a protect cancels it.
package control

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

// Service is what the daemon can do. Methods are called concurrently. Errors
// that are not *Error are reported as internal ones.
type Service interface {
	// Protect starts protecting a domain and returns nil once its first epoch
	// is committed; the protection goes on after it. progress may be called
	// at any time before Protect returns, not concurrently. When ctx is
	// cancelled, Protect undoes what it did and returns ctx's error.
	Protect(ctx context.Context, req ProtectRequest, progress func(Status)) error
	// Unprotect ends a protection; the guest runs on unprotected.
	Unprotect(ctx context.Context, domain string) error
	// Activate lets this host's copy of a domain go on alone, by the operator's
	// decision: the standby, or on the primary the guest itself, whose output
	// waits while nobody knows whether the standby runs. force skips the check
	// that the peer cannot be reached.
	Activate(ctx context.Context, domain string, force bool) error
	// Failback moves the guest of a domain that this host is the primary of to its
	// backup, in order: it is stopped, brought there whole, and goes on. It returns
	// nil once the guest runs there; on an error it runs here as before, or
	// the error says otherwise.
	Failback(ctx context.Context, domain string) error
	// Set changes the pacing of a domain that this host is the primary of, at
	// once and until the protection ends, and returns what is in force then.
	Set(ctx context.Context, req SetRequest) (Pacing, error)
	// Status describes one domain (by name or UUID), or all when domain is
	// empty. A domain that is not protected is an Error with CodeNotProtected.
	Status(ctx context.Context, domain string) ([]Status, error)
	// Check tells whether this host, and the domain if one is named, can be
	// protected, and with a name in to whether that peer can take it. It
	// changes nothing.
	Check(ctx context.Context, req CheckRequest) (CheckReport, error)
	// Events returns what happened last, the oldest first, and with q.Follow goes
	// on with what happens from now on: nothing is missed between the two. The
	// daemon closes the channel at the end, when ctx ends, when it stops, or when
	// the reader is too slow.
	Events(ctx context.Context, q EventQuery) (<-chan Event, error)
	// Domains lists the domains of this host's libvirt, by name.
	Domains(ctx context.Context) ([]Domain, error)
	// Epochs returns the last acknowledged checkpoints of a domain that this host
	// is the primary of, the oldest first: at most last, all that are kept when it
	// is negative. With follow those to come are sent too. The daemon closes the
	// channel at the end, when ctx ends, or when the reader is too slow.
	Epochs(ctx context.Context, domain string, last int, follow bool) (<-chan Epoch, error)
	// Version tells what the daemon is.
	Version() Version
}

// ProtectRequest asks for a domain to be protected.
type ProtectRequest struct {
	Domain string `json:"domain"` // name or UUID
	To     string `json:"to"`     // peer, by name or address
	// Pacing replaces what the daemon's configuration says.
	Pacing PacingChange `json:"pacing,omitzero"`
	// Disks is where the copies of the guest's disks go on the peer, by target
	// (such as "vda"); the peer's configuration places the others.
	Disks   map[string]string `json:"disks,omitempty"`
	Arbiter string            `json:"arbiter,omitempty"` // "file" or "manual"; empty: the daemon's default
	DryRun  bool              `json:"dry_run,omitempty"` // only find out whether it could be done
	// Detach lets the initial sync go on when the connection closes. The
	// answer comes with the first progress.
	Detach bool `json:"detach,omitempty"`
}

// DomainRequest names a domain for unprotect and activate.
type DomainRequest struct {
	Domain string `json:"domain"`
	Force  bool   `json:"force,omitempty"` // activate only
}

// Pacing is how often and for how long checkpoints may stop a guest, and how
// long its output may wait for them.
type Pacing struct {
	MinNs         int64   `json:"min_ns"`          // nanoseconds: never two checkpoints closer than this
	IdleNs        int64   `json:"idle_ns"`         // nanoseconds: between checkpoints of a guest that sends nothing
	PauseShareMax float64 `json:"pause_share_max"` // of the guest's time, above 0 and below 1
	HeldMaxNs     int64   `json:"held_max_ns"`     // nanoseconds a frame may wait before the backup counts as lost; 0: any time
}

// PacingChange is a change of a Pacing. What is nil stays as it is.
type PacingChange struct {
	MinNs         *int64   `json:"min_ns,omitempty"`
	IdleNs        *int64   `json:"idle_ns,omitempty"`
	PauseShareMax *float64 `json:"pause_share_max,omitempty"`
	HeldMaxNs     *int64   `json:"held_max_ns,omitempty"`
}

// Apply returns p with the change made. Whether the values make sense is the
// daemon's to say.
func (c PacingChange) Apply(p Pacing) Pacing {
	if c.MinNs != nil {
		p.MinNs = *c.MinNs
	}
	if c.IdleNs != nil {
		p.IdleNs = *c.IdleNs
	}
	if c.PauseShareMax != nil {
		p.PauseShareMax = *c.PauseShareMax
	}
	if c.HeldMaxNs != nil {
		p.HeldMaxNs = *c.HeldMaxNs
	}
	return p
}

// SetRequest changes the pacing of a protected domain. A request that changes
// nothing only asks for the values in force.
type SetRequest struct {
	Domain string `json:"domain"` // name or UUID
	PacingChange
}

// Roles of a host for a domain.
const (
	RolePrimary = "primary"
	RoleBackup  = "backup"
)

// States in which a domain is safe: it survives the loss of one host. The other
// words are those of package ftengine.
const (
	StateProtected = "protected" // primary
	StateStandby   = "standby"   // backup
	StateSyncing   = "syncing"   // either, before the first committed epoch
)

// Status is what is known of one domain on one host. Times are milliseconds
// where their names end in _ms. Zero means "nothing to report".
type Status struct {
	Domain     string      `json:"domain"`
	UUID       string      `json:"uuid"`
	Role       string      `json:"role"`  // RolePrimary or RoleBackup
	State      string      `json:"state"` // as the engine calls it
	Peer       string      `json:"peer"`
	Generation uint64      `json:"generation"`
	Arbiter    string      `json:"arbiter,omitempty"`
	Since      time.Time   `json:"since"` // of this state
	Epoch      EpochStatus `json:"epoch"`
	EpochMs    float64     `json:"epoch_ms"` // between two checkpoints, recently
	Pacing     Pacing      `json:"pacing"`   // in force; primary only
	Pause      PauseStatus `json:"pause"`
	// Throttle tells how the pace was found, and of a guest that is slowed down.
	Throttle ThrottleStatus `json:"throttle"`
	// Ship tells how memory travels; nil until there was a session.
	Ship       *ShipStatus `json:"ship,omitempty"`
	DirtyPages int         `json:"dirty_pages"` // of 4 KiB, in the last epoch
	BytesSent  uint64      `json:"bytes_sent"`
	RateBps    float64     `json:"rate_bps"` // bytes per second, recently
	// Sync is set while the initial sync, or a resync, is under way.
	Sync            *SyncStatus `json:"sync,omitempty"`
	LastCommitAgeMs float64     `json:"last_commit_age_ms"`
	// Output tells of the gate before the guest's network; nil where there is none.
	Output *OutputStatus `json:"output,omitempty"`
	// Disks are the guest's writable ones, which are replicated.
	Disks       []DiskStatus `json:"disks,omitempty"`
	Clock       ClockStatus  `json:"clock"`
	MemoryBytes uint64       `json:"memory_bytes"`
	FailoverMs  float64      `json:"failover_ms,omitempty"` // of the last failover: detection to guest running
	Warnings    []string     `json:"warnings,omitempty"`
	Error       string       `json:"error,omitempty"`
}

// EpochStatus counts epochs from 1 within a generation.
type EpochStatus struct {
	Captured  uint64 `json:"captured"`  // taken from the guest
	Acked     uint64 `json:"acked"`     // the backup has it all
	Committed uint64 `json:"committed"` // applied to the standby
}

// PauseStatus says for how long checkpoints stopped the guest, recently, and
// where that time went: medians, each of its own, so that they need not add up.
type PauseStatus struct {
	P50Ms  float64 `json:"p50_ms"`
	P99Ms  float64 `json:"p99_ms"`
	LastMs float64 `json:"last_ms"`
	Phases Phases  `json:"phases"`
}

// Phases are the times of what is done while a guest stands still, in the order
// in which it is done, in milliseconds. StopMs begins with the command, so that
// the guest still runs for a part of it; it runs again at some point of DeviceMs.
type Phases struct {
	StopMs   float64 `json:"stop_ms"`   // monitor, vCPUs, disks
	GateMs   float64 `json:"gate_ms"`   // cutting output and writes to disks
	ScanMs   float64 `json:"scan_ms"`   // which pages were written
	CopyMs   float64 `json:"copy_ms"`   // and their contents
	HoldMs   float64 `json:"hold_ms"`   // on purpose: a guest that is slowed down
	ClockMs  float64 `json:"clock_ms"`  // until the guest's clock was sure to be kept
	DeviceMs float64 `json:"device_ms"` // the rest of the device state, and the monitor's reply
}

// Epoch is one acknowledged checkpoint.
type Epoch struct {
	Epoch      uint64    `json:"epoch"`
	Generation uint64    `json:"generation"`
	At         time.Time `json:"at"`          // of its end on this host
	IntervalMs float64   `json:"interval_ms"` // since the one before; 0 for the first
	PausedMs   float64   `json:"paused_ms"`
	Phases
	LivePages   int     `json:"live_pages"`   // copied before the pause
	PausePages  int     `json:"pause_pages"`  // copied in it
	SentPages   uint64  `json:"sent_pages"`   // with or without contents
	ZeroPages   uint64  `json:"zero_pages"`   // among them, sent without contents
	SamePages   uint64  `json:"same_pages"`   // not sent: their content was what the backup has
	DeviceBytes int     `json:"device_bytes"` // of device state
	SentBytes   uint64  `json:"sent_bytes"`   // of memory, device state, output and disks
	Packed      bool    `json:"packed"`       // memory was packed
	ShipMs      float64 `json:"ship_ms"`      // from the pause until the last byte was handed to the kernel
	AckMs       float64 `json:"ack_ms"`       // from the pause until the backup had it all
	ClockErrUs  float64 `json:"clock_err_us"` // what the guest's clock gained in the epoch, in microseconds; 0 also if it is not corrected
}

// What becomes of a guest's clock.
const (
	ClockCorrected   = "corrected"         // kvmclock goes on in pauses, and through a failover
	ClockTSC         = "tsc"               // the guest uses no kvmclock; its TSC goes on by itself, and is set at activation
	ClockTCG         = "uncorrected (TCG)" // emulated: it stands still in pauses
	ClockUncorrected = "uncorrected"       // under KVM, but see Why
)

// ClockStatus is how true a guest's clock is. Errors are the guest's clock less
// the host's CLOCK_MONOTONIC_RAW, in microseconds.
type ClockStatus struct {
	State string `json:"state"` // ClockCorrected, ClockTSC, ClockTCG or ClockUncorrected; empty: not known yet
	Why   string `json:"why,omitempty"`

	ErrUs      float64 `json:"err_us"`      // of the last epoch
	MaxErrUs   float64 `json:"max_err_us"`  // of any epoch, without its sign
	DriftUs    float64 `json:"drift_us"`    // all together since the daemon looks after it
	DebtUs     float64 `json:"debt_us"`     // of it, what the next resume puts back
	AcceptedUs float64 `json:"accepted_us"` // by what others changed it: pauses of an administrator, a host that was suspended

	Kept     uint64 `json:"kept"`     // resumes at which it went on untouched
	Restored uint64 `json:"restored"` // at which what was missed before was put back
	Missed   uint64 `json:"missed"`
	Accepted uint64 `json:"accepted"`
	LastMiss string `json:"last_miss,omitempty"`

	// EmulatedDriftUs is how far the clock by which QEMU's own timers go (HPET, ACPI
	// timer; under TCG all) is ahead of the host since the daemon looks.
	EmulatedDriftUs float64 `json:"emulated_drift_us"`
	// StepUs is by how much kvmclock was set forward at activation, beyond what
	// the checkpoint was already given while it was loaded.
	StepUs float64    `json:"step_us"`
	Peer   *PeerClock `json:"peer,omitempty"` // nil: not compared yet
}

// PeerClock is the difference of two hosts' clocks, which is how wrong a guest's
// clock can become by a failover.
type PeerClock struct {
	AheadUs float64 `json:"ahead_us"` // the peer's clock less this host's; 0 while nothing contradicts
	ErrUs   float64 `json:"err_us"`   // at most so far from it
}

// ThrottleStatus is how the pace follows the guest and the link.
type ThrottleStatus struct {
	LinkBps  float64 `json:"link_bps"`         // bytes per second that the link was seen to carry; 0: unknown
	DirtyBps float64 `json:"dirty_bps"`        // bytes per second that the guest was seen to write
	Share    float64 `json:"share"`            // of its time that the guest is held so that the link keeps up
	Reason   string  `json:"reason,omitempty"` // what decides the pace now
}

// ShipStatus is how memory travels to the backup. It counts since the session
// began.
type ShipStatus struct {
	Streams       int     `json:"streams"`
	ZeroCopy      string  `json:"zero_copy"` // "zero-copy", or why bytes are copied
	ZeroCopyBytes uint64  `json:"zero_copy_bytes"`
	SentBytes     uint64  `json:"sent_bytes"`
	Pages         uint64  `json:"pages"`      // looked at
	ZeroPages     uint64  `json:"zero_pages"` // of these: sent without contents
	SamePages     uint64  `json:"same_pages"` // of these: not sent
	Packed        bool    `json:"packed"`     // in the last epoch
	PackRatio     float64 `json:"pack_ratio"` // packed size over size, recently; 0: not packed
}

// Modes of the gate before a guest's network.
const (
	OutputPassing = "passing" // frames flow, as before the first checkpoint
	OutputHolding = "holding" // frames wait for the backup's acknowledgement of their epoch
	OutputClosed  = "closed"  // nothing leaves: another host may run this guest
)

// OutputStatus is the state of the gate before a guest's network. Frames and
// inputs are counted since the protection began.
type OutputStatus struct {
	Mode           string  `json:"mode"`        // OutputPassing, OutputHolding or OutputClosed
	HeldFrames     uint64  `json:"held_frames"` // now
	HeldBytes      uint64  `json:"held_bytes"`  // now
	OldestMs       float64 `json:"oldest_ms"`   // for how long the oldest of them has waited
	ReleasedFrames uint64  `json:"released_frames"`
	DroppedFull    uint64  `json:"dropped_full"`  // frames, because the queue was full
	DroppedLease   uint64  `json:"dropped_lease"` // times the kernel refused a frame because the lease was over; it stays held
	InputsLogged   uint64  `json:"inputs_logged"` // frames
	InputsSkipped  uint64  `json:"inputs_skipped"`
	LeaseMs        float64 `json:"lease_ms"`          // left of the right to release
	Stalled        string  `json:"stalled,omitempty"` // why held frames do not leave; empty while they do
}

// DiskStatus is a replicated disk. Bytes are counted since the session with the
// peer began, on the primary only.
type DiskStatus struct {
	Name         string `json:"name"` // its target, such as "vda"
	Path         string `json:"path"` // of the image on this host
	SizeBytes    uint64 `json:"size_bytes"`
	WrittenBytes uint64 `json:"written_bytes,omitempty"` // by the guest, and by the first copy
	SentBytes    uint64 `json:"sent_bytes,omitempty"`
	EqualBytes   uint64 `json:"equal_bytes,omitempty"` // not sent: the backup had them
}

// SyncStatus is the progress of copying a guest's whole memory and its disks.
type SyncStatus struct {
	DoneBytes  uint64  `json:"done_bytes"`
	TotalBytes uint64  `json:"total_bytes"`
	RateBps    float64 `json:"rate_bps"` // bytes per second
	EtaS       float64 `json:"eta_s"`    // seconds; 0 when unknown
}

// States returns the words that Status.State may be on a host of this role.
// What they mean is in docs/OPERATIONS.md.
func States(role string) []string {
	if role == RoleBackup {
		return []string{"waiting", StateSyncing, StateStandby, "orphaned", "claiming", "activating", "active", "ending", "failed", "stopped"}
	}
	return []string{"connecting", StateSyncing, StateProtected, "switching", "undecided", "alone", "fenced", "handed-over", "stopping", "stopped"}
}

// Safe reports whether the domain survives the loss of one host now.
func (s Status) Safe() bool {
	return s.State == StateProtected || s.State == StateStandby
}

// Kinds of events.
const (
	EventState   = "state"   // a runner of a domain changed its state
	EventEnded   = "ended"   // a runner ended: status knows the domain no more, or as another's
	EventStalled = "stalled" // held output does not leave
	EventFlowing = "flowing" // it does again
	EventDisk    = "disk"    // the copies of the disks cannot follow
)

// EventQuery says which events are wanted.
type EventQuery struct {
	Domain string    // of this domain only, by name or UUID; empty: all
	Last   int       // how many of those that happened already; negative: all that are kept
	Since  time.Time // of these, none before; zero: any
	Follow bool      // and those to come
}

// Wants reports whether an event is one of the domain that is asked for.
func (q EventQuery) Wants(e Event) bool {
	return q.Domain == "" || q.Domain == e.Domain || q.Domain == e.UUID
}

// Event is something that happened to a domain, or to the daemon when Domain
// is empty.
type Event struct {
	At         time.Time `json:"at"`
	Domain     string    `json:"domain,omitempty"`
	UUID       string    `json:"uuid,omitempty"` // of the domain
	Kind       string    `json:"kind"`           // EventState and so on
	Role       string    `json:"role,omitempty"`
	State      string    `json:"state,omitempty"` // the new one, of EventState
	Generation uint64    `json:"generation,omitempty"`
	Peer       string    `json:"peer,omitempty"`
	Text       string    `json:"text"` // for people
}

// Domain is a domain of this host's libvirt.
type Domain struct {
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Active bool   `json:"active"`         // it runs, or is paused
	Role   string `json:"role,omitempty"` // RolePrimary or RoleBackup, if this host is one for it
}

// Version tells what a program was built from.
type Version struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Host     string `json:"host,omitempty"` // of a daemon: its configured name
}

// release and releaseRevision are set by the linker (-X) when a package is built,
// see packaging/install.sh; never by the program.
var release, releaseRevision string

// BuildVersion describes the running program: the package's version, or what the
// go command stamped into it.
func BuildVersion() Version {
	v := Version{Version: "unknown", Go: runtime.Version()}
	if release != "" {
		v.Version, v.Revision = release, releaseRevision
		return v
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified && v.Revision != "" {
		v.Revision += "+changes"
	}
	return v
}

// ProgressLine is one line of a protect's stream: either a status, or an error
// which ends it, or done.
type ProgressLine struct {
	Status *Status `json:"status,omitempty"`
	Error  *Error  `json:"failed,omitempty"`
	Done   bool    `json:"done,omitempty"`
}
