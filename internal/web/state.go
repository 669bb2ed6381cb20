package web

import (
	"math"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/watch"
)

// state is what the page asks for each second: an interface between this package
// and its page only.
type state struct {
	Host        string          `json:"host"`
	Version     string          `json:"version"`
	NowS        float64         `json:"now_s"`
	SlotSeconds int             `json:"slot_seconds"`
	Memory      *memoryState    `json:"memory,omitempty"`
	Domains     []domainState   `json:"domains"`
	Events      []control.Event `json:"events"`
}

type memoryState struct {
	PromisedBytes uint64 `json:"promised_bytes"`
	RoomBytes     uint64 `json:"room_bytes"`
	Standbys      int    `json:"standbys"`
}

type domainState struct {
	Domain     string   `json:"domain"`
	UUID       string   `json:"uuid"`
	Live       bool     `json:"live"`
	Role       string   `json:"role"`
	State      string   `json:"state"`
	Safe       bool     `json:"safe"`
	Peer       string   `json:"peer"`
	Generation uint64   `json:"generation"`
	Arbiter    string   `json:"arbiter"`
	SinceS     float64  `json:"since_s"`
	MemoryB    uint64   `json:"memory_bytes"`
	CommitMs   float64  `json:"commit_age_ms"`
	PauseP50Ms float64  `json:"pause_p50_ms"`
	PauseP99Ms float64  `json:"pause_p99_ms"`
	EpochMs    float64  `json:"epoch_ms"`
	RateBps    float64  `json:"rate_bps"`
	Clock      string   `json:"clock"`
	DriftUs    float64  `json:"drift_us"`
	HeldFrames uint64   `json:"held_frames"`
	OldestMs   float64  `json:"oldest_ms"`
	Gate       string   `json:"gate"`
	Stalled    string   `json:"stalled,omitempty"`
	Reason     string   `json:"reason,omitempty"`    // of the pace
	SyncDone   float64  `json:"sync_done,omitempty"` // 0 to 1
	SyncEtaS   float64  `json:"sync_eta_s,omitempty"`
	FailoverMs float64  `json:"failover_ms,omitempty"`
	Warnings   []string `json:"warnings,omitempty"`
	Error      string   `json:"error,omitempty"`
	Slots      columns  `json:"slots"`
}

// columns are the slots of a domain, a value for each in every column.
type columns struct {
	At       []int64   `json:"at"`        // seconds since 1970
	State    []string  `json:"state"`     // empty: nothing was here
	PauseP50 []float64 `json:"pause_p50"` // ms
	PauseP99 []float64 `json:"pause_p99"`
	PauseMax []float64 `json:"pause_max"`
	AckP50   []float64 `json:"ack_p50"` // ms
	AckP99   []float64 `json:"ack_p99"`
	Dirty    []float64 `json:"dirty"`  // pages a second
	Bytes    []float64 `json:"bytes"`  // a second
	Oldest   []float64 `json:"oldest"` // ms
	Commit   []float64 `json:"commit"` // ms
	Role     []string  `json:"role"`
	Epochs   []uint32  `json:"epochs"`
}

func (s *Server) state(now, since time.Time) state {
	f := s.o.Facts()
	st := state{Host: f.Version.Host, Version: f.Version.Version, NowS: float64(now.UnixMilli()) / 1000, SlotSeconds: watch.SlotSeconds,
		Domains: []domainState{}, Events: s.o.Events(eventsShown)}
	if st.Events == nil {
		st.Events = []control.Event{}
	}
	if m := f.Memory; m.Known {
		st.Memory = &memoryState{PromisedBytes: m.PromisedBytes, RoomBytes: m.RoomBytes, Standbys: m.Standbys}
	}
	fresh := map[string]control.Status{}
	for _, now := range s.o.Status() {
		fresh[now.UUID] = now
	}
	for _, r := range s.o.Watch.Domains() {
		v := r.View()
		if is, live := fresh[v.UUID]; live {
			v.Status, v.Live = is, true
		}
		if v.Status.Domain == "" {
			continue // nobody has looked yet
		}
		d := domainOf(v)
		d.Slots = columnsOf(r.Slots(since, now), now)
		st.Domains = append(st.Domains, d)
	}
	return st
}

func domainOf(v watch.View) domainState {
	s := &v.Status
	d := domainState{Domain: v.Domain, UUID: v.UUID, Live: v.Live, Role: s.Role, State: s.State, Safe: v.Live && s.Safe(), Peer: s.Peer,
		Generation: s.Generation, Arbiter: s.Arbiter, SinceS: float64(s.Since.UnixMilli()) / 1000, MemoryB: s.MemoryBytes,
		CommitMs: s.LastCommitAgeMs, PauseP50Ms: s.Pause.P50Ms, PauseP99Ms: s.Pause.P99Ms, EpochMs: s.EpochMs, RateBps: s.RateBps,
		Clock: s.Clock.State, DriftUs: s.Clock.DriftUs, Reason: s.Throttle.Reason, FailoverMs: s.FailoverMs, Error: s.Error}
	for _, w := range s.Warnings[:min(len(s.Warnings), warningsShown)] {
		d.Warnings = append(d.Warnings, w[:min(len(w), warningBytesMax)])
	}
	if o := s.Output; o != nil {
		d.HeldFrames, d.OldestMs, d.Gate, d.Stalled = o.HeldFrames, o.OldestMs, o.Mode, o.Stalled
	}
	if y := s.Sync; y != nil && y.TotalBytes > 0 {
		d.SyncDone, d.SyncEtaS = float64(y.DoneBytes)/float64(y.TotalBytes), y.EtaS
	}
	return d
}

func columnsOf(slots []control.HistorySlot, now time.Time) columns {
	c := columns{At: []int64{}, State: []string{}}
	for i := range slots {
		h := &slots[i]
		c.At, c.State, c.Epochs = append(c.At, h.At.Unix()), append(c.State, h.State), append(c.Epochs, h.Epochs)
		c.PauseP50 = append(c.PauseP50, rounded(float64(h.PausedMs.P50)))
		c.PauseP99 = append(c.PauseP99, rounded(float64(h.PausedMs.P99)))
		c.PauseMax = append(c.PauseMax, rounded(float64(h.PausedMs.Max)))
		c.AckP50 = append(c.AckP50, rounded(float64(h.AckMs.P50)))
		c.AckP99 = append(c.AckP99, rounded(float64(h.AckMs.P99)))
		c.Commit, c.Role = append(c.Commit, rounded(h.LastCommitAgeMs)), append(c.Role, h.Role)
		c.Oldest = append(c.Oldest, rounded(h.OldestMs))
		// The last slot is not over.
		seconds := min(max(now.Sub(h.At).Seconds(), 1), watch.SlotSeconds)
		c.Dirty = append(c.Dirty, rounded(float64(h.DirtyPagesSum)/seconds))
		c.Bytes = append(c.Bytes, math.Round(float64(h.SentBytesSum)/seconds))
	}
	return c
}

// rounded keeps what a chart can show.
func rounded(v float64) float64 { return math.Round(v*100) / 100 }
