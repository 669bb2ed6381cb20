package arbiter

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bounds on what is read from shared storage, which others can write to.
const (
	maxRecordBytes   = 4096
	maxDirEntries    = 65536 // records and temporary files of one domain
	maxStepsPerClaim = 1000  // steps within one generation: claims and withdrawals
	recordVersion    = 1
)

// entry is one step as stored: one immutable file named by generation and
// sequence number. ID is random: it tells our own record from another host's
// when the outcome of a link is in doubt.
type entry struct {
	Version    int       `json:"version"`
	ID         string    `json:"id"`
	Domain     string    `json:"domain"`
	Generation uint64    `json:"generation"`
	Seq        int       `json:"seq"`
	Host       string    `json:"host"`
	Machine    string    `json:"machine,omitempty"`
	Step       Step      `json:"step"`
	At         time.Time `json:"at"`
}

// newEntry is the step that c's host takes as the seq-th of its generation.
func newEntry(c Claim, seq int, machine string, step Step) entry {
	return entry{
		Version: recordVersion, ID: randomID(), Domain: c.Domain, Generation: c.Generation,
		Seq: seq, Host: c.Host, Machine: machine, Step: step, At: time.Now().UTC(),
	}
}

func (e entry) record() Record {
	return Record{Domain: e.Domain, Generation: e.Generation, Host: e.Host, Step: e.Step, At: e.At}
}

// chain is the history of one generation: how many steps it has, and the last.
type chain struct {
	generation uint64
	next       int   // sequence number of the step to come; 0 = never claimed
	last       entry // valid when next > 0
}

// free reports whether anyone may claim this generation.
func (c chain) free() bool { return c.next == 0 || c.last.Step == StepWithdrawn }

const (
	recordSuffix = ".json"
	tempPrefix   = ".tmp-"
)

// recordName sorts by generation, then by step.
func recordName(generation uint64, seq int) string {
	return fmt.Sprintf("%020d-%04d%s", generation, seq, recordSuffix)
}

// parseRecordName is the inverse of recordName; ok is false for any other name.
func parseRecordName(name string) (generation uint64, seq int, ok bool) {
	base, found := strings.CutSuffix(name, recordSuffix)
	if !found {
		return 0, 0, false
	}
	g, s, found := strings.Cut(base, "-")
	if !found {
		return 0, 0, false
	}
	generation, err := strconv.ParseUint(g, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	seq, err = strconv.Atoi(s)
	if err != nil || seq < 0 || seq > maxStepsPerClaim || recordName(generation, seq) != name {
		return 0, 0, false
	}
	return generation, seq, true
}

func encodeEntry(e entry) ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if len(b)+1 > maxRecordBytes {
		return nil, fmt.Errorf("record of %d bytes exceeds %d", len(b)+1, maxRecordBytes)
	}
	return append(b, '\n'), nil
}

// decodeEntry parses a record and checks that it is the one its name promises.
func decodeEntry(b []byte, domain string, generation uint64, seq int) (entry, error) {
	var e entry
	if len(b) > maxRecordBytes {
		return e, fmt.Errorf("%w: record is longer than %d bytes", ErrStorage, maxRecordBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&e); err != nil {
		return entry{}, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	switch {
	case e.Version != recordVersion:
		return entry{}, fmt.Errorf("%w: record version %d, this virt-ft knows %d", ErrStorage, e.Version, recordVersion)
	case e.Domain != domain || e.Generation != generation || e.Seq != seq:
		return entry{}, fmt.Errorf("%w: record is of %q generation %d step %d", ErrStorage, e.Domain, e.Generation, e.Seq)
	case e.Step < StepClaimed || e.Step > StepWithdrawn || e.ID == "":
		return entry{}, fmt.Errorf("%w: record lacks its step or id", ErrStorage)
	}
	if err := checkName("host", e.Host); err != nil {
		return entry{}, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	return e, nil
}
