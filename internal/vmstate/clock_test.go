package vmstate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/big"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// clockSection is a section with this payload.
type clockSection struct {
	name     string
	instance uint32
	version  uint32
	payload  []byte
}

// clockBlob makes a blob of sections, and parses it.
func clockBlob(t interface{ Fatal(...any) }, sections ...clockSection) ([]byte, Devices) {
	b := slices.Clone(header)
	for i, s := range sections {
		b = encodeSection(b, Section{Type: markFull, ID: uint32(i + 1), Name: s.name, Instance: s.instance, Version: s.version}, s.payload)
	}
	b = append(b, markEOF)
	ds, err := ParseDevices(b)
	if err != nil {
		t.Fatal(err)
	}
	return b, ds
}

func u64s(vs ...uint64) (b []byte) {
	for _, v := range vs {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

// reliable is the subsection that every kvmclock of today has.
var reliable = append(subsectionHeader("kvmclock/clock_is_reliable", 1), 1)

func TestKVMClock(t *testing.T) {
	good := clockSection{SectionKVMClock, 0, 1, append(u64s(1_000_000_007), reliable...)}
	change := func(f func(s *clockSection)) clockSection { s := good; f(&s); return s }
	for _, c := range []struct {
		name     string
		sections []clockSection
		ok       bool
	}{
		{"as QEMU writes it", []clockSection{{SectionTimer, 0, 2, u64s(1, 2, 3)}, good}, true},
		{"old machine type", []clockSection{change(func(s *clockSection) { s.payload = s.payload[:8] })}, true},
		{"another instance", []clockSection{change(func(s *clockSection) { s.instance = 1 })}, false},
		{"version", []clockSection{change(func(s *clockSection) { s.version = 2 })}, false},
		{"short", []clockSection{change(func(s *clockSection) { s.payload = s.payload[:7] })}, false},
		{"long", []clockSection{change(func(s *clockSection) { s.payload = u64s(1, 2) })}, false},
		{"another's subsection", []clockSection{change(func(s *clockSection) { s.payload = append(u64s(1), subsectionHeader("cpu/tsc_khz", 1)...) })}, false},
		{"cut subsection", []clockSection{change(func(s *clockSection) { s.payload = s.payload[:20] })}, false},
		{"forged", []clockSection{good, good}, false},
		{"none", []clockSection{{SectionTimer, 0, 2, u64s(1, 2, 3)}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			blob, ds := clockBlob(t, c.sections...)
			was := bytes.Clone(blob)
			ns, ok := ds.KVMClock(blob)
			err := ds.SetKVMClock(blob, 0x0102030405060708)
			if !c.ok {
				if ok || ns != 0 || !errors.Is(err, ErrSection) || !bytes.Equal(blob, was) {
					t.Fatalf("%d, %t, %v; changed: %t", ns, ok, err, !bytes.Equal(blob, was))
				}
				return
			}
			if !ok || ns != 1_000_000_007 || err != nil {
				t.Fatalf("%d, %t, %v", ns, ok, err)
			}
			same(t, blob, bytes.Replace(was, u64s(1_000_000_007), u64s(0x0102030405060708), 1))
			if err := ds.SetKVMClock(blob, 1<<63); !errors.Is(err, ErrBounds) {
				t.Errorf("2^63 ns: %v", err)
			}
		})
	}
	blob, ds := clockBlob(t, good)
	if _, ok := ds.KVMClock(blob[:len(header)]); ok {
		t.Error("a clock in a blob that is too short")
	}
}

func TestVirtualClockOfQEMU(t *testing.T) {
	blob := q35Blob(t)
	ds, err := ParseDevices(blob)
	if err != nil {
		t.Fatal(err)
	}
	if ns, ok := ds.VirtualClock(blob); !ok || ns != 0 { // it was never started
		t.Errorf("%d, %t", ns, ok)
	}
	was := bytes.Clone(blob)
	if err := ds.AdvanceVirtualClock(blob, 1500*time.Millisecond, 2_000_000); err != nil {
		t.Fatal(err)
	}
	s, _ := ds.Section(SectionTimer, 0)
	same(t, s.Payload(blob), u64s(3_000_000_000, 0, 1_500_000_000))
	copy(s.Payload(blob), s.Payload(was))
	same(t, blob, was)
}

// The dumb twin counts with numbers of any size.
func TestAdvanceVirtualClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ticks, ns := rapid.Int64().Draw(t, "ticks"), rapid.Int64().Draw(t, "ns")
		by, kHz := rapid.Int64().Draw(t, "by"), rapid.Uint32().Draw(t, "kHz")
		blob, ds := clockBlob(t, clockSection{SectionTimer, 0, 2, u64s(uint64(ticks), 5, uint64(ns))})
		was := bytes.Clone(blob)
		err := ds.AdvanceVirtualClock(blob, time.Duration(by), kHz)

		more := new(big.Int).Mul(big.NewInt(by), big.NewInt(int64(kHz)))
		more.Quo(more, big.NewInt(1e6))
		wantTicks := new(big.Int).Add(big.NewInt(ticks), more)
		wantNs := new(big.Int).Add(big.NewInt(ns), big.NewInt(by))
		if by < 0 || !more.IsInt64() || !wantTicks.IsInt64() || !wantNs.IsInt64() {
			if !errors.Is(err, ErrBounds) || !bytes.Equal(blob, was) {
				t.Fatalf("%v instead of %v", err, ErrBounds)
			}
			return
		}
		want, _ := clockBlob(t, clockSection{SectionTimer, 0, 2, u64s(uint64(wantTicks.Int64()), 5, uint64(wantNs.Int64()))})
		if err != nil || !bytes.Equal(blob, want) {
			t.Fatalf("%v: % x instead of % x", err, blob, want)
		}
	})
}

