package replica

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func sampleDisks() []Disk {
	return []Disk{
		{Name: "vda", SizeBytes: 8 << 30, UsedBytes: 3 << 30, Source: "/images/web1.qcow2", Format: "qcow2"},
		{Name: "sdb", SizeBytes: 1<<20 + 512, Source: "/dev/vg/data", Format: "raw", Path: "/srv/web1-sdb.raw"},
	}
}

// sampleDiskWrites are a write of three bytes, zeros on the other disk, and a
// write over what the first one wrote.
func sampleDiskWrites() (runs []DiskRun, data []byte) {
	return []DiskRun{{0, 0, 3, 0x1001}, {1, DiskZero, 1<<32 - 1, 0x200}, {0, 0, 2, 0x1000}}, []byte("abcde")
}

func genDisks(t *rapid.T) []Disk {
	var disks []Disk
	text := rapid.StringMatching(`[ -~é☃]{0,60}`)
	for range rapid.IntRange(0, MaxDisks).Draw(t, "disks") {
		disks = append(disks, Disk{"vd" + string(rune('A'+len(disks))), rapid.Uint64Range(1, diskEnd-1).Draw(t, "size"),
			rapid.Uint64Range(0, diskEnd-1).Draw(t, "used"), text.Draw(t, "source"), text.Draw(t, "format"), text.Draw(t, "path")})
	}
	return disks
}

// TestDiskWritesArrive: any writes, however their data is cut, arrive with their
// data in their order, in the caller's memory; and the check against the disks
// lets through what ends within them, and nothing else.
func TestDiskWritesArrive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disks := genDisks(t)
		var runs []DiskRun
		var data []byte
		var cut [][]byte
		fit := true
		for i := range rapid.IntRange(0, 40).Draw(t, "runs") {
			r := DiskRun{Disk: uint16(rapid.IntRange(0, len(disks)+1).Draw(t, "disk"))}
			if rapid.Bool().Draw(t, "zero") {
				r.Flags, r.Bytes = DiskZero, rapid.Uint32Min(1).Draw(t, "bytes")
			} else {
				r.Bytes = rapid.Uint32Range(1, 5000).Draw(t, "bytes")
				d := bytes.Repeat([]byte{byte(i + 1)}, int(r.Bytes))
				at := rapid.IntRange(0, len(d)).Draw(t, "cut")
				data, cut = append(data, d...), append(cut, d[:at], d[at:])
			}
			r.Off = rapid.Uint64Max(1<<64-1-uint64(r.Bytes)).Draw(t, "off")
			if int(r.Disk) < len(disks) {
				size := disks[r.Disk].SizeBytes
				if near := rapid.Uint64Range(0, 2).Draw(t, "near the end"); near < 2 && size >= uint64(r.Bytes) {
					r.Off = size - uint64(r.Bytes) + near
				}
				fit = fit && uint64(r.Bytes) <= size && r.Off <= size-uint64(r.Bytes)
			} else {
				fit = false
			}
			runs = append(runs, r)
		}
		c, _ := wireConn(DataChannel)
		calls := 0
		if err := c.SendDiskWrites(context.Background(), testStamp, runs, cut, func(err error) {
			if calls++; err != nil {
				t.Fatalf("done: %v", err)
			}
		}); err != nil || calls != 1 {
			t.Fatalf("%v, done ran %d times", err, calls)
		}
		arena := make([]byte, len(data)+1)
		f, err := c.RecvPages(context.Background(), func(n int) []byte { return arena[:n] })
		if err != nil {
			t.Fatal(err)
		}
		m := f.Msg.(*DiskWrites)
		if f.Stamp != testStamp || !reflect.DeepEqual(m.Runs, runs) || !bytes.Equal(f.Data, data) || len(data) > 0 && &f.Data[0] != &arena[0] {
			t.Fatalf("%+v with %d bytes became %+v with %d bytes", runs, len(data), m.Runs, len(f.Data))
		}
		if err := CheckDiskRuns(m.Runs, disks); (err == nil) != fit {
			t.Fatalf("%+v in %+v: %v", m.Runs, disks, err)
		}
	})
}

