package virt

import "libvirt.org/go/libvirt"

// lifecycle names a libvirt lifecycle event. Definitions of domains are not events to us.
func lifecycle(event libvirt.DomainEventType, detail int) (Kind, string, bool) {
	switch event {
	case libvirt.DOMAIN_EVENT_STARTED:
		return Started, word(detail, "booted", "migrated", "restored", "fromSnapshot", "wakeup", "recreated"), true
	case libvirt.DOMAIN_EVENT_SUSPENDED:
		return Suspended, word(detail, "paused", "migrated", "ioerror", "watchdog", "restored", "fromSnapshot",
			"apiError", "postcopy", "postcopyFailed", "guestShutdown"), true
	case libvirt.DOMAIN_EVENT_RESUMED:
		return Resumed, word(detail, "unpaused", "migrated", "fromSnapshot", "postcopy", "postcopyFailed"), true
	case libvirt.DOMAIN_EVENT_STOPPED:
		return Stopped, word(detail, "shutdown", "destroyed", "crashed", "migrated", "saved", "failed",
			"fromSnapshot", "recreated"), true
	case libvirt.DOMAIN_EVENT_SHUTDOWN:
		return Shutdown, word(detail, "finished", "guest", "host"), true
	case libvirt.DOMAIN_EVENT_CRASHED:
		return Crashed, word(detail, "panicked", "crashloaded"), true
	case libvirt.DOMAIN_EVENT_PMSUSPENDED:
		return PMSuspended, word(detail, "memory", "disk"), true
	}
	return "", "", false
}

// copyEvent names a libvirt block job event. Jobs of other kinds than copies are not events to us.
func copyEvent(target string, kind libvirt.DomainBlockJobType, status libvirt.ConnectDomainEventBlockJobStatus) (Kind, string, bool) {
	if kind != libvirt.DOMAIN_BLOCK_JOB_TYPE_COPY {
		return "", "", false
	}
	switch status {
	case libvirt.DOMAIN_BLOCK_JOB_READY:
		return CopyReady, target, true
	case libvirt.DOMAIN_BLOCK_JOB_COMPLETED:
		return CopyEnded, target + " completed", true
	case libvirt.DOMAIN_BLOCK_JOB_FAILED:
		return CopyEnded, target + " failed", true
	case libvirt.DOMAIN_BLOCK_JOB_CANCELED:
		return CopyEnded, target + " canceled", true
	}
	return "", "", false
}

// word is the i-th of libvirt's enumeration, which only ever grows at its end.
func word(i int, words ...string) string {
	if i < 0 || i >= len(words) {
		return "unknown"
	}
	return words[i]
}

// Status is the state of a domain in one word.
type Status string

// The states of a domain. A domain that is being captured is Paused for moments.
const (
	NoState   Status = "nostate"
	Running   Status = "running"
	Blocked   Status = "blocked"
	Paused    Status = "paused"
	InStop    Status = "shutdown" // being shut down
	Shutoff   Status = "shutoff"
	Crash     Status = "crashed"
	PMSuspend Status = "pmsuspended"
)

// State is what libvirt says about a domain.
type State struct {
	Status Status `json:"status"`
	Reason string `json:"reason"` // libvirt's reason, as virsh domstate --reason names it, in one word
}

// Active reports whether the domain has a QEMU process.
func (s State) Active() bool { return s.Status != Shutoff && s.Status != NoState }

func stateOf(state libvirt.DomainState, reason int) State {
	switch state {
	case libvirt.DOMAIN_RUNNING:
		return State{Running, word(reason, "unknown", "booted", "migrated", "restored", "fromSnapshot", "unpaused",
			"migrationCanceled", "saveCanceled", "wakeup", "crashed", "postcopy", "postcopyFailed")}
	case libvirt.DOMAIN_BLOCKED:
		return State{Blocked, "unknown"}
	case libvirt.DOMAIN_PAUSED:
		return State{Paused, word(reason, "unknown", "user", "migration", "save", "dump", "ioerror", "watchdog",
			"fromSnapshot", "shuttingDown", "snapshot", "crashed", "startingUp", "postcopy", "postcopyFailed",
			"apiError")}
	case libvirt.DOMAIN_SHUTDOWN:
		return State{InStop, word(reason, "unknown", "user")}
	case libvirt.DOMAIN_SHUTOFF:
		return State{Shutoff, word(reason, "unknown", "shutdown", "destroyed", "crashed", "migrated", "saved",
			"failed", "fromSnapshot", "daemon")}
	case libvirt.DOMAIN_CRASHED:
		return State{Crash, word(reason, "unknown", "panicked")}
	case libvirt.DOMAIN_PMSUSPENDED:
		return State{PMSuspend, "unknown"}
	}
	return State{NoState, "unknown"}
}
