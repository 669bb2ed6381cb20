package control

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Spread is how a quantity was distributed within one slot of a History. Min and
// Max are exact; P50 and P99 lie within three percent.
type Spread struct {
	Min float32 `json:"min"`
	P50 float32 `json:"p50"`
	P99 float32 `json:"p99"`
	Max float32 `json:"max"`
}

// HistorySlot is what happened to a domain on this host in History.SlotSeconds. Of
// what is looked at now and then it has the worst value, if not said otherwise. The
// spreads are all zero where Epochs is.
type HistorySlot struct {
	At         time.Time `json:"at"`             // its beginning
	Role       string    `json:"role,omitempty"` // the last of the slot; empty: nobody looked, or nothing was here
	State      string    `json:"state,omitempty"`
	Generation uint64    `json:"generation,omitempty"`
	Epochs     uint32    `json:"epochs"` // acknowledged checkpoints

	PausedMs   Spread `json:"paused_ms"`
	IntervalMs Spread `json:"interval_ms"`
	AckMs      Spread `json:"ack_ms"`
	ShipMs     Spread `json:"ship_ms"`
	DirtyPages Spread `json:"dirty_pages"` // of 4 KiB
	SentBytes  Spread `json:"sent_bytes"`  // of one epoch
	// Phases are medians of the slot, each of its own.
	Phases Phases `json:"phases"`

	DirtyPagesSum   uint64  `json:"dirty_pages_sum"`
	SentBytesSum    uint64  `json:"sent_bytes_sum"`
	HeldFrames      uint64  `json:"held_frames"`
	HeldBytes       uint64  `json:"held_bytes"`
	OldestMs        float64 `json:"oldest_ms"` // the age of the oldest held frame
	LastCommitAgeMs float64 `json:"last_commit_age_ms"`
	DriftUs         float64 `json:"drift_us"` // of the guest's clock, at the end
	Stalled         bool    `json:"stalled,omitempty"`
}

// History is what a daemon remembers of a domain: the last hour, also when the
// protection ended meanwhile or the domain changed its role here.
type History struct {
	Domain      string        `json:"domain"`
	UUID        string        `json:"uuid"`
	Host        string        `json:"host"` // whose daemon tells
	Now         time.Time     `json:"now"`
	SlotSeconds int           `json:"slot_seconds"`
	Slots       []HistorySlot `json:"slots"`  // the oldest first; times in which nobody looked are left out
	Epochs      []Epoch       `json:"epochs"` // the last ones, the oldest first
	Events      []Event       `json:"events"` // of the domain, the oldest first
	Status      Status        `json:"status"` // the last that was seen
	Live        bool          `json:"live"`   // the protection has not ended
	// Settings is the configuration in force on this host, in TOML, without what
	// fence agents are given.
	Settings string `json:"settings"`
}

// Historian is a Service that remembers. One that does not is no Historian: its
// socket answers with CodeInvalid.
type Historian interface {
	// History tells what is remembered of a domain, by name or UUID. One that
	// was not seen in the last hour is an Error with CodeNotProtected.
	History(ctx context.Context, domain string) (History, error)
	// Metrics serves what Prometheus reads.
	Metrics() http.Handler
}

// History asks for what the daemon remembers of a domain.
func (c *Client) History(ctx context.Context, domain string) (History, error) {
	var h History
	return h, c.call(ctx, http.MethodGet, "history", url.Values{"domain": {domain}}, nil, &h)
}

// watching adds the routes of a Historian.
func (s *Server) watching(mux *http.ServeMux) {
	h, ok := s.svc.(Historian)
	if !ok {
		return
	}
	mux.HandleFunc("GET /v1/history", func(w http.ResponseWriter, r *http.Request) {
		domain := r.URL.Query().Get("domain")
		if domain == "" {
			s.fail(w, r, Errorf(CodeInvalid, "", "no domain named"))
			return
		}
		history, err := h.History(r.Context(), domain)
		s.answer(w, r, history, err)
	})
	mux.Handle("GET /metrics", h.Metrics())
}
