package lab

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Entry is one request of a client and, once it came, its answer.
type Entry struct {
	Session, Seq, Nonce uint64
	Sent                time.Time // when it was sent first
	At                  time.Time // when the answer was received; zero: not yet
	Serial, Hash        uint64
	floor               uint64 // highest serial of all answers received before Sent
}

// Journal is what a client of the acceptance service knows: every request, and
// every answer when it was received. It judges each answer by those before; the
// guest's word is never taken for it. Its methods may be called concurrently.
type Journal struct {
	mu       sync.Mutex
	sessions map[uint64][]Entry // by session; that of seq n is at n-1
	serials  map[uint64]request // who was given a serial
	highest  uint64             // serial among the answers received
	boot     guestapi.BootID    // of the first answer
	entries  int
	verdict  Verdict
}

// request names a request.
type request struct{ session, seq uint64 }

const (
	// journalMax bounds the entries of a journal: about 100 bytes each.
	journalMax = 8 << 20
	// findingsMax bounds how many contradictions are told in words.
	findingsMax = 32
)

// Verdict is what a journal comes to. All but Acked must be zero.
type Verdict struct {
	Acked          uint64   // answers received
	AckedLost      uint64   // of these, requests that the guest does not know any more
	TCPReset       uint64   // connections that ended before their session did
	Contradictions uint64   // answers or states that do not fit what was answered before
	Unanswered     uint64   // sessions that gave up on a request
	Findings       []string // the first of all of these, in words
}

// Err is nil for a verdict without a loss.
func (v Verdict) Err() error {
	if v.AckedLost+v.TCPReset+v.Contradictions+v.Unanswered == 0 {
		return nil
	}
	return fmt.Errorf("lab: %d acknowledged requests lost, %d connections reset, %d contradictions, %d requests never answered: %q",
		v.AckedLost, v.TCPReset, v.Contradictions, v.Unanswered, v.Findings)
}

// Add counts another client's verdict in.
func (v *Verdict) Add(o Verdict) {
	v.Acked += o.Acked
	v.AckedLost += o.AckedLost
	v.TCPReset += o.TCPReset
	v.Contradictions += o.Contradictions
	v.Unanswered += o.Unanswered
	v.Findings = append(v.Findings, o.Findings[:min(len(o.Findings), findingsMax-min(findingsMax, len(v.Findings)))]...)
}

// NewJournal returns an empty journal.
func NewJournal() *Journal {
	return &Journal{sessions: map[uint64][]Entry{}, serials: map[uint64]request{}}
}

// Sent notes that a session puts its next request, before it does. The request
// before must have been answered. It says the request's seq.
func (j *Journal) Sent(session, nonce uint64, now time.Time) (seq uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	es := j.sessions[session]
	if len(es) > 0 && es[len(es)-1].At.IsZero() {
		return 0, fmt.Errorf("lab: session %#x has a request outstanding", session)
	}
	if j.entries >= journalMax {
		return 0, fmt.Errorf("lab: the journal is full: %d requests", journalMax)
	}
	j.entries++
	seq = uint64(len(es)) + 1
	j.sessions[session] = append(es, Entry{Session: session, Seq: seq, Nonce: nonce, Sent: now, floor: j.highest})
	return seq, nil
}

// Received judges an answer and keeps it if it is the first to a request. It
// tells whether the outstanding request of its session is answered by it, and
// fails if the guest refused that request: the session cannot go on.
func (j *Journal) Received(a guestapi.Answer, now time.Time) (done bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	es := j.sessions[a.Session]
	j.sameBoot(a)
	if a.Status == guestapi.StatusOld && a.Seq <= uint64(len(es)) {
		return false, nil // a late copy of a request reached the guest; it says no more
	}
	if a.Status != guestapi.StatusApplied {
		j.contradicts("session %#x: %d requests were sent, the guest says %v: %+v", a.Session, len(es), a.Status, a)
		return false, fmt.Errorf("lab: session %#x: the guest says %v", a.Session, a.Status)
	}
	if a.Seq == 0 || a.Seq > uint64(len(es)) {
		j.contradicts("session %#x: an answer to request %d, which was never sent", a.Session, a.Seq)
		return false, nil
	}
	e := &es[a.Seq-1]
	if !e.At.IsZero() { // once more: it must be the same
		if a.Serial != e.Serial || a.Hash != e.Hash || a.Nonce != e.Nonce {
			j.contradicts("session %#x request %d was answered with serial %d hash %#x, then with serial %d hash %#x", a.Session, a.Seq, e.Serial, e.Hash, a.Serial, a.Hash)
		}
		return false, nil
	}
	e.At, e.Serial, e.Hash = now, a.Serial, j.judge(es, e, a)
	j.highest = max(j.highest, a.Serial)
	j.verdict.Acked++
	return true, nil
}

