package daemon

import (
	"fmt"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// TestMayBring: what is here of a guest is of the host that brought it.
func TestMayBring(t *testing.T) {
	d := &Daemon{backups: map[string]*backup{}}
	of := func(host string, state ftengine.BackupState) *backup {
		b := &backup{}
		b.name, b.mark.PeerName, b.status.State = "web1", host, state.String()
		return b
	}
	for _, c := range []struct {
		b    *backup
		from string
		says string
	}{
		{nil, "hostA", ""},
		{of("hostA", ftengine.BackupStandby), "hostA", ""},
		{of("hostA", ftengine.BackupStandby), "hostC", "is from hostA, not from hostC"},
		{of("hostA", ftengine.BackupSyncing), "hostC", "is from hostA, not from hostC"},
		{of("hostA", ftengine.BackupActive), "hostC", "is from hostA, not from hostC"},
		{of("hostA", ftengine.BackupOrphaned), "hostC", "is from hostA, not from hostC"},
		{of("hostA", ftengine.BackupWaiting), "hostC", ""},
		{of("", ftengine.BackupStandby), "hostC", ""}, // of a daemon that did not note it
	} {
		r := d.mayBring(c.b, &replica.Hello{Host: c.from})
		if (r == nil) != (c.says == "") || r != nil && (!strings.Contains(r.Reason, c.says) || r.Code != replica.CodePolicy || r.Remedy == "") {
			t.Errorf("%+v: %+v", c, r)
		}
	}
	for i := range backupsMax {
		d.backups[fmt.Sprint(i)] = nil
	}
	if r := d.mayBring(nil, &replica.Hello{Host: "hostA"}); r == nil || !strings.Contains(r.Reason, "256 guests") {
		t.Errorf("%+v", r)
	}
}
