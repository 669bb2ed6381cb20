package guestapi

import (
	"errors"
	"testing"
)

func TestTickRoundTrip(t *testing.T) {
	want := Tick{BootID: BootID{1, 2, 15: 9}, Counter: 1, MonotonicNs: 2, UptimeNs: 3, Pid: 4,
		MemErrors: 5, Passes: 6, Writes: 7, BeaconGPA: 0x1234000, Told: 8}
	b := want.Append(nil)
	if len(b) != TickBytes {
		t.Fatalf("encoded tick has %d bytes, want %d", len(b), TickBytes)
	}
	got, err := ParseTick(b)
	if err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
	b[0]++
	if _, err := ParseTick(b); !errors.Is(err, ErrFormat) {
		t.Errorf("wrong magic: %v", err)
	}
	if _, err := ParseTick(b[:TickBytes-1]); !errors.Is(err, ErrFormat) {
		t.Errorf("short tick: %v", err)
	}
}

func TestReadyLine(t *testing.T) {
	id, err := ParseBootID("0b0e1e3c-7a45-4a4f-9d1c-0123456789ab\n")
	if err != nil || id.String() != "0b0e1e3c-7a45-4a4f-9d1c-0123456789ab" {
		t.Fatalf("boot id %s, %v", id, err)
	}
	want := Ready{BeaconGPA: 0xabc000, BootID: id, Pid: 1, Disks: 2}
	got, ok := FindReady("[ 1.0] noise\r\n" + want.Line() + "\r\nmore")
	if !ok || got != want {
		t.Fatalf("got %+v, %v", got, ok)
	}
	if _, ok := FindReady(want.Line()); ok {
		t.Error("a line that has not ended yet must not count")
	}
}

func TestBeaconNeedsMagic(t *testing.T) {
	if _, err := ParseBeacon(make([]byte, 4096)); !errors.Is(err, ErrFormat) {
		t.Errorf("zero page: %v", err)
	}
	page := make([]byte, 4096)
	copy(page, BeaconMagic)
	page[CounterOffset] = 7
	page[SpinsOffset+1] = 1
	b, err := ParseBeacon(page)
	if err != nil || b.Counter != 7 || b.Spins != 256 {
		t.Errorf("got %+v, %v", b, err)
	}
}
