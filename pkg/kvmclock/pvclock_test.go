package kvmclock

import (
	"encoding/binary"
	"errors"
	"math"
	"math/big"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// mod64 is what of v a register of 64 bits holds.
func mod64(v *big.Int) uint64 {
	m := new(big.Int).Lsh(big.NewInt(1), 64)
	return new(big.Int).Mod(v, m).Uint64() // Euclidean: never negative
}

func TestPageAt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Page{
			TSCTimestamp: rapid.Uint64().Draw(t, "timestamp"), SystemTimeNs: rapid.Uint64().Draw(t, "system"),
			Mul: rapid.Uint32().Draw(t, "mul"), Shift: int8(rapid.IntRange(-32, 31).Draw(t, "shift")),
		}
		// A shift to the left that loses bits is one of a page years old.
		ticks := rapid.Int64Range(-1<<32, 1<<32).Draw(t, "ticks")
		if rapid.Bool().Draw(t, "far") && p.Shift < 0 {
			ticks = rapid.Int64Range(0, 1<<63-1).Draw(t, "manyTicks")
		}
		ns := new(big.Int).Abs(big.NewInt(ticks))
		if p.Shift < 0 {
			ns.Rsh(ns, uint(-p.Shift))
		} else {
			ns.Lsh(ns, uint(p.Shift))
		}
		ns.Mul(ns, big.NewInt(int64(p.Mul))).Rsh(ns, 32)
		if ticks < 0 {
			ns.Neg(ns)
		}
		want := mod64(ns.Add(ns, new(big.Int).SetUint64(p.SystemTimeNs)))
		if got := p.At(p.TSCTimestamp + uint64(ticks)); got != want {
			t.Fatalf("%+v at %d ticks: %d, want %d", p, ticks, got, want)
		}
	})
}

func TestParsePage(t *testing.T) {
	b := binary.LittleEndian.AppendUint32(nil, 6)
	b = binary.LittleEndian.AppendUint32(b, 0xffffffff) // padding
	b = binary.LittleEndian.AppendUint64(b, 3_000_000_000)
	b = binary.LittleEndian.AppendUint64(b, 7)
	b = binary.LittleEndian.AppendUint32(b, 1<<31)
	b = append(b, 0xff, 1, 0xff, 0xff)
	p, err := ParsePage(b)
	if want := (Page{Version: 6, TSCTimestamp: 3_000_000_000, SystemTimeNs: 7, Mul: 1 << 31, Shift: -1, Flags: 1}); p != want || err != nil {
		t.Fatalf("%+v, %v", p, err)
	}
	if got := p.At(3_000_000_400); got != 107 { // 400 ticks, halved twice
		t.Errorf("the clock is %d", got)
	}
	b[0] = 7
	if _, err := ParsePage(b); !errors.Is(err, ErrPageTorn) {
		t.Errorf("an odd version: %v", err)
	}
	b[0] = 6
	for _, shift := range []byte{32, 127, 0x80, 0xdf} {
		b[28] = shift
		if _, err := ParsePage(b); err == nil {
			t.Errorf("a shift of %d", int8(shift))
		}
	}
	if _, err := ParsePage(b[:pageBytes-1]); err == nil {
		t.Error("31 bytes are a page")
	}
}

func FuzzParsePage(f *testing.F) {
	f.Add(make([]byte, pageBytes), uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, tsc uint64) {
		if p, err := ParsePage(b); err == nil {
			p.At(tsc) // does not panic
		}
	})
}

func TestAdvanceTSC(t *testing.T) {
	if got := AdvanceTSC(1000, 2_900_000, time.Second); got != 2_900_001_000 {
		t.Errorf("a second at 2.9 GHz: %d", got)
	}
	check := func(t interface{ Fatalf(string, ...any) }, tsc uint64, kHz uint32, by int64) {
		ticks := new(big.Int).Mul(big.NewInt(by), new(big.Int).SetUint64(uint64(kHz)))
		ticks.Quo(ticks, big.NewInt(1_000_000)) // towards zero
		want := mod64(ticks.Add(ticks, new(big.Int).SetUint64(tsc)))
		if got := AdvanceTSC(tsc, kHz, time.Duration(by)); got != want {
			t.Fatalf("%d, want %d", got, want)
		}
	}
	for _, by := range []int64{math.MinInt64, -1, 0, 1, math.MaxInt64} {
		check(t, 7, math.MaxUint32, by)
	}
	rapid.Check(t, func(t *rapid.T) {
		check(t, rapid.Uint64().Draw(t, "tsc"), rapid.Uint32().Draw(t, "kHz"), rapid.Int64().Draw(t, "by"))
	})
}