func TestVirtualClockRefuses(t *testing.T) {
	for _, s := range []clockSection{
		{SectionTimer, 0, 1, u64s(1, 2, 3)}, {SectionTimer, 0, 2, u64s(1, 2)}, {SectionTimer, 0, 2, u64s(1, 2, 3, 4)}, {"x", 0, 2, u64s(1, 2, 3)},
	} {
		blob, ds := clockBlob(t, s)
		if ns, ok := ds.VirtualClock(blob); ok {
			t.Errorf("%+v: %d", s, ns)
		}
		if err := ds.AdvanceVirtualClock(blob, 1, 0); !errors.Is(err, ErrSection) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

// FuzzClocks: whatever the blob, an edit changes the field it is about and
// nothing else, and what was written is what is read.
func FuzzClocks(f *testing.F) {
	l := CPULayout{version: 12, bytes: 40, tscAt: 8, systemTimeAt: 24, khzVersion: 1, khzBytes: 8}
	cpu := append(u64s(1, 2, 3, 1, 5), append(subsectionHeader(subsectionTSC, 1), u64s(3_000_000)...)...)
	blob, _ := clockBlob(f, clockSection{SectionTimer, 0, 2, u64s(1, 2, 3)}, clockSection{SectionCPU, 0, 12, cpu},
		clockSection{SectionKVMClock, 0, 1, append(u64s(7), reliable...)})
	f.Add(blob, uint64(9))
	f.Add(blob, uint64(math.MaxUint64))
	blob, _ = clockBlob(f, clockSection{SectionCPU, 0, 12, cpu}, clockSection{SectionCPU, 1, 12, cpu[:40]})
	f.Add(blob, uint64(1))
	f.Fuzz(func(t *testing.T, blob []byte, v uint64) {
		ds, err := ParseDevices(blob)
		if err != nil {
			return
		}
		was := bytes.Clone(blob)
		if _, ok := ds.KVMClock(blob); ok && v <= math.MaxInt64 {
			if err := ds.SetKVMClock(blob, v); err != nil {
				t.Fatal(err)
			}
			if got, ok := ds.KVMClock(blob); !ok || got != v {
				t.Fatalf("kvmclock %d, %t; %d was set", got, ok, v)
			}
		}
		if ns, ok := ds.VirtualClock(blob); ok && ds.AdvanceVirtualClock(blob, time.Duration(v), 0) == nil {
			if got, _ := ds.VirtualClock(blob); got != ns+int64(v) {
				t.Fatalf("virtual clock %d, advanced by %d: %d", ns, v, got)
			}
		}
		clocks, err := ds.CPUClocks(blob, l)
		if err != nil && !errors.Is(err, ErrSection) {
			t.Fatal(err)
		}
		for _, c := range clocks {
			if err := ds.SetTSC(blob, l, c.Instance, v); err != nil {
				t.Fatal(err)
			}
		}
		if differ(was, blob) > 8+8+8*len(clocks) {
			t.Fatal("more was changed than the clocks")
		}
		again, err := ds.CPUClocks(blob, l)
		if err == nil {
			for i := range again {
				if again[i].TSC != v || again[i].TSCkHz != clocks[i].TSCkHz || again[i].KVMClockOn != clocks[i].KVMClockOn {
					t.Fatalf("%+v, then %+v", clocks[i], again[i])
				}
			}
		}
	})
}

func differ(a, b []byte) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}