// TestFullDiskWrites sends as much as one message may have: of data, of runs.
func TestFullDiskWrites(t *testing.T) {
	zeros := make([]DiskRun, MaxRuns)
	for i := range zeros {
		zeros[i] = DiskRun{uint16(i), DiskZero, 1<<32 - 1, 1<<64 - 1<<32}
	}
	for name, c := range map[string]struct {
		runs []DiskRun
		data []byte
	}{
		"data": {[]DiskRun{{0, 0, MaxPageData - 1, 1}, {1, 0, 1, 0}}, bytes.Repeat([]byte{7}, MaxPageData)},
		"runs": {zeros, nil},
	} {
		conn, w := wireConn(DataChannel)
		if err := conn.SendDiskWrites(t.Context(), testStamp, c.runs, [][]byte{c.data}, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := HeaderBytes + 4 + len(c.runs)*runBytes + len(c.data); w.Len() != want {
			t.Errorf("%s: %d bytes, want %d", name, w.Len(), want)
		}
		f, err := conn.RecvPages(t.Context(), func(n int) []byte { return make([]byte, n) })
		if err != nil || !reflect.DeepEqual(f.Msg.(*DiskWrites).Runs, c.runs) || !bytes.Equal(f.Data, c.data) {
			t.Errorf("%s did not arrive: %v", name, err)
		}
	}
}

func TestSendDiskWritesRefusals(t *testing.T) {
	a, w := wireConn(DataChannel)
	control, _ := wireConn(ControlChannel)
	byte1 := [][]byte{{1}}
	for name, c := range map[string]struct {
		conn  *Conn
		runs  []DiskRun
		data  [][]byte
		field string
	}{
		"control":      {control, []DiskRun{{Bytes: 1}}, byte1, "type"},
		"short data":   {a, []DiskRun{{Bytes: 2}}, byte1, "data"},
		"data of zero": {a, []DiskRun{{Bytes: 1, Flags: DiskZero}}, byte1, "data"},
		"no bytes":     {a, []DiskRun{{}}, nil, "run bytes"},
		"overflow":     {a, []DiskRun{{Bytes: 2, Off: 1<<64 - 1, Flags: DiskZero}}, nil, "run offset"},
		"flags":        {a, []DiskRun{{Bytes: 1, Flags: 2}}, byte1, "run flags"},
		"too much":     {a, []DiskRun{{Bytes: MaxPageData}, {Bytes: 1}}, [][]byte{make([]byte, MaxPageData), {1}}, "runs"},
		"many runs":    {a, make([]DiskRun, MaxRuns+1), nil, "runs"},
	} {
		calls := 0
		err := c.conn.SendDiskWrites(t.Context(), testStamp, c.runs, c.data, func(error) { calls++ })
		var fe *FormatError
		if !errors.As(err, &fe) || fe.Type != TypeDiskWrites || fe.Field != c.field || calls != 1 {
			t.Errorf("%s: %v, done ran %d times", name, err, calls)
		}
	}
	if w.Len() != 0 {
		t.Errorf("%d bytes were sent", w.Len())
	}
	if err := a.Send(t.Context(), testStamp, &DiskWrites{}); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "SendDiskWrites") {
		t.Errorf("disk writes without data: %v", err)
	}
}

