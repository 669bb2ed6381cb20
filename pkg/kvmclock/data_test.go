package kvmclock

import (
	"bytes"
	"encoding/hex"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// TestDataGolden: the layout of linux/kvm.h. TestKernel asks a kernel.
func TestDataGolden(t *testing.T) {
	b, err := hex.DecodeString("15cd5b0700000000" + "0e000000" + "00000000" + "00c06e31d91a7917" + "efcdab8967452301" + "00000000000000000000000000000000")
	if err != nil {
		t.Fatal(err)
	}
	want := Data{ClockNs: 123456789, Flags: FlagTSCStable | FlagRealtime | FlagHostTSC, RealtimeNs: 0x17791ad9316ec000, HostTSC: 0x0123456789abcdef}
	if got, err := ParseData(b); got != want || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if got := want.Append([]byte("x")); !bytes.Equal(got[1:], b) || got[0] != 'x' {
		t.Errorf("%x", got)
	}
}

func FuzzParseData(f *testing.F) {
	f.Add(Data{1, 2, 3, 4}.Append(nil))
	f.Add(make([]byte, DataBytes-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseData(b)
		if (err == nil) != (len(b) >= DataBytes) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		if again, _ := ParseData(d.Append(nil)); err == nil && again != d {
			t.Fatalf("%+v became %+v", d, again)
		}
	})
}

func TestSetTo(t *testing.T) {
	for _, realtime := range []bool{true, false} {
		b := setTo(5, 7, realtime)
		d, err := ParseData(append(bytes.Clone(b), make([]byte, DataBytes-len(b))...))
		want := Data{ClockNs: 5}
		if realtime {
			want.Flags, want.RealtimeNs = 4, 7
		}
		if len(b) != 24 || d != want || err != nil {
			t.Errorf("%v: %x", realtime, b)
		}
	}
}

func TestReadingAt(t *testing.T) {
	for _, c := range []struct {
		r    Reading
		now  uint64
		want uint64
		ok   bool
	}{
		{Reading{100, 1000}, 1000, 100, true},
		{Reading{100, 1000}, 1700, 800, true},
		{Reading{100, 1000}, 950, 50, true}, // a peer whose clock is ahead
		{Reading{100, 1000}, 900, 0, true},
		{Reading{100, 1000}, 899, 0, false},
		{Reading{math.MaxInt64, 1000}, 1000, math.MaxInt64, true},
		{Reading{math.MaxInt64, 1000}, 1001, 0, false},
		{Reading{math.MaxUint64, 1000}, 1000, 0, false},
		{Reading{math.MaxUint64, 1000}, 1001, 0, false},
		{Reading{math.MaxUint64, 1000}, 999, 0, false},
	} {
		if got, ok := c.r.at(c.now); ok != c.ok || ok && got != c.want {
			t.Errorf("%+v at %d: %d, %v", c.r, c.now, got, ok)
		}
	}
}

// TestSampleOf: a reading's instant is found on RAW whatever CLOCK_REALTIME does,
// or it is said that it is not known.
func TestSampleOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := instant{realNs: rapid.Int64Range(0, 1<<61).Draw(t, "real"), rawNs: rapid.Int64Range(0, 1<<61).Draw(t, "raw")}
		lengthNs := rapid.Int64Range(0, 1e9).Draw(t, "length")
		atNs := rapid.Int64Range(0, lengthNs).Draw(t, "at")
		ppm := rapid.Int64Range(-900, 900).Draw(t, "ppm")
		stepNs := rapid.SampledFrom([]int64{0, 0, 3e6, -3e6, 1e12, -1e12}).Draw(t, "step")
		real := func(ns int64) int64 { return from.realNs + ns + ns*ppm/1_000_000 }
		to := instant{realNs: real(lengthNs) + stepNs, rawNs: from.rawNs + lengthNs}
		d := Data{ClockNs: 1, Flags: FlagRealtime, RealtimeNs: uint64(real(atNs))}
		s, exact, err := sampleOf(d, from, to)
		if err != nil {
			t.Skip(err)
		}
		off := s.rawNs - (from.rawNs + atNs)
		if off = max(off, -off); off > s.unsureNs+slackNs && (stepNs == 0 || s.unsureNs > 0) || stepNs == 0 && lengthNs > 0 && (!exact || off > 2) {
			t.Fatalf("off by %d of %d, exact %v", off, s.unsureNs, exact)
		}
	})
	for _, d := range []Data{{ClockNs: 1 << 63}, {ClockNs: 1, RealtimeNs: 1 << 63, Flags: FlagRealtime}} {
		if _, _, err := sampleOf(d, instant{1, 1}, instant{2, 2}); err == nil {
			t.Errorf("%+v is taken", d)
		}
	}
}
