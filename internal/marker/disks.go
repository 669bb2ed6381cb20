package marker

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

// ImageKind is what an image on this host is to a guest.
type ImageKind string

// The kinds of images.
const (
	ImageSource ImageKind = "source" // the guest runs, or ran last, on it
	ImageCopy   ImageKind = "copy"   // follows the image of another host
	ImagePart   ImageKind = "part"   // a copy that was never whole, or is being made whole again
	ImageStale  ImageKind = "stale"  // the guest went on elsewhere from a copy
)

// diskVersion is the format of disk records. Zero is invalid.
const diskVersion = 1

// DiskRecord is the durable knowledge of where the images of a guest are on
// this host, and what they are: no image that we do not know is written over,
// and one that the guest was moved away from is brought up to date in its place
// when the guest is protected to this host.
type DiskRecord struct {
	Version int                  `json:"version"`
	Domain  string               `json:"domain"`
	UUID    string               `json:"uuid"`
	Disks   map[string]DiskImage `json:"disks"` // by target
	At      time.Time            `json:"at"`
	Active  string               `json:"active,omitempty"` // the host that the guest went to, of stale images
	Since   uint64               `json:"generation,omitempty"`
}

// DiskImage is one image on this host.
type DiskImage struct {
	Path string    `json:"path"`
	Kind ImageKind `json:"kind"`
	// Raw: what is in it is what the guest sees, so that it can become a copy.
	Raw       bool   `json:"raw"`
	SizeBytes uint64 `json:"sizeBytes,omitempty"` // of a copy
	Index     int    `json:"index,omitempty"`     // of a copy: in the order of the guest's XML
}

// Disks keeps one file for each domain. Safe for concurrent use.
type Disks struct {
	dir string
	mu  sync.Mutex
}

// OpenDisks makes the directory of the disk records, in the state directory, if
// there is none yet.
func OpenDisks(stateDir string) (*Disks, error) {
	r := DisksAt(stateDir)
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory %s: %w", r.dir, err)
	}
	return r, nil
}

// DisksAt is a Disks in a state directory that somebody else makes and fills.
func DisksAt(stateDir string) *Disks { return &Disks{dir: filepath.Join(stateDir, "disks")} }

func (r *Disks) path(uuid string) string { return filepath.Join(r.dir, uuid+".json") }

// Get returns what is known of a domain's images here; nothing is no error.
func (r *Disks) Get(uuid string) (DiskRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read(uuid)
}

func (r *Disks) read(uuid string) (DiskRecord, error) {
	rec := DiskRecord{Version: diskVersion, UUID: uuid, Disks: map[string]DiskImage{}}
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
	if rec.Version != diskVersion {
		return rec, fmt.Errorf("disk record %s has version %d, this program knows %d", r.path(uuid), rec.Version, diskVersion)
	}
	if rec.Disks == nil {
		rec.Disks = map[string]DiskImage{}
	}
	return rec, nil
}

// All returns every readable record, and an error that names the others.
func (r *Disks) All() ([]DiskRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return all(r.dir, r.read)
}

// Change alters a domain's record and returns when it is on disk. A change that
// alters nothing costs nothing.
func (r *Disks) Change(uuid, domain string, f func(*DiskRecord)) error {
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

// Become turns every image of a record into kind.
func (rec *DiskRecord) Become(kind ImageKind) {
	for name, img := range rec.Disks {
		img.Kind = kind
		rec.Disks[name] = img
	}
}
