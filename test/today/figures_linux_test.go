package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

const msec = time.Millisecond

func TestFigures(t *testing.T) {
	rs := &results{Rounds: 3, MemMiB: 512, skip: map[string]string{"migrate": "no"}, failover: 700 * msec}
	for _, n := range []time.Duration{1, 3, 2} {
		rs.saves[saveMemory] = append(rs.saves[saveMemory], saving{Stall: n * 1000 * msec, Save: n * 300 * msec, Restore: n * 700 * msec, ImageBytes: 5 << 20})
		rs.shots = append(rs.shots, shot{Stall: n * 100 * msec, Took: n * 500 * msec})
		rs.checked = append(rs.checked, checked{Stalls: []time.Duration{9 * n * msec, 4 * n * msec, 3 * n * msec}, Watched: 2 * time.Second, Epochs: 60})
	}
	r := &tool.Result{}
	rs.report(r)
	want := map[string]float64{"save_stall_ms": 2000, "save_ms": 600, "restore_ms": 1400, "snapshot_stall_ms": 200, "snapshot_total_ms": 1000,
		"checkpoint_stall_ms": 8, "checkpoint_stall_max_ms": 18, "checkpoint_hz": 30, "failover_stall_ms": 700}
	for name, v := range want {
		if got, there := r.Metrics[name]; !there || got != v {
			t.Errorf("%s is %v (%v), want %v", name, got, there, v)
		}
	}
	if len(r.Metrics) != len(want) {
		t.Errorf("metrics %v", r.Metrics)
	}
	if r.Skipped["migrate_stall_ms"] != "no" || r.Skipped["migrate_total_ms"] != "no" || r.Skipped["save_disk_stall_ms"] == "" {
		t.Errorf("skipped %v", r.Skipped)
	}
	if line, err := json.Marshal(r); err != nil || !strings.Contains(string(line), `"save_mib":5`) {
		t.Errorf("%s, %v", line, err)
	}
	var b strings.Builder
	rs.print(&b)
	if !strings.Contains(b.String(), "save_stall_ms") || !strings.Contains(rs.line(), "save+restore 2000.0 ms") {
		t.Errorf("%s\n%s", b.String(), rs.line())
	}
}

func TestGuestsThatMigrationLoses(t *testing.T) {
	rs := &results{lost: 2}
	r := &tool.Result{}
	rs.report(r)
	if !strings.Contains(r.Skipped["migrate_stall_ms"], "each of 2") {
		t.Errorf("skipped %v", r.Skipped)
	}
	rs.moves = []move{{Stall: 100 * msec, Took: time.Second}}
	r = &tool.Result{}
	rs.report(r)
	if r.Metrics["migrate_stall_ms"] != 100 || rs.details().Lost != 2 {
		t.Errorf("metrics %v", r.Metrics)
	}
	var b strings.Builder
	if rs.print(&b); !strings.Contains(b.String(), "2 of 3") {
		t.Errorf("%s", b.String())
	}
}

func TestLongest(t *testing.T) {
	got := longest([]time.Duration{3, 9, 1}, 2)
	if len(got) != 2 || got[0] != 9 || got[1] != 3 {
		t.Errorf("%v", got)
	}
	if got := longest([]time.Duration{3}, 2); len(got) != 2 || got[0] != 3 || got[1] != 0 {
		t.Errorf("fewer than asked for: %v", got)
	}
}

func TestRefusalKeepsItsReason(t *testing.T) {
	why := errors.New("unsupported")
	var no *refusal
	if err := refused("migrate", why); !errors.As(err, &no) || no.tool != "migrate" || !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	if err := refused("migrate", nil); err != nil {
		t.Errorf("nothing refused: %v", err)
	}
}
