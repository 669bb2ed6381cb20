package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// What an image on this host is to a guest.
const (
	imageSource = "source" // the guest runs, or ran last, on it
	imageCopy   = "copy"   // follows the image of another host
	imagePart   = "part"   // a copy that was never whole, or is being made whole again
	imageStale  = "stale"  // the guest went on elsewhere from a copy
)

// diskRecordVersion is the format of disk records. Zero is invalid.
const diskRecordVersion = 1

// diskRecord is the durable knowledge of where the images of a guest are on
// this host, and what they are: no image that we do not know is written over,
// and one that the guest was moved away from is brought up to date in its place
// when the guest is protected to this host.
type diskRecord struct {
	Version int                  `json:"version"`
	Domain  string               `json:"domain"`
	UUID    string               `json:"uuid"`
	Disks   map[string]diskImage `json:"disks"` // by target
	At      time.Time            `json:"at"`
	Active  string               `json:"active,omitempty"` // the host that the guest went to, of stale images
	Since   uint64               `json:"generation,omitempty"`
}

// diskImage is one image on this host.
type diskImage struct {
	Path string `json:"path"`
	Kind string `json:"kind"`
	// Raw: what is in it is what the guest sees, so that it can become a copy.
	Raw       bool   `json:"raw"`
	SizeBytes uint64 `json:"sizeBytes,omitempty"` // of a copy
	Index     int    `json:"index,omitempty"`     // of a copy: in the order of the guest's XML
}

// diskRecords keeps one file for each domain. Safe for concurrent use.
type diskRecords struct {
	dir string
	mu  sync.Mutex
}

func openDiskRecords(stateDir string) (*diskRecords, error) {
	dir := filepath.Join(stateDir, "disks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	return &diskRecords{dir: dir}, nil
}

func (r *diskRecords) path(uuid string) string { return filepath.Join(r.dir, uuid+".json") }

// get returns what is known of a domain's images here; nothing is no error.
func (r *diskRecords) get(uuid string) (diskRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read(uuid)
}

func (r *diskRecords) read(uuid string) (diskRecord, error) {
	rec := diskRecord{Version: diskRecordVersion, UUID: uuid, Disks: map[string]diskImage{}}
	b, err := readBounded(r.path(uuid))
	if errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("disk record %s is damaged: %w", r.path(uuid), err)
	}
	if rec.Version != diskRecordVersion {
		return rec, fmt.Errorf("disk record %s has version %d, this daemon knows %d", r.path(uuid), rec.Version, diskRecordVersion)
	}
	if rec.Disks == nil {
		rec.Disks = map[string]diskImage{}
	}
	return rec, nil
}

// change alters a domain's record and returns when it is on disk. A change that
// alters nothing costs nothing.
func (r *diskRecords) change(uuid, domain string, f func(*diskRecord)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, err := r.read(uuid)
	if err != nil {
		return err
	}
	rec.Domain = domain
	before, _ := json.Marshal(rec)
	f(&rec)
	if after, _ := json.Marshal(rec); string(after) == string(before) {
		return nil
	}
	rec.At = time.Now()
	return putJSON(r.dir, r.path(uuid), rec)
}

// become turns every image of a record into kind.
func (rec *diskRecord) become(kind string) {
	for name, img := range rec.Disks {
		img.Kind = kind
		rec.Disks[name] = img
	}
}
