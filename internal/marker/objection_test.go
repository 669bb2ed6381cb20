package marker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestObject: what each file means to a guest that somebody wants to start.
func TestObject(t *testing.T) {
	type file struct {
		role  Role
		phase Phase
	}
	for _, x := range []struct {
		name string
		mark file
		disk *DiskRecord
		want string // empty: it may start
	}{
		{name: "nothing"},
		{name: "connecting", mark: file{RolePrimary, PhaseConnecting}},
		{name: "armed", mark: file{RolePrimary, PhaseArmed}, want: "web1 was protected to host-b"},
		{name: "protected", mark: file{RolePrimary, PhaseProtected}, want: "web1 was protected to host-b"},
		{name: "fenced", mark: file{RolePrimary, PhaseFenced}, want: "web1 was protected to host-b"},
		{name: "lost", mark: file{RolePrimary, PhaseLost}, want: "host-b may go on"},
		{name: "alone", mark: file{RolePrimary, PhaseAlone}},
		{name: "ended", mark: file{RolePrimary, PhaseEnded}},
		{name: "told", mark: file{RolePrimary, PhaseTold}, want: "web1 was protected to host-b"},
		{name: "handed over", mark: file{RolePrimary, PhaseHandedOver}, want: "web1 was protected to host-b"},
		{name: "of a later version", mark: file{RolePrimary, "dancing"}, want: "dancing"},
		{name: "syncing", mark: file{RoleBackup, PhaseSyncing}, want: "stands by for web1"},
		{name: "standby", mark: file{RoleBackup, PhaseStandby}, want: "stands by for web1"},
		{name: "claimed", mark: file{RoleBackup, PhaseClaimed}, want: "took over here"},
		{name: "active", mark: file{RoleBackup, PhaseActive}, want: "took over here"},
		{name: "backup ended", mark: file{RoleBackup, PhaseEnded}},
		{name: "backup of a later version", mark: file{RoleBackup, "dancing"}, want: "dancing"},
		{name: "stale", mark: file{RolePrimary, PhaseEnded},
			disk: &DiskRecord{Active: "host-b", Disks: map[string]DiskImage{"vda": {Kind: ImageStale}}}, want: "went on at host-b; its disks here are of the past"},
		{name: "stale, no marker", disk: &DiskRecord{Active: "host-b", Disks: map[string]DiskImage{"vda": {Kind: ImageStale}}}, want: "virt-ft activate --force web1"},
		{name: "elsewhere without disks", disk: &DiskRecord{Active: "host-b"}, want: "web1 went on at host-b"},
		{name: "here", mark: file{RolePrimary, PhaseEnded}, disk: &DiskRecord{Disks: map[string]DiskImage{"vda": {Kind: ImageSource}}}},
	} {
		dir := filepath.Join(t.TempDir(), "state")
		if x.mark != (file{}) {
			s, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Put(Marker{Domain: "web1", UUID: "u", Role: x.mark.role, Phase: x.mark.phase, PeerName: "host-b"}); err != nil {
				t.Fatal(err)
			}
		}
		if x.disk != nil {
			d, err := OpenDisks(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Change("u", "web1", func(rec *DiskRecord) { rec.Active, rec.Disks = x.disk.Active, x.disk.Disks }); err != nil {
				t.Fatal(err)
			}
		}
		for how, o := range map[string]*Objection{"by UUID": Object(dir, "u"), "by name": ObjectByName(dir, "web1")} {
			switch {
			case x.want == "" && o != nil:
				t.Errorf("%s, %s: %+v", x.name, how, o)
			case x.want != "" && (o == nil || !strings.Contains(o.Why+o.Remedy, x.want)):
				t.Errorf("%s, %s: %+v, want %q", x.name, how, o, x.want)
			}
		}
		if o := Object(dir, "other"); o != nil {
			t.Errorf("%s: another guest: %+v", x.name, o)
		}
		if o := ObjectByName(dir, "web2"); o != nil {
			t.Errorf("%s: a guest of another name: %+v", x.name, o)
		}
	}
}

// TestObjectUnreadable: a file that cannot be read is not a file that says
// nothing, and keeps nobody else from starting.
func TestObjectUnreadable(t *testing.T) {
	for i, damage := range []func(path string) error{
		func(path string) error { return os.WriteFile(path, nil, 0o600) },
		func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
		func(path string) error { return os.WriteFile(path, []byte(`{"version":99}`), 0o600) },
		func(path string) error {
			return os.WriteFile(path, []byte(`{"domain":"`+strings.Repeat("x", fileBytesMax)), 0o600)
		},
		func(path string) error { return os.Mkdir(path, 0o700) },
		func(path string) error { return os.Symlink(path, path) },
	} {
		for _, in := range []string{"", "disks"} {
			t.Run(fmt.Sprint(i, in), func(t *testing.T) {
				dir := t.TempDir()
				if err := os.MkdirAll(filepath.Join(dir, "disks"), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := damage(filepath.Join(dir, in, "u.json")); err != nil {
					t.Fatal(err)
				}
				if o := Object(dir, "u"); o == nil || !strings.Contains(o.Why, "u.json") {
					t.Errorf("%+v", o)
				}
				if o := Object(dir, "other"); o != nil {
					t.Errorf("another guest: %+v", o)
				}
				if o := ObjectByName(dir, "web1"); o == nil {
					t.Error("nobody can know whose it is")
				}
			})
		}
	}
}