// TestUnexpectedDiskWrites: on a connection where nobody gives memory, and where
// nobody has any, the connection ends.
func TestUnexpectedDiskWrites(t *testing.T) {
	for name, alloc := range map[string]func(int) []byte{"no allocator": nil, "no memory": func(int) []byte { return nil }} {
		c, _ := wireConn(DataChannel)
		runs, data := sampleDiskWrites()
		if err := c.SendDiskWrites(t.Context(), testStamp, runs, [][]byte{data}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.RecvPages(t.Context(), alloc); err == nil || !strings.Contains(err.Error(), "DiskWrites") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDiskFieldRefusals(t *testing.T) {
	setup := func(change func(*Setup)) *Setup {
		m := &Setup{Durability: DurabilityMemory, Disks: sampleDisks()}
		change(m)
		return m
	}
	long := strings.Repeat("x", MaxPathBytes+1)
	for name, c := range map[string]struct {
		m     Message
		field string
	}{
		"no durability":      {setup(func(m *Setup) { m.Durability = 0 }), "durability"},
		"unknown durability": {setup(func(m *Setup) { m.Durability = 3 }), "durability"},
		"many disks":         {setup(func(m *Setup) { m.Disks = make([]Disk, MaxDisks+1) }), "disks"},
		"no name":            {setup(func(m *Setup) { m.Disks[1].Name = "" }), "disk name"},
		"same name":          {setup(func(m *Setup) { m.Disks[1].Name = "vda" }), "disk name"},
		"long name":          {setup(func(m *Setup) { m.Disks[0].Name = long }), "disk name"},
		"no size":            {setup(func(m *Setup) { m.Disks[0].SizeBytes = 0 }), "disk size"},
		"size":               {setup(func(m *Setup) { m.Disks[0].SizeBytes = diskEnd }), "disk size"},
		"used":               {setup(func(m *Setup) { m.Disks[0].UsedBytes = diskEnd }), "disk used"},
		"long source":        {setup(func(m *Setup) { m.Disks[0].Source = long }), "disk source"},
		"long format":        {setup(func(m *Setup) { m.Disks[0].Format = long }), "disk format"},
		"long path":          {setup(func(m *Setup) { m.Disks[0].Path = long }), "disk path"},
		"NUL in a path":      {setup(func(m *Setup) { m.Disks[0].Path = "/a\x00b" }), "disk path"},
		"many images":        {&Ready{make([]DiskReady, MaxDisks+1)}, "disks"},
		"no image":           {&Ready{make([]DiskReady, 1)}, "disk path"},
		"long image":         {&Ready{[]DiskReady{{Path: long}}}, "disk path"},
		"no sums":            {&DiskSums{}, "sums"},
		"half a sum":         {&DiskSums{Sums: make([]byte, SumBytes+8)}, "sums"},
		"many sums":          {&DiskSums{Sums: make([]byte, (MaxSums+1)*SumBytes)}, "sums"},
		"sums of nothing":    {&DiskSums{FirstBlock: 1 << 63, Sums: make([]byte, SumBytes)}, "firstBlock"},
	} {
		_, err := AppendMessage(nil, testHeader(), c.m)
		var fe *FormatError
		if !errors.As(err, &fe) || fe.Type != c.m.Type() || fe.Field != c.field {
			t.Errorf("%s: %v, want an error in %q", name, err, c.field)
		}
	}
}

// TestLargestMessages: what has all of its fields as large as they may be fits
// into the bound of its type.
func TestLargestMessages(t *testing.T) {
	name, path := strings.Repeat("n", MaxNameBytes), strings.Repeat("p", MaxPathBytes)
	setup := &Setup{SourceXML: strings.Repeat("x", MaxXMLBytes), LiveXML: strings.Repeat("x", MaxXMLBytes), Machine: name,
		Arbiter: name, ArbiterIdentity: name, Durability: DurabilityFsync}
	for range MaxBlocks {
		setup.Blocks = append(setup.Blocks, Block{name, 1})
	}
	ready := &Ready{}
	for i := range MaxDisks {
		setup.Disks = append(setup.Disks, Disk{name[1:] + string(rune('0'+i)), diskEnd - 1, diskEnd - 1, path, name, path})
		ready.Disks = append(ready.Disks, DiskReady{path, true})
	}
	for _, m := range []Message{setup, ready, &DiskSums{Disk: 1<<16 - 1, FirstBlock: diskEnd/SumBlockBytes - MaxSums, Sums: make([]byte, MaxSums*SumBytes)}} {
		b, err := AppendMessage(nil, testHeader(), m)
		if err != nil {
			t.Errorf("%s: %v", m.Type(), err)
			continue
		}
		if back, err := DecodePayload(m.Type(), b[HeaderBytes:]); err != nil || !reflect.DeepEqual(back, m) {
			t.Errorf("%s does not decode: %v", m.Type(), err)
		}
	}
}

func TestDurabilityReads(t *testing.T) {
	for d, want := range map[Durability]string{DurabilityMemory: "memory", DurabilityFsync: "fsync", 9: "durability 9"} {
		if got := d.String(); got != want {
			t.Errorf("%d: %q", uint8(d), got)
		}
	}
}
