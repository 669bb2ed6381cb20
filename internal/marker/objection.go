package marker

import (
	"errors"
	"fmt"
	"io/fs"
)

// Objection says what speaks against starting a guest on this host. Only a
// daemon may put it aside: it knows more than files do.
type Objection struct {
	Why    string // "web1 went on at host-b, ..."
	Remedy string // what a person can do about it; may be empty
}

// Object asks the files in a state directory whether a guest may be started on
// this host by somebody who does not know what the daemon knows; nil: nothing
// speaks against it. A state directory that is not there knows nothing. A file
// that cannot be read is an objection: it may say anything.
func Object(stateDir, uuid string) *Objection {
	m, err := At(stateDir).Get(uuid)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unreadable(err)
	}
	if o := m.object(); o != nil {
		return o
	}
	rec, err := DisksAt(stateDir).Get(uuid)
	if err != nil {
		return unreadable(err)
	}
	return rec.object()
}

// ObjectByName is Object for a guest of which only the name is known: what
// speaks against any guest that had this name speaks against it.
func ObjectByName(stateDir, name string) *Objection {
	ms, err := At(stateDir).All()
	for _, m := range ms {
		if o := m.object(); o != nil && m.Domain == name {
			return o
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unreadable(err)
	}
	recs, err := DisksAt(stateDir).All()
	for _, rec := range recs {
		if o := rec.object(); o != nil && rec.Domain == name {
			return o
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unreadable(err)
	}
	return nil
}

func unreadable(err error) *Objection {
	return &Objection{"what virt-ft knows of it cannot be read: " + err.Error(),
		"if that file is lost, see that the guest runs nowhere else, then remove it"}
}

func (m Marker) object() *Objection {
	if m.Role == RoleBackup {
		return m.objectAsBackup()
	}
	switch m.Phase {
	case "", PhaseConnecting, PhaseAlone, PhaseEnded:
		return nil // where it went on is in its disk record
	case PhaseArmed, PhaseProtected, PhaseFenced, PhaseTold, PhaseHandedOver:
		return &Objection{fmt.Sprintf("%s was protected to %s, where it may run by now", m.Domain, m.PeerName), ""}
	case PhaseLost:
		return &Objection{fmt.Sprintf("%s ended here unseen, and %s may go on from its last checkpoint", m.Domain, m.PeerName),
			fmt.Sprintf("virt-ft activate %s here gives that up", m.Domain)}
	}
	return m.objectUnknown()
}

func (m Marker) objectAsBackup() *Objection {
	switch m.Phase {
	case PhaseEnded:
		return nil
	case PhaseSyncing, PhaseStandby:
		return &Objection{fmt.Sprintf("this host stands by for %s, which runs on %s", m.Domain, m.PeerName),
			fmt.Sprintf("virt-ft unprotect %s there ends that", m.Domain)}
	case PhaseClaimed, PhaseActive:
		return &Objection{fmt.Sprintf("the standby of %s took over here from %s", m.Domain, m.PeerName), ""}
	}
	return m.objectUnknown()
}

func (m Marker) objectUnknown() *Objection {
	return &Objection{fmt.Sprintf("%s is %q for virt-ft, which this program does not know", m.Domain, string(m.Phase)),
		"install the hook of the daemon's own version"}
}

func (rec DiskRecord) object() *Objection {
	if rec.Active == "" {
		return nil
	}
	why := fmt.Sprintf("%s went on at %s", rec.Domain, rec.Active)
	if len(rec.Disks) > 0 {
		why += "; its disks here are of the past"
	}
	return &Objection{why, fmt.Sprintf("protect it from %s to this host, or give up what happened there: virt-ft activate --force %s here", rec.Active, rec.Domain)}
}
