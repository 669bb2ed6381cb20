package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestConfigFromCommandLine(t *testing.T) {
	c, err := parseConfig("console=ttyS0 ft.ip=10.78.0.10/24 ft.observer=10.78.0.1:9999 ft.mem_mb=8 ft.tick_ms=2.5 quiet\n")
	if err != nil || c.ip.String() != "10.78.0.10/24" || c.observer.Port() != 9999 || c.memMiB != 8 ||
		c.tick != 2500*time.Microsecond || c.dirtyPerSec != 2000 {
		t.Fatalf("got %+v, %v", c, err)
	}
	if off, err := parseConfig("ft.tick_ms=0"); err != nil || off.tick != 0 {
		t.Errorf("ticks that are off: %v, %v", off.tick, err)
	}
	disks, err := parseConfig("ft.disks=vda:records ft.disks=sdb:ext4 ft.disk=vda")
	if err != nil || !slices.Equal(disks.disks, []diskConfig{{"vda", "records"}, {"sdb", "ext4"}}) || disks.acceptDisk != "vda" {
		t.Errorf("disks: %+v, %v", disks, err)
	}
	for _, bad := range []string{strings.Repeat("ft.disks=vda:ext4 ", disksMax+1), "ft.disks=vda", "ft.disks=:records", "ft.disks=vda:xfs", "ft.tick_ms=-1", "ft.tick_ms=NaN", "ft.mem_mb=-1", "ft.mem_mb=99999999", "ft.ip=nowhere", "ft.tickms=2", "ft.tick_ms=x"} {
		if _, err := parseConfig(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestVerifierFindsStaleTornAndLostPages(t *testing.T) {
	w, err := newWorkload(4)
	if err != nil {
		t.Fatal(err)
	}
	damage := map[string]func(){
		"stale": func() { old := w.pages[1]; w.rewrite(1); w.pages[1] = old },
		"torn":  func() { old := w.pages[1][pageWords-1]; w.rewrite(1); w.pages[1][pageWords-1] = old },
		"lost":  func() { clear(w.pages[1][:]) },
		"moved": func() { w.pages[1] = w.pages[2] },
	}
	var found uint64
	for name, do := range damage {
		do()
		for i := range w.pages {
			w.verify(i)
		}
		found++
		if got := w.errors.Load(); got != found {
			t.Fatalf("%s: %d errors in all, want %d", name, got, found)
		}
	}
	for i := range w.pages {
		w.rewrite(i)
		w.verify(i)
	}
	if w.errors.Load() != found || w.writes.Load() < 4 {
		t.Errorf("intact pages were reported: %d errors", w.errors.Load()-found)
	}
}
