package daemon

import (
	"testing"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// A name means the guest that is there, not one of the same name that is gone.
func TestFind(t *testing.T) {
	gone, here := &backup{}, &backup{}
	gone.name, here.name = "web1", "web1"
	gone.status.State, here.status.State = ftengine.BackupWaiting.String(), ftengine.BackupActive.String()
	d := &Daemon{backups: map[string]*backup{"uuid-of-gone": gone, "uuid-of-here": here}}
	for range 100 { // maps have no order
		if _, b := d.find("web1"); b != here {
			t.Fatal("web1 is the guest that is gone")
		}
	}
	if _, b := d.find("uuid-of-gone"); b != gone {
		t.Error("a UUID does not find its own domain")
	}
	if p, b := d.find("web2"); p != nil || b != nil {
		t.Error("web2 was never here")
	}
}
