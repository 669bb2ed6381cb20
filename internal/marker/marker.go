// Package marker keeps what must be known of a guest after a restart, in small
// files: that it is or was protected here, and as what (Marker, Store), and
// where its images are, and what they are worth (DiskRecord, Disks). The daemon
// writes them. The libvirt hook reads them, also when no daemon runs, so this
// package needs little and starts nothing.
package marker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// fileBytesMax bounds what is read back from a file of ours.
const fileBytesMax = 64 << 10

// version is the format of marker files. Zero is invalid.
const version = 1

// Role is what this host is to a guest.
type Role string

// The roles. A host has one of them for a guest, or no marker.
const (
	RolePrimary Role = "primary" // the guest runs here
	RoleBackup  Role = "backup"  // a standby of it waits here
)

// Phase is how far a protection is. pkg/ftengine decides when it changes.
type Phase string

// Phases of a primary.
const (
	// PhaseConnecting: no backup can hold a checkpoint of this guest.
	PhaseConnecting Phase = "connecting"
	// PhaseArmed: a first checkpoint may be on its way, a backup may hold it.
	PhaseArmed Phase = "armed"
	// PhaseProtected: a backup holds a checkpoint that was tried.
	PhaseProtected Phase = "protected"
	// PhaseFenced: we have paused the guest, because the backup may be running
	// it, or is about to.
	PhaseFenced Phase = "fenced"
	// PhaseTold: we have paused the guest and told the backup to go on with it.
	PhaseTold Phase = "told"
	// PhaseAlone: this host won the right to run the guest; no backup can have it.
	PhaseAlone Phase = "alone"
	// PhaseLost: the guest ended here while nobody watched, and the backup may go
	// on from its last checkpoint.
	PhaseLost Phase = "lost"
	// PhaseHandedOver: the guest died here, and the backup is told to go on with it.
	PhaseHandedOver Phase = "handed-over"
)

// Phases of a backup.
const (
	// PhaseSyncing: the standby is not whole yet.
	PhaseSyncing Phase = "syncing"
	// PhaseStandby: the standby may take over.
	PhaseStandby Phase = "standby"
	// PhaseClaimed: this host won the right to run the guest, and loads it.
	PhaseClaimed Phase = "claimed"
	// PhaseActive: the guest runs here.
	PhaseActive Phase = "active"
)

// PhaseEnded, of both roles: there is no protection any more; Marker.Reason says
// why.
const PhaseEnded Phase = "ended"

// Marker is the durable fact that a domain was protected here. It is written
// before the first checkpoint can be committed, so that a daemon that starts
// again knows that a backup may hold a copy of the guest.
type Marker struct {
	Version    int    `json:"version"`
	Domain     string `json:"domain"`
	UUID       string `json:"uuid"`
	Role       Role   `json:"role"`
	Phase      Phase  `json:"phase"`
	Protection string `json:"protection"` // 32 hex digits
	Generation uint64 `json:"generation"`
	Peer       string `json:"peer,omitempty"`
	PeerName   string `json:"peerName,omitempty"`
	Arbiter    string `json:"arbiter,omitempty"`
	// ArbiterID tells the shared directory from an empty mount point.
	ArbiterID string `json:"arbiterId,omitempty"`
	Pacing    Pacing `json:"pacing,omitzero"` // primary only
	// Disks is where the operator wants the backup's images, by target.
	Disks map[string]string `json:"disks,omitempty"`
	At    time.Time         `json:"at"`
	// Ran: the guest ran here under Generation, as the backup's. A copy of an older
	// generation is of the past, also when this one has ended since.
	Ran bool `json:"ran,omitempty"`
	// Reason is the last word on a protection that ended.
	Reason string `json:"reason,omitempty"`
}

// Pacing is a control.Pacing, kept. The two convert into each other.
type Pacing struct {
	MinNs         int64   `json:"min_ns"`
	IdleNs        int64   `json:"idle_ns"`
	PauseShareMax float64 `json:"pause_share_max"`
	HeldMaxNs     int64   `json:"held_max_ns"`
}

// Ended tells that nothing is to be taken up again after a restart.
func (m Marker) Ended() bool {
	switch m.Phase {
	case PhaseEnded:
		return true
	}
	return false
}

// Armed tells that a backup may hold a checkpoint under this marker.
func (m Marker) Armed() bool {
	switch m.Phase {
	case PhaseArmed, PhaseProtected, PhaseFenced, PhaseTold, PhaseHandedOver:
		return true
	}
	return false
}

// MayRun tells that a backup's marker says that its standby may be the guest.
func (m Marker) MayRun() bool {
	return m.Role == RoleBackup && (m.Phase == PhaseClaimed || m.Phase == PhaseActive)
}

// RanUnder returns the generation under which the guest ran here last, as far as
// this marker knows, or 0.
func (m Marker) RanUnder() uint64 {
	if m.Ran || m.Role == RolePrimary {
		return m.Generation
	}
	return 0
}

// Store keeps one marker file a domain. Its methods may be called
// concurrently for different domains.
type Store struct{ dir string }

// Open makes the state directory if there is none yet.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	return At(dir), nil
}

// At is a Store in a state directory that somebody else makes and fills.
func At(dir string) *Store { return &Store{dir} }

func (s *Store) path(uuid string) string { return filepath.Join(s.dir, uuid+".json") }

// Put replaces the marker of m.UUID and returns when it is on disk. It sets
// Version and At.
func (s *Store) Put(m Marker) error {
	m.Version, m.At = version, time.Now()
	if err := putJSON(s.dir, s.path(m.UUID), m); err != nil {
		return fmt.Errorf("marker of %s: %w", m.Domain, err)
	}
	return nil
}

// putJSON replaces the file at path, which is in dir, and returns when that is
// on disk.
func putJSON(dir, path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // a no-op once it was renamed
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	return err
}

// readBounded reads a small file of ours.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, fileBytesMax))
}

// Get returns the marker of a domain; fs.ErrNotExist when there is none.
func (s *Store) Get(uuid string) (Marker, error) {
	var m Marker
	b, err := readBounded(s.path(uuid))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("marker %s is damaged: %w", s.path(uuid), err)
	}
	if m.Version != version {
		return m, fmt.Errorf("marker %s has version %d, this program knows %d", s.path(uuid), m.Version, version)
	}
	return m, nil
}

// All returns every readable marker, and an error that names the others.
func (s *Store) All() ([]Marker, error) { return all(s.dir, s.Get) }

// all reads every file of a directory that is a domain's.
func all[T any](dir string, get func(uuid string) (T, error)) ([]T, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []T
	var bad error
	for _, n := range names {
		uuid, ok := strings.CutSuffix(n.Name(), ".json")
		if !ok {
			continue
		}
		v, err := get(uuid)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				bad = errors.Join(bad, err)
			}
			continue
		}
		found = append(found, v)
	}
	return found, bad
}

// LastGeneration is the highest generation ever used here for a domain.
func (s *Store) LastGeneration(uuid string) uint64 {
	m, err := s.Get(uuid)
	if err != nil {
		return 0
	}
	return m.Generation
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
