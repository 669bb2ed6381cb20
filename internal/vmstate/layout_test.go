package vmstate

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

// cpuDescription is what QEMU 7.2 says of sections "timer" and "cpu" for -cpu max,tsc-frequency=1000000000.
func cpuDescription(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/cpu.vmdesc.json")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// layout72 is QEMU 7.2's: the fields before env.tsc are 1157 bytes by vmstate_x86_cpu in target/i386/machine.c.
var layout72 = CPULayout{version: 12, bytes: 1817, tscAt: 1157, systemTimeAt: 1529, khzVersion: 1, khzBytes: 8}

func TestParseCPULayoutOfQEMU(t *testing.T) {
	l, err := ParseCPULayout(cpuDescription(t))
	if err != nil || l != layout72 {
		t.Errorf("%+v, %v", l, err)
	}
}

// The four CPUs of a blob that was never started, each with a subsection behind its fields.
func TestCPUClocksOfQEMU(t *testing.T) {
	blob := q35Blob(t)
	ds, err := ParseDevices(blob)
	if err != nil {
		t.Fatal(err)
	}
	clocks, err := ds.CPUClocks(blob, layout72)
	if err != nil || len(clocks) != 4 {
		t.Fatalf("%+v, %v", clocks, err)
	}
	for i, c := range clocks {
		if c != (CPUClock{Instance: uint32(i)}) {
			t.Errorf("%+v", c)
		}
		if err := ds.SetTSC(blob, layout72, c.Instance, 0x1122334455667788+uint64(i)); err != nil {
			t.Error(err)
		}
	}
	clocks, err = ds.CPUClocks(blob, layout72)
	for i, c := range clocks {
		if c.TSC != 0x1122334455667788+uint64(i) {
			t.Errorf("%+v, %v", c, err)
		}
	}
	if err := ds.SetTSC(blob, layout72, 4, 1); !errors.Is(err, ErrSection) {
		t.Errorf("a fifth CPU: %v", err)
	}
}

// small describes a CPU with this after its fields "a" and "env.tsc", and this in the array of devices.
func small(more, devices string) string {
	return `{"page_size":4096,"devices":[{"name":"x","fields":[{"struct":7}]},{"name":"cpu","version":3,"fields":[
		{"name":"a","array_len":3,"type":"uint16","size":2},{"name":"env.tsc","type":"uint64","size":8}` + more + `}` + devices + `]}`
}

func TestParseCPULayout(t *testing.T) {
	base := CPULayout{version: 3, bytes: 14, tscAt: 6}
	khz := base
	khz.khzVersion, khz.khzBytes, khz.khzAt = 2, 12, 4
	clock := base
	clock.bytes, clock.systemTimeAt = 31, 23
	const other = `,{"name":"cpu","version":3,"fields":[{"name":"b","type":"uint16","size":6},{"name":"env.tsc","type":"uint64","size":8}]`
	const rate = `"subsections":[{"vmsd_name":"cpu/tsc_khz","version":2,"fields":[{"name":"z","size":4},{"name":"env.tsc_khz","type":"int64","size":8}]}]`
	for _, c := range []struct {
		name, more, devices string
		want                CPULayout // zero: refused
	}{
		{"two fields", `]`, ``, base},
		{"a kvmclock behind a struct", `,{"name":"s","type":"struct","size":9,"struct":{"vmsd_name":"s","fields":[{"name":"p","array_len":2,"size":4},{"name":"q","size":1}]}},` +
			`{"name":"env.system_time_msr","type":"uint64","size":8}]`, ``, clock},
		{"behind elements of an array", `,{"name":"s","index":0,"size":4},{"name":"s","index":1,"size":5},{"name":"env.system_time_msr","type":"uint64","size":8}]`, ``, clock},
		{"behind a struct with a subsection", `,{"name":"s","size":9,"struct":{"fields":[{"name":"p","size":1}],"subsections":[{"vmsd_name":"s","version":1,"fields":[{"name":"q","size":1}]}]}},` +
			`{"name":"env.system_time_msr","type":"uint64","size":8}]`, ``, clock},
		{"behind a tmp", `,{"name":"s","type":"tmp","vmsd_name":"y","fields":[{"name":"q","size":9}],"size":9},{"name":"env.system_time_msr","type":"uint64","size":8}]`, ``, clock},
		{"a rate", `],` + rate, ``, khz},
		{"a rate of another CPU", `]`, other + `,` + rate + `}`, khz},
		{"a rate of the first CPU", `],` + rate, other + `}`, khz},
		{"other subsections", `],"subsections":[{"vmsd_name":"cpu/x","version":1,"fields":[{"name":"env.tsc_khz","type":"uint64","size":8}]}]`, ``, base},

		{"CPUs that differ", `,{"name":"y","size":1}]`, other + `}`, CPULayout{}},
		{"a struct of another size", `,{"name":"s","size":8,"struct":{"fields":[{"name":"p","size":9}]}}]`, ``, CPULayout{}},
		{"a tmp of another size", `,{"name":"s","size":8,"fields":[{"name":"p","size":9}]}]`, ``, CPULayout{}},
		{"negative size", `,{"name":"s","size":-8}]`, ``, CPULayout{}},
		{"negative length", `,{"name":"s","array_len":-1,"size":8}]`, ``, CPULayout{}},
		{"huge", `,{"name":"s","array_len":1000000,"size":1000000}]`, ``, CPULayout{}},
		{"two TSCs", `,{"name":"env.tsc","type":"uint64","size":8}]`, ``, CPULayout{}},
		{"kvmclock of 4 bytes", `,{"name":"env.system_time_msr","type":"uint32","size":4}]`, ``, CPULayout{}},
		{"kvmclocks", `,{"name":"env.system_time_msr","type":"uint64","array_len":2,"size":8}]`, ``, CPULayout{}},
		{"a rate of 4 bytes", `],` + strings.Replace(rate, `"size":8`, `"size":4`, 1), ``, CPULayout{}},
		{"text for a number", `,{"name":"s","size":"8"}]`, ``, CPULayout{}},
		{"no JSON", `}`, ``, CPULayout{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := ParseCPULayout([]byte(small(c.more, c.devices)))
			if l != c.want || (err != nil) != (c.want == CPULayout{}) || err != nil && !errors.Is(err, ErrLayout) {
				t.Errorf("%+v, %v", l, err)
			}
		})
	}
	for _, text := range []string{"", "{}", `{"devices":[{"name":"cpu"}]}`, `{"devices":[7]}`, strings.Repeat(" ", maxVMDescBytes+1)} {
		if l, err := ParseCPULayout([]byte(text)); !errors.Is(err, ErrLayout) {
			t.Errorf("%.20q: %+v, %v", text, l, err)
		}
	}
}

func TestCPUClocks(t *testing.T) {
	l := CPULayout{version: 12, bytes: 24, tscAt: 8, systemTimeAt: 16, khzVersion: 1, khzBytes: 8}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	fields := u64s(1, 1000, 0x2001)
	rate := join(subsectionHeader(subsectionTSC, 1), u64s(2_400_000))
	before, after := join(subsectionHeader("cpu/a", 1), []byte("xyz")), join(subsectionHeader("cpu/b", 1), []byte{1})
	for _, c := range []struct {
		name    string
		version uint32
		payload []byte
		want    CPUClock // zero: refused
	}{
		{"fields", 12, fields, CPUClock{TSC: 1000, KVMClockOn: true}},
		{"kvmclock off", 12, u64s(1, 1000, 0x2000), CPUClock{TSC: 1000}},
		{"rate", 12, join(fields, rate), CPUClock{TSC: 1000, TSCkHz: 2_400_000, KVMClockOn: true}},
		{"rate among others", 12, join(fields, before, rate, after), CPUClock{TSC: 1000, TSCkHz: 2_400_000, KVMClockOn: true}},
		{"others", 12, join(fields, before, after), CPUClock{TSC: 1000, KVMClockOn: true}},
		{"rate of another version", 12, join(fields, subsectionHeader(subsectionTSC, 2), u64s(7)), CPUClock{TSC: 1000, KVMClockOn: true}},
		{"header in a register", 12, join(fields, before, rate[:17], []byte("junk, not a rate"), rate), CPUClock{TSC: 1000, TSCkHz: 2_400_000, KVMClockOn: true}},
		{"forged rate", 12, join(fields, before, rate, rate), CPUClock{}},
		{"absurd rate", 12, join(fields, subsectionHeader(subsectionTSC, 1), u64s(1<<32)), CPUClock{}},
		{"version", 11, fields, CPUClock{}},
		{"short", 12, fields[:23], CPUClock{}},
		{"long", 12, append(bytes.Clone(fields), 0), CPUClock{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			blob, ds := clockBlob(t, clockSection{SectionCPU, 0, c.version, c.payload})
			got, err := ds.CPUClocks(blob, l)
			if (c.want == CPUClock{}) {
				if !errors.Is(err, ErrSection) {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if err != nil || len(got) != 1 || got[0] != c.want {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	t.Run("forged CPU", func(t *testing.T) {
		cpu := clockSection{SectionCPU, 1, 12, fields}
		blob, ds := clockBlob(t, cpu, cpu)
		if got, err := ds.CPUClocks(blob, l); !errors.Is(err, ErrSection) {
			t.Errorf("%+v, %v", got, err)
		}
		if err := ds.SetTSC(blob, l, 1, 5); !errors.Is(err, ErrSection) {
			t.Error(err)
		}
	})
	t.Run("no layout", func(t *testing.T) {
		blob, ds := clockBlob(t, clockSection{SectionCPU, 0, 0, nil})
		if got, err := ds.CPUClocks(blob, CPULayout{}); !errors.Is(err, ErrSection) {
			t.Errorf("%+v, %v", got, err)
		}
		if err := ds.SetTSC(blob, CPULayout{}, 0, 5); !errors.Is(err, ErrSection) {
			t.Error(err)
		}
	})
	t.Run("no CPU", func(t *testing.T) {
		blob, ds := clockBlob(t, clockSection{"x", 0, 0, nil})
		if got, err := ds.CPUClocks(blob, l); !errors.Is(err, ErrSection) {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// FuzzParseCPULayout: what is accepted lies within its section.
func FuzzParseCPULayout(f *testing.F) {
	f.Add(cpuDescription(f))
	f.Add([]byte(small(`]`, ``)))
	f.Add([]byte(small(`],"subsections":[{"vmsd_name":"cpu/tsc_khz","fields":[{"name":"env.tsc_khz","type":"int64","size":8}]}]`, ``)))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseCPULayout(text)
		if err != nil {
			if !errors.Is(err, ErrLayout) {
				t.Fatal(err)
			}
			return
		}
		if l.tscAt < 0 || l.tscAt+8 > l.bytes || l.bytes > maxCPUBytes || l.systemTimeAt < 0 || l.systemTimeAt > 0 && l.systemTimeAt+8 > l.bytes ||
			l.khzBytes != 0 && (l.khzAt < 0 || l.khzAt+8 > l.khzBytes) {
			t.Fatalf("%+v", l)
		}
		blob, ds := clockBlob(t, clockSection{SectionCPU, 0, l.version, make([]byte, l.bytes)})
		if clocks, err := ds.CPUClocks(blob, l); err != nil || clocks[0] != (CPUClock{}) {
			t.Fatalf("%+v, %v", clocks, err)
		}
	})
}
