package ftengine

import (
	"context"
	"slices"
	"testing"
)

// TestHolds: what the other side is told of the right to run outlives the
// guest, or an older copy of it would be let go on.
func TestHolds(t *testing.T) {
	b := NewBackup(DefaultLimits())
	for _, step := range []struct {
		e       Event
		gen     Generation
		ran     bool
		accepts bool
	}{
		{SessionUp{Generation: 4}, 0, false, true},
		{StandbyMade{}, 0, false, true},
		{Staged{Epoch: 1}, 0, false, true},
		{CommitDone{Epoch: 1}, 0, false, true},
		{RehearseDone{OK: true}, 0, false, true},
		{SessionDown{Silent}, 0, false, false}, // it claims: it holds nothing yet, and takes nobody in
		{Retry{2}, 0, false, false},
		{ClaimDone{5, Won}, 5, false, false},
		{LoadDone{}, 5, false, false},
		{ConfirmDone{}, 5, true, false}, // it was told to run
		{ResumeDone{}, 5, true, false},
		{StandbyDied{"shut down"}, 5, true, false},
	} {
		b.Step(step.e)
		gen, ran := b.Holds()
		if gen != step.gen || ran != step.ran || b.Accepts(4) != step.accepts {
			t.Errorf("after %T in %v: holds %d, ran %v, accepts %v", step.e, b.State(), gen, ran, b.Accepts(4))
		}
	}
	if b.Accepts(3) || NewBackup(DefaultLimits()).Accepts(1) == false {
		t.Error("an older generation is accepted, or a first one is not")
	}
}

// TestRun: actions come in order, events are dealt with one by one, Finish
// ends it.
func TestRun(t *testing.T) {
	events := make(chan Event, 8)
	p := NewPrimary(1, false, DefaultLimits())
	for _, e := range []Event{SessionUp{}, Unprotect{"user"}, PeerStoodDown{}, PaceDue{}} {
		events <- e
	}
	var did []string
	dealt := 0
	Run(context.Background(), p, p.Start(), events, func(a Action) { did = append(did, show(a)) }, func() { dealt++ })
	want := []string{"Persist Generation=1 Phase=connecting", "Connect", "SendSetup", "SendStandDown Reason=user", "RetryAfter Delay=10s",
		"CloseSession", "OpenGate", "Finish Reason=user"}
	if !slices.Equal(did, want) || dealt != 4 || len(events) != 1 {
		t.Errorf("did %q in %d steps, %d events left", did, dealt, len(events))
	}
	closed := make(chan Event)
	close(closed)
	Run(context.Background(), NewBackup(DefaultLimits()), nil, closed, func(Action) { t.Error("an action") }, nil)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	Run(ctx, NewBackup(DefaultLimits()), nil, nil, func(Action) { t.Error("an action") }, nil)
}
