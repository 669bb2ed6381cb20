// Package watch remembers what happened to the domains of a host: histograms that
// only grow, for Prometheus, and the last hour in slots of five seconds, for the
// status page and for reports. It has no clock and no goroutine of its own.
//
// It is fed beside the work, not in it: what completes an epoch puts it into a
// channel, as for any other reader, and a goroutine takes it from there to here.
// Nothing that a guest waits for takes a lock of this package.
//
// A domain takes at most [BytesPerDomain] bytes, and a Host keeps [DomainsMax].
package watch

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
)

const (
	// SlotSeconds is the length of a slot, in seconds, and slotsKept how many make
	// an hour.
	SlotSeconds = 5
	slotsKept   = 720
	// kept is for how long a domain is remembered that nobody reported any more.
	kept = slotsKept * SlotSeconds * time.Second
	// DomainsMax bounds the domains of a Host; the one that was not seen for the
	// longest is forgotten.
	DomainsMax = 256
	// epochsKept is how many epochs are kept whole.
	epochsKept = 256
	// causesMax bounds the words for causes of failovers; further ones are "other".
	causesMax = 8
)

// Host remembers the domains of one host. Make it with New; its methods may be
// called concurrently.
type Host struct {
	mu      sync.Mutex
	domains map[string]*Recorder // by UUID

	failovers map[string]uint64 // by cause
	claimed   map[string]string // by UUID: why the right was claimed last
	refused   uint64
}

// New returns a Host that remembers nothing.
func New() *Host {
	return &Host{domains: map[string]*Recorder{}, failovers: map[string]uint64{}, claimed: map[string]string{}}
}

// Recorder returns the memory of a domain, which is begun if there is none.
func (h *Host) Recorder(uuid, domain string) *Recorder {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.recorder(uuid, domain)
}

func (h *Host) recorder(uuid, domain string) *Recorder {
	if r := h.domains[uuid]; r != nil {
		return r
	}
	if len(h.domains) >= DomainsMax {
		h.forgetOldest()
	}
	r := newRecorder(uuid, domain)
	h.domains[uuid] = r
	return r
}

func (h *Host) forgetOldest() {
	oldest, at := "", time.Time{}
	for uuid, r := range h.domains {
		if seen := r.seen(); oldest == "" || seen.Before(at) {
			oldest, at = uuid, seen
		}
	}
	delete(h.domains, oldest)
	delete(h.claimed, oldest)
}

// Sample notes what all domains of the host are at a moment; it is meant to be
// called about each second. A domain that is not among them any more has ended,
// and is forgotten an hour later.
func (h *Host) Sample(now time.Time, all []control.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	here := make(map[string]bool, len(all))
	for _, s := range all {
		here[s.UUID] = true
		h.recorder(s.UUID, s.Domain).Sample(now, s)
	}
	for uuid, r := range h.domains {
		if here[uuid] {
			continue
		}
		if seen := r.seen(); !seen.IsZero() && now.Sub(seen) > kept {
			delete(h.domains, uuid)
			delete(h.claimed, uuid)
			continue
		}
		r.end()
	}
}

// Claimed notes why this host claims the right to run a domain, in a few words.
func (h *Host) Claimed(uuid, cause string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.claimed) < DomainsMax || h.claimed[uuid] != "" {
		h.claimed[uuid] = cause
	}
}

// Event notes what happened, if it is something that is counted: a standby that
// became active is a failover.
func (h *Host) Event(e control.Event) {
	if e.Kind != control.EventState || e.Role != control.RoleBackup || e.State != "active" {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	cause := h.claimed[e.UUID]
	if cause == "" {
		cause = "unknown"
	}
	if _, known := h.failovers[cause]; !known && len(h.failovers) >= causesMax {
		cause = "other"
	}
	h.failovers[cause]++
	delete(h.claimed, e.UUID)
}

// Refused notes that a daemon was not let in.
func (h *Host) Refused() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused++
}

// Totals are what a host counts since its daemon started.
type Totals struct {
	Failovers map[string]uint64 // by cause
	Refused   uint64            // connections of other daemons
}

// Totals returns a copy.
func (h *Host) Totals() Totals {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := Totals{Failovers: make(map[string]uint64, len(h.failovers)), Refused: h.refused}
	for cause, n := range h.failovers {
		t.Failovers[cause] = n
	}
	return t
}

// Domains returns the memories of all domains, by name.
func (h *Host) Domains() []*Recorder {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*Recorder, 0, len(h.domains))
	for _, r := range h.domains {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *Recorder) int {
		return strings.Compare(a.domain+"\x00"+a.uuid, b.domain+"\x00"+b.uuid)
	})
	return all
}

// Find returns the memory of a domain, by name or UUID; of two of one name that of
// the one that was seen last. Nil if there is none.
func (h *Host) Find(domain string) *Recorder {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.domains[domain]; r != nil {
		return r
	}
	var found *Recorder
	for _, r := range h.domains {
		if r.domain == domain && (found == nil || r.seen().After(found.seen())) {
			found = r
		}
	}
	return found
}