// judge compares a first answer with the client's own chain and with what was
// answered before its request was sent. It returns the client's own hash.
func (j *Journal) judge(es []Entry, e *Entry, a guestapi.Answer) uint64 {
	want := chain(es, e.Seq)
	if a.Hash != want || a.Nonce != e.Nonce {
		j.contradicts("session %#x request %d: hash %#x, the client's is %#x", a.Session, a.Seq, a.Hash, want)
	}
	if a.Serial <= e.floor {
		j.contradicts("session %#x request %d has serial %d; %d was answered before it was sent", a.Session, a.Seq, a.Serial, e.floor)
	}
	if who, taken := j.serials[a.Serial]; taken {
		j.contradicts("serial %d for request %d of session %#x and for request %d of session %#x", a.Serial, who.seq, who.session, a.Seq, a.Session)
	}
	j.serials[a.Serial] = request{a.Session, a.Seq}
	return want
}

func (j *Journal) sameBoot(a guestapi.Answer) {
	if j.boot == (guestapi.BootID{}) {
		j.boot = a.BootID
	}
	if a.BootID != j.boot {
		j.contradicts("session %#x: boot %v, before it was %v", a.Session, a.BootID, j.boot)
	}
}

// State judges what the guest says of a session when nothing of it is under
// way but, perhaps, the request that was sent last.
func (j *Journal) State(a guestapi.Answer) {
	j.mu.Lock()
	defer j.mu.Unlock()
	es := j.sessions[a.Session]
	acked := uint64(len(es))
	if acked > 0 && es[acked-1].At.IsZero() {
		acked--
	}
	j.sameBoot(a)
	switch {
	case a.Status != guestapi.StatusState:
		j.contradicts("session %#x: asked for its state, the guest says %v", a.Session, a.Status)
	case a.Seq < acked:
		j.verdict.AckedLost += acked - a.Seq
		j.find("session %#x: request %d was answered, the guest knows %d", a.Session, acked, a.Seq)
	case a.Seq > uint64(len(es)):
		j.contradicts("session %#x: %d requests were sent, the guest knows %d", a.Session, len(es), a.Seq)
	case a.Seq == 0: // nothing was asked, or nothing arrived
	case a.Hash != chain(es, a.Seq) || a.Nonce != es[a.Seq-1].Nonce:
		j.contradicts("session %#x: the guest's hash up to request %d is %#x, the client's is %#x", a.Session, a.Seq, a.Hash, chain(es, a.Seq))
	case a.Seq == acked && a.Serial != es[acked-1].Serial:
		j.contradicts("session %#x: request %d was answered with serial %d, the guest knows %d", a.Session, acked, es[acked-1].Serial, a.Serial)
	}
}

// chain is the hash up to seq by what the client sent; the last may be
// unanswered.
func chain(es []Entry, seq uint64) uint64 {
	before := uint64(0)
	if seq > 1 {
		before = es[seq-2].Hash
	}
	return guestapi.Chain(before, seq, es[seq-1].Nonce)
}

// Reset notes that a session's connection ended before its time.
func (j *Journal) Reset(session uint64, why error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.verdict.TCPReset++
	j.find("session %#x: connection: %v", session, why)
}

// Garbled notes that what a session received is no answer to it.
func (j *Journal) Garbled(session uint64, why error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.contradicts("session %#x: received: %v", session, why)
}

