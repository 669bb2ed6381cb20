package lab

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Records is what CheckRecords found. Missing, Foreign and Torn must be zero.
type Records struct {
	Acked    uint64   // acknowledged requests that were looked for
	Whole    uint64   // records of this boot of the guest, acceptance and load
	Missing  uint64   // acknowledged requests whose slot holds neither their record nor a newer one
	Foreign  uint64   // records that contradict what clients were told, or lie where they do not belong
	Torn     uint64   // slots with a part of a record
	Findings []string // the first of these, in words
}

// Err is nil for a disk without a finding.
func (r Records) Err() error {
	if r.Missing+r.Foreign+r.Torn == 0 {
		return nil
	}
	return fmt.Errorf("lab: on the disk %d acknowledged records are missing, %d are foreign, %d slots are torn: %q", r.Missing, r.Foreign, r.Torn, r.Findings)
}

func (r *Records) find(count *uint64, format string, args ...any) {
	*count++
	if len(r.Findings) < findingsMax {
		r.Findings = append(r.Findings, fmt.Sprintf(format, args...))
	}
}

// recordsReadBytes is how much of an image is read at once.
const recordsReadBytes = 1 << 20

// CheckRecords compares a raw image with what clients of the guest were told.
// Every answer with a serial above since, from when on the acceptance service
// wrote to this disk (0: from the beginning), must be on the image: its slot
// holds its record, or a newer one. What else is there must come from requests
// that were sent, and must not have been answered otherwise: such a record is
// from an epoch that was discarded. No slot may be torn.
//
// The journals are those of all clients that the guest had. Nobody may write to
// the image meanwhile. An error says that the image could not be judged; what
// is wrong with it is in Records.
func CheckRecords(path string, since uint64, journals ...*Journal) (Records, error) {
	generation, ok := uint64(0), false
	for _, j := range journals {
		if g, heard := j.generation(); heard {
			generation, ok = g, true
		}
	}
	if !ok {
		return Records{}, errors.New("lab: no client was ever answered: nothing tells which records are the guest's")
	}
	f, err := os.Open(path)
	if err != nil {
		return Records{}, fmt.Errorf("lab: image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Records{}, fmt.Errorf("lab: image: %w", err)
	}
	layout, err := guestapi.LayoutOf(info.Size())
	if err != nil {
		return Records{}, fmt.Errorf("lab: image %s: %w", path, err)
	}
	c := recordCheck{generation: generation, layout: layout, held: map[uint64]guestapi.Record{}, journals: journals}
	if err := c.read(f); err != nil {
		return Records{}, fmt.Errorf("lab: image %s: %w", path, err)
	}
	for _, j := range journals {
		j.Answered(since, c.acked)
	}
	for _, r := range c.held {
		c.known(r)
	}
	return c.Records, nil
}

type recordCheck struct {
	Records
	generation uint64
	layout     guestapi.DiskLayout
	held       map[uint64]guestapi.Record // slot -> record of the acceptance service
	journals   []*Journal
}

// read takes all slots in.
func (c *recordCheck) read(f io.ReaderAt) error {
	buf := make([]byte, recordsReadBytes)
	end := c.layout.Slots() * guestapi.RecordBytes
	for at := uint64(0); at < end; {
		part := buf[:min(uint64(len(buf)), end-at)]
		if _, err := f.ReadAt(part, int64(at)); err != nil {
			return fmt.Errorf("at %d: %w", at, err)
		}
		for ; len(part) > 0; part = part[guestapi.RecordBytes:] {
			c.slot(at/guestapi.RecordBytes, part[:guestapi.RecordBytes])
			at += guestapi.RecordBytes
		}
	}
	return nil
}

func (c *recordCheck) slot(slot uint64, b []byte) {
	r, err := guestapi.ParseRecord(b)
	switch {
	case err != nil && guestapi.PartOfRecord(b):
		c.find(&c.Torn, "slot %d: %v", slot, err)
	case err != nil || r.Generation != c.generation: // from before this guest
	case r.Slot != slot || (slot < c.layout.Accept) != (r.Serial > 0) || r.Serial > 0 && c.layout.SlotOf(r.Serial) != slot:
		c.find(&c.Foreign, "slot %d holds what belongs elsewhere: %+v", slot, r)
	default:
		c.Whole++
		if r.Serial > 0 {
			c.held[slot] = r
		}
	}
}

// acked looks for the record of one answer.
func (c *recordCheck) acked(e Entry) bool {
	c.Acked++
	r, held := c.held[c.layout.SlotOf(e.Serial)]
	switch {
	case !held:
		c.find(&c.Missing, "session %#x request %d with serial %d: no record", e.Session, e.Seq, e.Serial)
	case r.Serial < e.Serial:
		c.find(&c.Missing, "session %#x request %d with serial %d: the slot holds serial %d", e.Session, e.Seq, e.Serial, r.Serial)
	}
	return true
}

// known tells whether a client sent what a record says, and whether the world
// was told the same about that request and about that serial.
func (c *recordCheck) known(r guestapi.Record) {
	sent := false
	for _, j := range c.journals {
		if e, ok := j.request(r.Session, r.Request); ok && e.Nonce == r.Nonce {
			sent = true
			if !e.At.IsZero() && (e.Serial != r.Serial || e.Hash != r.Hash) {
				c.find(&c.Foreign, "session %#x request %d was answered with serial %d; the disk has it as serial %d, hash %#x", e.Session, e.Seq, e.Serial, r.Serial, r.Hash)
				return
			}
		}
		if who, taken := j.holder(r.Serial); taken && who != (request{r.Session, r.Request}) {
			c.find(&c.Foreign, "serial %d is request %d of session %#x; the disk has request %d of session %#x", r.Serial, who.seq, who.session, r.Request, r.Session)
			return
		}
	}
	if !sent {
		c.find(&c.Foreign, "nobody sent request %d of session %#x, which the disk has as serial %d", r.Request, r.Session, r.Serial)
	}
}
