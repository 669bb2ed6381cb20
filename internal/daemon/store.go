package daemon

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

	"github.com/virt-ft/virt-ft/internal/control"
)

// markerBytesMax bounds what we read back from a marker file.
const markerBytesMax = 64 << 10

// markerVersion is the format of marker files. Zero is invalid.
const markerVersion = 1

// marker is the durable fact that a domain was protected here. It is written
// before the first checkpoint can be committed, so that a daemon that starts
// again knows that a backup may hold a copy of the guest.
type marker struct {
	Version    int    `json:"version"`
	Domain     string `json:"domain"`
	UUID       string `json:"uuid"`
	Role       string `json:"role"` // "primary" or "backup"
	Phase      string `json:"phase"`
	Protection string `json:"protection"` // 32 hex digits
	Generation uint64 `json:"generation"`
	Peer       string `json:"peer,omitempty"`
	PeerName   string `json:"peerName,omitempty"`
	Arbiter    string `json:"arbiter,omitempty"`
	// ArbiterID tells the shared directory from an empty mount point.
	ArbiterID string         `json:"arbiterId,omitempty"`
	Pacing    control.Pacing `json:"pacing,omitzero"` // primary only
	// Disks is where the operator wants the backup's images, by target.
	Disks map[string]string `json:"disks,omitempty"`
	At    time.Time         `json:"at"`
	// Reason is the last word on a protection that ended.
	Reason string `json:"reason,omitempty"`
}

// ended tells that nothing is to be taken up again after a restart.
func (m marker) ended() bool {
	switch m.Phase {
	case "ended", "handed-over":
		return true
	}
	return false
}

// armed tells that a backup may hold a checkpoint under this marker.
func (m marker) armed() bool {
	switch m.Phase {
	case "armed", "protected", "fenced":
		return true
	}
	return false
}

// store keeps one marker file a domain. Its methods may be called
// concurrently for different domains.
type store struct{ dir string }

func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	return &store{dir}, nil
}

func (s *store) path(uuid string) string { return filepath.Join(s.dir, uuid+".json") }

// put replaces the marker of m.UUID and returns when it is on disk.
func (s *store) put(m marker) error {
	m.Version, m.At = markerVersion, time.Now()
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
	return io.ReadAll(io.LimitReader(f, markerBytesMax))
}

// get returns the marker of a domain; fs.ErrNotExist when there is none.
func (s *store) get(uuid string) (marker, error) {
	var m marker
	b, err := readBounded(s.path(uuid))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("marker %s is damaged: %w", s.path(uuid), err)
	}
	if m.Version != markerVersion {
		return m, fmt.Errorf("marker %s has version %d, this daemon knows %d", s.path(uuid), m.Version, markerVersion)
	}
	return m, nil
}

// all returns every readable marker, and an error that names the others.
func (s *store) all() ([]marker, error) {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var ms []marker
	var bad error
	for _, n := range names {
		uuid, ok := strings.CutSuffix(n.Name(), ".json")
		if !ok {
			continue
		}
		m, err := s.get(uuid)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				bad = errors.Join(bad, err)
			}
			continue
		}
		ms = append(ms, m)
	}
	return ms, bad
}

// lastGeneration is the highest generation ever used here for a domain.
func (s *store) lastGeneration(uuid string) uint64 {
	m, err := s.get(uuid)
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
