package daemon

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
)

// What a fence agent is given may be a password: no report has it.
func TestSettingsKeepSecrets(t *testing.T) {
	c := config.Default()
	c.Host, c.Arbiter.Fence.Options = "hostA", map[string]string{"password": "hunter2"}
	d, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	text, err := d.settings()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "hunter2") || !strings.Contains(text, `password = "(not shown)"`) || !strings.Contains(text, `idle = "100ms"`) {
		t.Error(text)
	}
	if d.cfg.Arbiter.Fence.Options["password"] != "hunter2" {
		t.Error("the daemon forgot the password itself")
	}
}

// A history is of what the daemon was told, also when nothing is protected any more.
func TestHistoryOfWhatEnded(t *testing.T) {
	c := config.Default()
	c.Host = "hostA"
	d, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d.ctx = t.Context()
	d.watch.Sample(time.Now(), []control.Status{{Domain: "web1", UUID: "u", Role: control.RoleBackup, State: control.StateStandby}})
	d.watch.Sample(time.Now(), nil)
	d.hub.emit(control.Event{Domain: "web1", UUID: "u", Kind: control.EventEnded, Text: "the protection ended here"})
	r := d.watch.Find("web1")
	if r == nil || len(r.Slots(time.Time{}, time.Now())) == 0 || len(d.lastEvents("u", 10)) != 1 || len(d.lastEvents("v", 10)) != 0 {
		t.Error("what ended is forgotten")
	}
	var _ control.Historian = d
}
