package diskrep

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Durability says what an acknowledged epoch survives on the backup. Zero is
// invalid.
type Durability int

const (
	// DurabilityMemory: an epoch that EndEpoch accepted survives the death of
	// this process. A power cut of the backup may take the last ones with it,
	// and leaves the images at an older epoch's boundary: data is lost when
	// both hosts fail together.
	DurabilityMemory Durability = iota + 1
	// DurabilityFsync: it is on the backup's disk as well.
	DurabilityFsync
)

// String returns the word of the configuration.
func (d Durability) String() string {
	switch d {
	case DurabilityMemory:
		return "memory"
	case DurabilityFsync:
		return "fsync"
	}
	return fmt.Sprintf("durability %d", int(d))
}

// ParseDurability is the inverse of String.
func ParseDurability(s string) (Durability, error) {
	for _, d := range []Durability{DurabilityMemory, DurabilityFsync} {
		if s == d.String() {
			return d, nil
		}
	}
	return 0, fmt.Errorf("durability %q is not known: say \"memory\" or \"fsync\"", s)
}

// DisksMax bounds the disks of one Target.
const DisksMax = 64

// journalBytesDefault is JournalBytesMax where none is given.
const journalBytesDefault = 256 << 20

// TargetOptions is what a Target needs to know.
type TargetOptions struct {
	JournalDir string   // a directory for this protection alone; made (0700) if missing
	Disks      []Disk   // at least one, at most DisksMax
	Paths      []string // where the images are, absolute, one for each disk
	Durability Durability
	// JournalBytesMax is about what the journal may take: beyond it the images
	// are synced and the journal is emptied. Epochs that are committed and not
	// applied may take as much: EndEpoch waits for room. 0 means 256 MiB.
	JournalBytesMax int64
	// Failed is called at most once, on a goroutine of its own, when committed
	// epochs cannot be applied (disk full, I/O error). May be nil.
	Failed func(error)
	Log    *slog.Logger // may be nil

	// tests
	hook hook          // sees every change of a file, and may forbid it
	pace time.Duration // 0 means applyPace, negative means none
	held int64         // 0 means heldBytesMax
}

// TargetStats is a moment of a Target.
type TargetStats struct {
	StagedEpochs int   // not applied yet, the one that arrives now included
	StagedBytes  int64 // their data, in memory or, beyond a bound, in the journal alone
	HeldBytes    int64 // of these, in memory
	JournalBytes int64 // on disk

	EndedEpoch     uint64
	CommittedEpoch uint64
	AppliedEpoch   uint64
	// Lag is the age of the oldest commit that is not applied; 0 if none is.
	Lag time.Duration

	// How often the journal and the images were synced, and how long it took.
	JournalSyncs, ImageSyncs       uint64
	JournalSyncTime, ImageSyncTime time.Duration // all together
	JournalSyncMax, ImageSyncMax   time.Duration // the longest
}

var (
	// ErrSettled is returned by what comes too late: the images belong to a
	// guest that runs.
	ErrSettled = errors.New("the disks are handed over to the guest")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("the disks are closed")
	// ErrForeignJournal: the journal was written for other disks, or for other
	// places of them, so it cannot be applied to these.
	ErrForeignJournal = errors.New("the journal is of other disks")
	// ErrLocked: another process, or another Target, works on the same files.
	ErrLocked = errors.New("in use by another virt-ft")
)
