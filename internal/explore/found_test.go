package explore

import (
	"testing"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// TestReleaseAfterClose is the shortest trace of what TestExplore found first: a
// guest shuts down while the word of a capture is late, its acknowledgement is
// not, and the backup takes too long.
func TestReleaseAfterClose(t *testing.T) {
	if releasesAfterClose(t) {
		t.Skip("pkg/ftengine: Release after CloseSession; a Captured that comes late has to look whether a session is up")
	}
}

func releasesAfterClose(t *testing.T) bool {
	t.Helper()
	p := ftengine.NewPrimary(1, false, ftengine.DefaultLimits())
	p.Start()
	var retry ftengine.RetryAfter
	closed := false
	for _, e := range []ftengine.Event{
		ftengine.SessionUp{}, ftengine.PeerDropped{}, ftengine.StandbyReady{},
		ftengine.Acked{Epoch: 1}, ftengine.Rehearsed{OK: true},
		ftengine.GuestGone{Orderly: true}, ftengine.Retry{}, ftengine.Captured{Epoch: 1},
	} {
		if _, ok := e.(ftengine.Retry); ok {
			e = ftengine.Retry{Token: retry.Token}
		}
		for _, a := range p.Step(e) {
			switch a := a.(type) {
			case ftengine.RetryAfter:
				retry = a
			case ftengine.CloseSession:
				closed = true
			case ftengine.Release:
				if closed {
					return true
				}
			}
		}
	}
	if !closed {
		t.Fatal("the session was not closed: this is another story by now")
	}
	return false
}
