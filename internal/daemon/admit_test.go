package daemon

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// TestAdmitAfterTheGuestRanHere: a primary whose guest ran here since, and whose runner
// here is gone, has a copy of the past. It must not be told that nothing is here.
func TestAdmitAfterTheGuestRanHere(t *testing.T) {
	for _, x := range []struct {
		name string
		m    marker.Marker
		gen  uint64 // of the primary that dials
		past bool
	}{
		{"it ran as the backup's", marker.Marker{Role: marker.RoleBackup, Generation: 2, Ran: true}, 1, true},
		{"it was protected from here since", marker.Marker{Role: marker.RolePrimary, Generation: 3}, 1, true},
		{"it never came to run here", marker.Marker{Role: marker.RoleBackup, Generation: 2}, 1, false},
		{"it began anew there", marker.Marker{Role: marker.RoleBackup, Generation: 2, Ran: true}, 3, false},
		{"it goes on there", marker.Marker{Role: marker.RolePrimary, Generation: 2}, 2, false},
	} {
		d := recovered(t)
		x.m.Domain, x.m.UUID, x.m.Phase = "web1", testUUID, marker.PhaseEnded
		if err := d.store.Put(x.m); err != nil {
			t.Fatal(err)
		}
		id, err := replica.ParseUUID(testUUID)
		if err != nil {
			t.Fatal(err)
		}
		if gen := d.ranUnder(testUUID); (gen > x.gen) != x.past {
			t.Errorf("%s: it ran under %d", x.name, gen)
		}
		if !x.past {
			continue // libvirt is asked next
		}
		w, refusal := d.admit(t.Context(), replica.Peer{Generation: x.gen}, &replica.Hello{Role: replica.RolePrimary, Domain: id, Host: "host-a"})
		if refusal != nil || w.State != replica.BackupActive || w.Generation != x.m.Generation {
			t.Errorf("%s: %+v, %+v", x.name, w, refusal)
		}
	}
}

// TestABackupEndsWhatever waits for its work: more of it than there is room for events.
func TestABackupEndsWhateverWaits(t *testing.T) {
	d := recovered(t)
	b := newBackup(d, marker.Marker{Domain: "web1", UUID: testUUID, Role: marker.RoleBackup}, nil)
	for i := range ftengine.Epoch(eventsMax + 100) {
		b.later(func() { b.post(ftengine.CommitDone{Epoch: i}) })
	}
	go func() {
		for f := range b.work {
			f()
		}
	}()
	ended := make(chan struct{})
	go func() {
		b.flush()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it waits for room that nobody makes")
	}
	close(b.work)
}

// away is an arbiter that answers when it is told to.
type away struct {
	arbiter.Arbiter
	back chan struct{}
}

func (a away) Name() string { return "away" }

func (a away) Withdraw(context.Context, arbiter.Claim) error {
	select {
	case <-a.back:
		return nil
	default:
		return errors.New("away")
	}
}

// TestTheMarkerEndsAfterTheRight: a backup that could not go on hands its right back
// before its marker says that all is over; a daemon that is killed in between knows.
func TestTheMarkerEndsAfterTheRight(t *testing.T) {
	d := recovered(t)
	arb := away{back: make(chan struct{})}
	m := marker.Marker{Domain: "web1", UUID: testUUID, Role: marker.RoleBackup, Phase: marker.PhaseClaimed, Generation: 2}
	if err := d.store.Put(m); err != nil {
		t.Fatal(err)
	}
	b, first := restoreBackup(d, m, arb, ftengine.StandbyGone, nil)
	b.start(first...)
	phase := func() marker.Phase {
		m, err := d.store.Get(testUUID)
		if err != nil {
			t.Fatal(err)
		}
		return m.Phase
	}
	<-b.ctx.Done() // the machine has ended
	if p := phase(); p != marker.PhaseClaimed {
		t.Errorf("the right is still to be handed back, and the marker says %q", p)
	}
	close(arb.back)
	<-b.done
	if p := phase(); p != marker.PhaseEnded {
		t.Errorf("the right was handed back, and the marker says %q", p)
	}
}
