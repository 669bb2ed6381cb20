package lab

import (
	"errors"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// liar is a guest that answers well, until a test makes it lie.
type liar struct {
	t      *testing.T
	j      *Journal
	now    time.Time
	serial uint64
	state  map[uint64]guestapi.Answer
}

const lieA, lieB = 0x10001, 0x10002

func newLiar(t *testing.T) *liar {
	l := &liar{t: t, j: NewJournal(), now: time.Unix(1000, 0), state: map[uint64]guestapi.Answer{}}
	for range 5 {
		l.step(lieA)
		l.step(lieB)
	}
	if v := l.j.Verdict(); v.Err() != nil || v.Acked != 10 {
		t.Fatalf("an honest guest: %+v", v)
	}
	return l
}

func (l *liar) send(session uint64) guestapi.Answer {
	l.now = l.now.Add(time.Millisecond)
	nonce := uint64(l.now.UnixNano())
	seq, err := l.j.Sent(session, nonce, l.now)
	if err != nil {
		l.t.Fatal(err)
	}
	l.serial++
	a := guestapi.Answer{Status: guestapi.StatusApplied, Session: session, Seq: seq, Nonce: nonce, Serial: l.serial,
		Hash: guestapi.Chain(l.state[session].Hash, seq, nonce), BootID: guestapi.BootID{1}}
	l.state[session] = a
	return a
}

func (l *liar) receive(a guestapi.Answer) (bool, error) {
	l.now = l.now.Add(time.Millisecond)
	return l.j.Received(a, l.now)
}

func (l *liar) step(session uint64) guestapi.Answer {
	a := l.send(session)
	if done, err := l.receive(a); !done || err != nil {
		l.t.Fatalf("honest answer %+v: %v, %v", a, done, err)
	}
	return a
}

// query is the honest state of a session.
func (l *liar) query(session uint64) guestapi.Answer {
	a := l.state[session]
	a.Status = guestapi.StatusState
	return a
}

// found is what a verdict must say of a lie.
type found struct{ lost, resets, contradictions, unanswered uint64 }

// lie is something a guest does, and what must be found.
type lie struct {
	do   func(l *liar)
	want found
}

// honestDeeds look odd and are not lies.
func honestDeeds() map[string]lie {
	return map[string]lie{
		"honest": {func(l *liar) { l.j.State(l.query(lieA)) }, found{}},
		"honest, asked twice": {func(l *liar) {
			a := l.step(lieA)
			_, _ = l.receive(a)
		}, found{}},
		"a late copy of an old request": {func(l *liar) {
			a := l.step(lieA)
			a.Status = guestapi.StatusOld
			_, _ = l.receive(a)
		}, found{}},
		"an unanswered request may be known, or not": {func(l *liar) {
			before := l.query(lieA)
			l.send(lieA)
			l.j.State(before)
			l.j.State(l.query(lieA))
		}, found{}},
	}
}

// lyingAnswers are to requests.
func lyingAnswers() map[string]lie {
	return map[string]lie{
		"serial used twice": {func(l *liar) {
			b := l.send(lieB)
			a := l.send(lieA)
			_, _ = l.receive(b)
			a.Serial = b.Serial
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
		"serial before one that was answered already": {func(l *liar) {
			l.serial += 5
			l.step(lieB)
			a := l.send(lieA)
			a.Serial -= 3
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
		"serial zero": {func(l *liar) {
			a := l.send(lieA)
			a.Serial = 0
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
		"another hash": {func(l *liar) {
			a := l.send(lieA)
			a.Hash++
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
		"another nonce": {func(l *liar) {
			a := l.send(lieA)
			a.Nonce++
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
		"another answer to the same request": {func(l *liar) {
			a := l.step(lieA)
			a.Serial = 999
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
		"booted again": {func(l *liar) {
			a := l.send(lieA)
			a.BootID[3] = 1
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
		"an answer to nothing": {func(l *liar) {
			a := l.step(lieA)
			a.Seq++
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
		"a gap": {func(l *liar) {
			a := l.send(lieA)
			a.Status, a.Seq = guestapi.StatusGap, 3
			if _, err := l.receive(a); err == nil {
				l.t.Error("a session goes on after a gap")
			}
		}, found{contradictions: 1}},
		"a conflict": {func(l *liar) {
			a := l.send(lieA)
			a.Status = guestapi.StatusConflict
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
		"older than anything": {func(l *liar) {
			a := l.step(lieA)
			a.Status, a.Seq = guestapi.StatusOld, 99
			_, _ = l.receive(a)
		}, found{contradictions: 1}},
	}
}

// lyingStates are to queries, or are no answers at all.
func lyingStates() map[string]lie {
	return map[string]lie{
		"state lost": {func(l *liar) {
			old := l.query(lieA)
			l.step(lieA)
			l.step(lieA)
			l.j.State(old)
		}, found{lost: 2}},
		"session forgotten": {func(l *liar) {
			l.j.State(guestapi.Answer{Status: guestapi.StatusState, Session: lieB, BootID: guestapi.BootID{1}})
		}, found{lost: 5}},
		"state of the future": {func(l *liar) {
			a := l.query(lieA)
			a.Seq++
			l.j.State(a)
		}, found{contradictions: 1}},
		"state with another hash": {func(l *liar) {
			a := l.query(lieA)
			a.Hash++
			l.j.State(a)
		}, found{contradictions: 1}},
		"state with another serial": {func(l *liar) {
			a := l.query(lieA)
			a.Serial++
			l.j.State(a)
		}, found{contradictions: 1}},
		"no state": {func(l *liar) { l.j.State(l.state[lieA]) }, found{contradictions: 1}},
		"reset":    {func(l *liar) { l.j.Reset(lieA, errors.New("reset")) }, found{resets: 1}},
		"garbled":  {func(l *liar) { l.j.Garbled(lieA, errors.New("noise")) }, found{contradictions: 1}},
		"silence":  {func(l *liar) { l.j.Unanswered(lieA, errors.New("none")) }, found{unanswered: 1}},
	}
}

// TestJournalFindsLies plants one lie of each kind.
func TestJournalFindsLies(t *testing.T) {
	for _, lies := range []map[string]lie{honestDeeds(), lyingAnswers(), lyingStates()} {
		for name, c := range lies {
			l := newLiar(t)
			c.do(l)
			v := l.j.Verdict()
			if got := (found{v.AckedLost, v.TCPReset, v.Contradictions, v.Unanswered}); got != c.want {
				t.Errorf("%s: found %+v, want %+v: %q", name, got, c.want, v.Findings)
			}
			if (v.Err() == nil) != (c.want == found{}) {
				t.Errorf("%s: %v", name, v.Err())
			}
		}
	}
}

// TestJournalAllowsReordering: answers that were under way together may come in
// any order.
func TestJournalAllowsReordering(t *testing.T) {
	l := newLiar(t)
	a, b := l.send(lieA), l.send(lieB)
	for _, x := range []guestapi.Answer{b, a} {
		if done, err := l.receive(x); !done || err != nil {
			t.Fatal(done, err)
		}
	}
	if err := l.j.Verdict().Err(); err != nil {
		t.Error(err)
	}
}

func TestJournalTimes(t *testing.T) {
	l := newLiar(t)
	mark := l.now
	if e, ok := l.j.FirstAnswerAfter(mark.Add(1)); ok {
		t.Errorf("an answer after the last: %+v", e)
	}
	l.send(lieB) // never answered
	want := l.step(lieA)
	l.step(lieA)
	if e, ok := l.j.FirstAnswerAfter(mark.Add(1)); !ok || e.Serial != want.Serial {
		t.Errorf("first answer %+v, want serial %d", e, want.Serial)
	}
	if got := l.j.Latencies(mark, l.now.Add(1)); len(got) != 2 || Quantile(got, .5) != time.Millisecond {
		t.Errorf("latencies %v", got)
	}
	if got := l.j.LongestSilence(mark, l.now.Add(9*time.Millisecond)); got != 9*time.Millisecond {
		t.Errorf("longest silence %v", got)
	}
	if got := l.j.LongestSilence(mark, l.now); got != 3*time.Millisecond {
		t.Errorf("longest silence %v up to the last answer", got)
	}
	if Quantile(nil, .5) != 0 {
		t.Error("quantile of nothing")
	}
	if _, err := l.j.Sent(lieB, 1, l.now); err == nil {
		t.Error("two requests of a session at once")
	}
}
