package watch

import (
	"sync"
	"time"
	"unsafe"

	"github.com/virt-ft/virt-ft/internal/control"
)

// BytesPerDomain is what a Recorder takes at most but for the texts of its last
// status, in bytes.
const BytesPerDomain = int(unsafe.Sizeof(Recorder{}))

// Columns of a slot: what has a distribution.
const (
	columnPaused = iota
	columnInterval
	columnAck
	columnShip
	columnDirty
	columnBytes
	columnPhase // and one for each further phase
	columns     = columnPhase + phases
)

// Recorder remembers one domain. Its methods may be called concurrently.
type Recorder struct {
	uuid, domain string

	mu     sync.Mutex
	last   control.Status
	at     time.Time // when last was seen
	live   bool
	counts Counts

	slots [slotsKept]slot // by number, modulo
	open  int64           // number of the slot that is being filled; 0: none yet
	now   [columns]spread // of that slot

	epochs [epochsKept]control.Epoch // the last at (n-1)%epochsKept
	n      uint64                    // epochs ever observed
}

// slot is a control.HistorySlot, small.
type slot struct {
	number     int64 // of five seconds since 1970; 0: empty
	role       string
	state      string
	generation uint64
	epochs     uint32
	stalled    bool
	spreads    [columnPhase]control.Spread
	medians    [phases]float32

	dirtySum, bytesSum    uint64
	heldFrames, heldBytes uint64
	oldestMs, commitAgeMs float64
	driftUs               float64
}

func newRecorder(uuid, domain string) *Recorder {
	return &Recorder{uuid: uuid, domain: domain}
}

// Observe notes an acknowledged epoch. One that was observed already is left out.
func (r *Recorder) Observe(e control.Epoch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known(&e) {
		return
	}
	r.epochs[r.n%epochsKept] = e
	r.n++
	r.counts.observe(&e)
	s := r.slotAt(e.At)
	if s == nil {
		return // of more than a slot ago: its slot is closed
	}
	s.epochs++
	dirty := e.LivePages + e.PausePages
	s.dirtySum += uint64(max(dirty, 0))
	s.bytesSum += e.SentBytes
	v := [columns]float64{columnPaused: e.PausedMs, columnInterval: e.IntervalMs, columnAck: e.AckMs, columnShip: e.ShipMs,
		columnDirty: float64(dirty), columnBytes: float64(e.SentBytes)}
	for i, ms := range phasesOf(&e.Phases) {
		v[columnPhase+i] = ms
	}
	for i := range v {
		r.now[i].add(v[i])
	}
}

// known tells whether e is among the epochs that are kept; r.mu is held. Epochs
// come in their order, so that only one that is not later than the last is looked for.
func (r *Recorder) known(e *control.Epoch) bool {
	for i := r.n; i > 0 && i+epochsKept > r.n; i-- {
		old := &r.epochs[(i-1)%epochsKept]
		if i == r.n && (old.Generation < e.Generation || old.Generation == e.Generation && old.Epoch < e.Epoch) {
			return false
		}
		if old.Epoch == e.Epoch && old.Generation == e.Generation && old.At.Equal(e.At) {
			return true
		}
	}
	return false
}

// Sample notes what the domain is at a moment.
func (r *Recorder) Sample(now time.Time, st control.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.at, r.live = st, now, true
	s := r.slotAt(now)
	if s == nil {
		return
	}
	s.role, s.state, s.generation = st.Role, st.State, st.Generation
	s.commitAgeMs = max(s.commitAgeMs, st.LastCommitAgeMs)
	s.driftUs = st.Clock.DriftUs
	if o := st.Output; o != nil {
		s.heldFrames, s.heldBytes = max(s.heldFrames, o.HeldFrames), max(s.heldBytes, o.HeldBytes)
		s.oldestMs = max(s.oldestMs, o.OldestMs)
		s.stalled = s.stalled || o.Stalled != ""
	}
}

// slotAt returns the slot of a moment, which becomes the open one if it is a later
// one; nil for a moment whose slot is closed. r.mu is held.
func (r *Recorder) slotAt(t time.Time) *slot {
	number := t.Unix() / SlotSeconds
	switch {
	case number < r.open:
		return nil
	case number > r.open:
		r.close()
		r.open = number
		r.slots[number%slotsKept] = slot{number: number}
	}
	return &r.slots[number%slotsKept]
}

// close puts the spreads of the open slot where they are kept.
func (r *Recorder) close() {
	if r.open == 0 {
		return
	}
	r.fill(&r.slots[r.open%slotsKept])
	r.now = [columns]spread{}
}

func (r *Recorder) fill(s *slot) {
	for i := range s.spreads {
		s.spreads[i] = r.now[i].summary()
	}
	for i := range s.medians {
		s.medians[i] = r.now[columnPhase+i].summary().P50
	}
}

func (r *Recorder) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = false
}

func (r *Recorder) seen() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

// View is what is remembered of a domain, for those who show it.
type View struct {
	Domain, UUID string
	Status       control.Status // the last that was seen
	Live         bool           // the protection has not ended
	Seen         time.Time      // when Status was; zero: never
	Counts       Counts
}

// View returns a copy of all but the slots and the epochs.
func (r *Recorder) View() View {
	r.mu.Lock()
	defer r.mu.Unlock()
	return View{Domain: r.domain, UUID: r.uuid, Status: r.last, Live: r.live, Seen: r.at, Counts: r.counts}
}

// Slots returns the slots that began at since or later, and not more than an hour
// before now, the oldest first. The open one is among them as it is.
func (r *Recorder) Slots(since, now time.Time) []control.HistorySlot {
	r.mu.Lock()
	defer r.mu.Unlock()
	to := r.open
	from := max(to-slotsKept+1, now.Unix()/SlotSeconds-slotsKept+1, (since.Unix()+SlotSeconds-1)/SlotSeconds, 1)
	var out []control.HistorySlot
	for number := from; number <= to; number++ {
		s := &r.slots[number%slotsKept]
		if s.number != number {
			continue
		}
		if number == r.open {
			filled := *s
			r.fill(&filled)
			s = &filled
		}
		out = append(out, s.history())
	}
	return out
}

// Epochs returns the epochs that are kept whole, the oldest first.
func (r *Recorder) Epochs() []control.Epoch {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(r.n, epochsKept)
	out := make([]control.Epoch, 0, n)
	for i := r.n - n; i < r.n; i++ {
		out = append(out, r.epochs[i%epochsKept])
	}
	return out
}

func (s *slot) history() control.HistorySlot {
	m := s.medians
	f := func(phase int) float64 { return float64(m[phase]) }
	return control.HistorySlot{At: time.Unix(s.number*SlotSeconds, 0), Role: s.role, State: s.state, Generation: s.generation, Epochs: s.epochs,
		PausedMs: s.spreads[columnPaused], IntervalMs: s.spreads[columnInterval], AckMs: s.spreads[columnAck], ShipMs: s.spreads[columnShip],
		DirtyPages: s.spreads[columnDirty], SentBytes: s.spreads[columnBytes],
		Phases:        control.Phases{StopMs: f(0), GateMs: f(1), ScanMs: f(2), CopyMs: f(3), HoldMs: f(4), ClockMs: f(5), DeviceMs: f(6)},
		DirtyPagesSum: s.dirtySum, SentBytesSum: s.bytesSum, HeldFrames: s.heldFrames, HeldBytes: s.heldBytes, OldestMs: s.oldestMs,
		LastCommitAgeMs: s.commitAgeMs, DriftUs: s.driftUs, Stalled: s.stalled}
}