// Unanswered notes that a session gave up.
func (j *Journal) Unanswered(session uint64, why error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.verdict.Unanswered++
	j.find("session %#x: %v", session, why)
}

func (j *Journal) contradicts(format string, args ...any) {
	j.verdict.Contradictions++
	j.find(format, args...)
}

func (j *Journal) find(format string, args ...any) {
	if len(j.verdict.Findings) < findingsMax {
		j.verdict.Findings = append(j.verdict.Findings, fmt.Sprintf(format, args...))
	}
}

// Verdict is what the journal comes to by now.
func (j *Journal) Verdict() Verdict {
	j.mu.Lock()
	defer j.mu.Unlock()
	v := j.verdict
	v.Findings = slices.Clone(v.Findings)
	return v
}

// Answered calls f with every entry that was answered with a serial above since,
// until f returns false. f must not use the journal.
func (j *Journal) Answered(since uint64, f func(Entry) bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, es := range j.sessions {
		for i := range es {
			if es[i].Serial > since && !f(es[i]) {
				return
			}
		}
	}
}

// request returns what the journal has of a request; false for one that was
// never sent.
func (j *Journal) request(session, seq uint64) (Entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	es := j.sessions[session]
	if seq == 0 || seq > uint64(len(es)) {
		return Entry{}, false
	}
	return es[seq-1], true
}

// holder returns the request that was given a serial, if one was.
func (j *Journal) holder(serial uint64) (request, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	who, taken := j.serials[serial]
	return who, taken
}

// generation names the boot of the guest that answered first; false before.
func (j *Journal) generation() (uint64, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.boot.Generation(), j.boot != (guestapi.BootID{})
}

// FirstAnswerAfter returns the earliest answer received at t or later.
func (j *Journal) FirstAnswerAfter(t time.Time) (first Entry, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, es := range j.sessions {
		i, _ := slices.BinarySearchFunc(es, t, func(e Entry, t time.Time) int {
			if e.At.IsZero() { // only the last is: later than any
				return 1
			}
			return e.At.Compare(t)
		})
		if i < len(es) && !es[i].At.IsZero() && (!ok || es[i].At.Before(first.At)) {
			first, ok = es[i], true
		}
	}
	return first, ok
}

// Latencies returns, sorted, how long each request that was sent within
// [from, to) took to be answered.
func (j *Journal) Latencies(from, to time.Time) []time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	var all []time.Duration
	for _, es := range j.sessions {
		for i := len(es) - 1; i >= 0 && !es[i].Sent.Before(from); i-- {
			if es[i].Sent.Before(to) && !es[i].At.IsZero() {
				all = append(all, es[i].At.Sub(es[i].Sent))
			}
		}
	}
	slices.Sort(all)
	return all
}

// LongestSilence returns the longest time within [from, to] in which no answer
// was received.
func (j *Journal) LongestSilence(from, to time.Time) time.Duration {
	j.mu.Lock()
	var heard []time.Time
	for _, es := range j.sessions {
		for i := len(es) - 1; i >= 0 && (es[i].At.IsZero() || es[i].At.After(from)); i-- {
			if at := es[i].At; !at.IsZero() && at.Before(to) {
				heard = append(heard, at)
			}
		}
	}
	j.mu.Unlock()
	slices.SortFunc(heard, time.Time.Compare)
	longest := time.Duration(0)
	for _, at := range append(heard, to) {
		longest = max(longest, at.Sub(from))
		from = at
	}
	return longest
}

// Quantile returns the q-quantile of sorted values, 0 of none.
func Quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// WaitAnswer waits for an answer received at t or later and returns the
// earliest.
func (j *Journal) WaitAnswer(ctx context.Context, t time.Time) (Entry, error) {
	for {
		if e, ok := j.FirstAnswerAfter(t); ok {
			return e, nil
		}
		select {
		case <-ctx.Done():
			return Entry{}, fmt.Errorf("lab: waiting for an answer: %w", ctx.Err())
		case <-time.After(journalPoll):
		}
	}
}

// journalPoll is the pause between two looks for an answer.
const journalPoll = 2 * time.Millisecond
