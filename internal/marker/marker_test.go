package marker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestStore: a marker survives as it was, and one that cannot be read is an
// error that names it and keeps nobody from the others.
func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := At(dir).Get("u"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := Marker{Domain: "web1", UUID: "u", Role: RolePrimary, Phase: PhaseProtected, Protection: "p", Generation: 3,
		Peer: "10.0.0.2:7788", PeerName: "host-b", Arbiter: "file", ArbiterID: "i", Pacing: Pacing{1, 2, 0.5, 4},
		Disks: map[string]string{"vda": "/x"}, Reason: "r"}
	if err := s.Put(want); err != nil {
		t.Fatal(err)
	}
	got, err := At(dir).Get("u")
	if err != nil || got.Version != version || got.At.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	want.Version, want.At = got.Version, got.At
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if s.LastGeneration("u") != 3 || s.LastGeneration("other") != 0 {
		t.Error("generations are forgotten")
	}
	for name, bad := range map[string]string{"broken": "{", "later": `{"version":7}`} {
		if err := os.WriteFile(s.path(name), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ms, err := s.All()
	if len(ms) != 1 || ms[0].UUID != "u" || err == nil || !strings.Contains(err.Error(), "broken.json") || !strings.Contains(err.Error(), "later.json") {
		t.Errorf("%+v, %v", ms, err)
	}
}

// TestFile: the format of files on disk; what an earlier version wrote is read.
func TestFile(t *testing.T) {
	s := At(t.TempDir())
	const file = `{
  "version": 1, "domain": "web1", "uuid": "u", "role": "backup", "phase": "claimed", "protection": "p", "generation": 2,
  "peerName": "host-a", "pacing": {"min_ns": 1, "idle_ns": 2, "pause_share_max": 0.25, "held_max_ns": 3},
  "at": "2026-01-02T03:04:05Z", "unknown": true
}`
	if err := os.WriteFile(s.path("u"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := s.Get("u")
	if err != nil || m.Role != RoleBackup || m.Phase != PhaseClaimed || m.PeerName != "host-a" || m.Pacing != (Pacing{1, 2, 0.25, 3}) || !m.MayRun() {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestPhases: what each phase means to those who ask.
func TestPhases(t *testing.T) {
	for _, x := range []struct {
		role                 Role
		phase                Phase
		ended, armed, mayRun bool
	}{
		{RolePrimary, PhaseConnecting, false, false, false},
		{RolePrimary, PhaseArmed, false, true, false},
		{RolePrimary, PhaseProtected, false, true, false},
		{RolePrimary, PhaseFenced, false, true, false},
		{RolePrimary, PhaseAlone, false, false, false},
		{RolePrimary, PhaseLost, false, false, false},
		{RolePrimary, PhaseTold, false, true, false},
		{RolePrimary, PhaseHandedOver, false, true, false},
		{RolePrimary, PhaseEnded, true, false, false},
		{RoleBackup, PhaseSyncing, false, false, false},
		{RoleBackup, PhaseStandby, false, false, false},
		{RoleBackup, PhaseClaimed, false, false, true},
		{RoleBackup, PhaseActive, false, false, true},
		{RoleBackup, PhaseEnded, true, false, false},
	} {
		m := Marker{Role: x.role, Phase: x.phase}
		if m.Ended() != x.ended || m.Armed() != x.armed || m.MayRun() != x.mayRun {
			t.Errorf("%s %s: ended %v, armed %v, may run %v", x.role, x.phase, m.Ended(), m.Armed(), m.MayRun())
		}
	}
}
