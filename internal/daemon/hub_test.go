package daemon

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

func textsOf(events <-chan control.Event, n int) []string {
	var texts []string
	for e := range events {
		if texts = append(texts, e.Text); len(texts) == n {
			break
		}
	}
	return texts
}

func TestHubKeepsTheLast(t *testing.T) {
	var h hub
	for i := range eventsKept + 10 {
		h.emit(control.Event{Domain: fmt.Sprint("d", i%2), UUID: fmt.Sprint("u", i%2), Text: fmt.Sprint(i)})
	}
	now := time.Now()
	for _, tc := range []struct {
		q    control.EventQuery
		want []string
	}{
		{control.EventQuery{Last: 2}, []string{"1032", "1033"}},
		{control.EventQuery{Last: 2, Domain: "d0"}, []string{"1030", "1032"}},
		{control.EventQuery{Last: 1, Domain: "u1"}, []string{"1033"}},
		{control.EventQuery{Last: 2, Domain: "other"}, nil},
		{control.EventQuery{Last: 0}, nil},
		{control.EventQuery{Last: -1, Since: now.Add(time.Second)}, nil},
	} {
		if got := textsOf(h.subscribe(t.Context(), tc.q), -1); !slices.Equal(got, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.q, got, tc.want)
		}
	}
	if all := textsOf(h.subscribe(t.Context(), control.EventQuery{Last: -1}), -1); len(all) != eventsKept || all[0] != "10" {
		t.Errorf("%d events, from %s on", len(all), all[0])
	}
}

// Between the past and what follows nothing is missed, and nothing comes twice.
func TestHubFollows(t *testing.T) {
	var h hub
	const n = 200 // fewer than a reader may be late
	half := make(chan struct{})
	go func() {
		for i := range n {
			if i == n/2 {
				close(half)
			}
			h.emit(control.Event{Domain: "a", Text: fmt.Sprint(i)})
			h.emit(control.Event{Domain: "b", Text: "not asked for"})
		}
	}()
	<-half
	ctx, cancel := context.WithCancel(t.Context())
	events := h.subscribe(ctx, control.EventQuery{Last: -1, Domain: "a", Follow: true})
	for i, text := range textsOf(events, n) {
		if text != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, text)
		}
	}
	cancel()
	for range events { // until it is closed
	}
	// One that does not read is cut off, and the others are not.
	slow := h.subscribe(t.Context(), control.EventQuery{Follow: true})
	for i := range hubQueueMax + 1 {
		h.emit(control.Event{Text: fmt.Sprint(i)})
	}
	if got := textsOf(slow, -1); len(got) != hubQueueMax {
		t.Fatalf("%d events", len(got))
	}
}

// The words that commands know are those of the machines.
func TestStates(t *testing.T) {
	var primary, backup []string
	for s := ftengine.PrimaryConnecting; s <= ftengine.PrimaryStopped; s++ {
		primary = append(primary, s.String())
	}
	for s := ftengine.BackupWaiting; s <= ftengine.BackupStopped; s++ {
		backup = append(backup, s.String())
	}
	if got := control.States(control.RolePrimary); !slices.Equal(got, primary) {
		t.Errorf("primary: %v, want %v", got, primary)
	}
	if got := control.States(control.RoleBackup); !slices.Equal(got, backup) {
		t.Errorf("backup: %v, want %v", got, backup)
	}
}
