package vmstate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// encodeSection writes s with a payload, the inverse of what ParseDevices reads.
func encodeSection(b []byte, s Section, payload []byte) []byte {
	b = append(b, s.Type)
	b = binary.BigEndian.AppendUint32(b, s.ID)
	b = append(b, byte(len(s.Name)))
	b = append(b, s.Name...)
	b = binary.BigEndian.AppendUint32(b, s.Instance)
	b = binary.BigEndian.AppendUint32(b, s.Version)
	b = append(b, payload...)
	b = append(b, markFooter)
	return binary.BigEndian.AppendUint32(b, s.ID)
}

var header = []byte("QEVM\x00\x00\x00\x03")

// encodeDevices puts sections and payloads together again.
func encodeDevices(blob []byte, ds Devices) []byte {
	b := slices.Clone(header)
	for _, s := range ds {
		b = encodeSection(b, s, s.Payload(blob))
	}
	return append(b, markEOF)
}

// blobOf makes a blob of sections named a, b, c... with ids 1, 2, 3...
func blobOf(payloads ...string) []byte {
	b := slices.Clone(header)
	for i, p := range payloads {
		s := Section{Type: markFull, ID: uint32(i + 1), Name: string(rune('a' + i)), Version: 1}
		b = encodeSection(b, s, []byte(p))
	}
	return append(b, markEOF)
}

func TestParseDevicesOfQEMU(t *testing.T) {
	blob := q35Blob(t)
	ds, err := ParseDevices(blob)
	if err != nil {
		t.Fatal(err)
	}
	same(t, encodeDevices(blob, ds), blob)
	if !Complete(blob) {
		t.Error("not Complete")
	}
	if len(ds) != 38 || ds[0].Name != "timer" || ds[len(ds)-1].Name != "globalstate" {
		t.Errorf("%d sections from %q to %q", len(ds), ds[0].Name, ds[len(ds)-1].Name)
	}
	for instance := range uint32(4) {
		if _, ok := ds.Section("cpu", instance); !ok {
			t.Errorf("no cpu %d", instance)
		}
	}
	if _, ok := ds.Section("cpu", 4); ok {
		t.Error("a fifth cpu")
	}
	timer, _ := ds.Section("timer", 0)
	if timer.Version != 2 || timer.Len != 24 {
		t.Errorf("timer: %+v", timer)
	}
}

// Every beginning of a blob must be told from the whole, as that is how an
// unfinished capture looks.
func TestParseDevicesCutAnywhere(t *testing.T) {
	blob := q35Blob(t)
	for n := range len(blob) {
		if n > 2000 && n < len(blob)-2000 && n%37 != 0 {
			continue
		}
		if Complete(blob[:n]) {
			t.Fatalf("Complete with %d bytes of %d", n, len(blob))
		}
		_, err := ParseDevices(blob[:n])
		if !errors.Is(err, ErrIncomplete) {
			t.Fatalf("%d bytes of %d: %v", n, len(blob), err)
		}
	}
}

// Payload that looks like a boundary must not end a section where the rest
// then makes no sense.
func TestParseDevicesAmbiguous(t *testing.T) {
	fakeHeader := "\x04\x00\x00\x00\x09\x01z\x00\x00\x00\x00\x00\x00\x00\x01"
	header1 := "\x04\x00\x00\x00\x01\x01z\x00\x00\x00\x00\x00\x00\x00\x01"
	tests := []struct {
		name     string
		payloads []string
	}{
		{"empty payloads", []string{"", "", ""}},
		{"own footer", []string{"x~\x00\x00\x00\x01y", "q"}},
		{"own footer and EOF", []string{"x~\x00\x00\x00\x01\x00y", "q"}},
		{"own footer and unknown header", []string{"x~\x00\x00\x00\x01" + fakeHeader + "y", "q"}},
		{"itself again", []string{"x~\x00\x00\x00\x01" + header1 + "y", "q"}},
		{"itself later", []string{"x~\x00\x00\x00\x01" + fakeHeader + "~\x00\x00\x00\x09" + header1 + "y", "q"}},
		{"again and again", []string{string(bytes.Repeat([]byte("~\x00\x00\x00\x01"+fakeHeader), 1000)), "q"}},
		{"another's footer", []string{"x~\x00\x00\x00\x02", "q", "~\x00\x00\x00\x01"}},
		{"footer of footers", []string{"~~~~\x00\x00\x00\x01", "~~~~~~~~"}},
		{"last one with EOF", []string{"x", "~\x00\x00\x00\x02\x00"}},
		{"half a footer", []string{"x", "~\x00\x00\x00"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			blob := blobOf(tt.payloads...)
			ds, err := ParseDevices(blob)
			if err != nil {
				t.Fatal(err)
			}
			if len(ds) != len(tt.payloads) {
				t.Fatalf("%d sections: %+v", len(ds), ds)
			}
			for i, want := range tt.payloads {
				same(t, ds[i].Payload(blob), []byte(want))
			}
			if !Complete(blob) {
				t.Error("not Complete")
			}
		})
	}
}

// Whatever a guest puts into its devices, its state is never refused.
func TestParseDevicesAnyPayload(t *testing.T) {
	id := func(mark string) *rapid.Generator[string] {
		return rapid.Map(rapid.IntRange(1, 5), func(n int) string { return mark + "\x00\x00\x00" + string(rune(n)) })
	}
	tail := rapid.Just("\x01z\x00\x00\x00\x00\x00\x00\x00\x01")
	pieces := rapid.SliceOfN(rapid.OneOf(id("~"), id("\x04"), tail, tail, rapid.SampledFrom([]string{"", "\x00", "~", "\x06"})), 0, 12)
	payload := rapid.Map(pieces, func(p []string) string { return strings.Join(p, "") })
	rapid.Check(t, func(t *rapid.T) {
		blob := blobOf(rapid.SliceOfN(payload, 1, 4).Draw(t, "payloads")...)
		ds, err := ParseDevices(blob)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[uint32]bool{}
		for _, s := range ds {
			if seen[s.ID] {
				t.Fatalf("id %d occurs twice", s.ID)
			}
			seen[s.ID] = true
		}
		if !Complete(blob) || !bytes.Equal(encodeDevices(blob, ds), blob) {
			t.Fatalf("%+v", ds)
		}
	})
}

// A boundary within a header, here in instance, version and the payload after
// them, is none: the header goes on to its end.
func TestParseDevicesFooterInHeader(t *testing.T) {
	second := Section{Type: markFull, ID: 0x01020304, Name: "y", Instance: 0x00007e01, Version: 0x02030404}
	payload := "\x00\x00\x00\x02\x01z\x00\x00\x00\x00\x00\x00\x00\x01"
	blob := encodeSection(slices.Clone(header), Section{Type: markFull, ID: 1, Name: "x"}, nil)
	blob = encodeSection(blob, second, []byte(payload))
	blob = encodeSection(blob, Section{Type: markFull, ID: 2, Name: "z", Version: 1}, nil)
	blob = append(blob, markEOF)
	ds, err := ParseDevices(blob)
	if err != nil || len(ds) != 3 || ds[1].Len != len(payload) {
		t.Fatalf("%+v, %v", ds, err)
	}
}

func TestParseDevicesDescription(t *testing.T) {
	blob := append(blobOf("one", "two"), "\x06\x00\x00\x00\x02{}"...)
	ds, err := ParseDevices(blob)
	if err != nil || len(ds) != 2 {
		t.Fatalf("%+v, %v", ds, err)
	}
	if _, err := ParseDevices(blob[:len(blob)-1]); !errors.Is(err, ErrIncomplete) {
		t.Errorf("cut description: %v", err)
	}
}

func TestParseDevicesRefuses(t *testing.T) {
	good := blobOf("one", "two")
	with := func(at int, b byte) []byte {
		c := slices.Clone(good)
		c[at] = b
		return c
	}
	tests := []struct {
		name   string
		blob   []byte
		offset int64
		early  bool
	}{
		{"nothing", nil, 0, true},
		{"magic", with(0, 'q'), 0, false},
		{"version", with(7, 4), 4, false},
		{"no section", append(slices.Clone(header), 0), 8, false},
		{"first mark", with(8, 1), 8, false},
		{"name", with(14, 7), 8, false},
		{"first footer", with(26, 0), 23, false},
		{"end mark", with(len(good)-1, 1), int64(len(good) - 9), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseDevices(tt.blob)
			var fe *FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("error %v", err)
			}
			if fe.Offset != tt.offset || errors.Is(err, ErrIncomplete) != tt.early {
				t.Errorf("%v; want offset %d, early %t", err, tt.offset, tt.early)
			}
		})
	}
}

func TestParseDevicesBoundsCandidates(t *testing.T) {
	noise := bytes.Repeat([]byte("~\x00\x00\x00\x09\x04\x00\x00\x00\x09\x01z\x00\x00\x00\x00\x00\x00\x00\x01"), maxBoundaries+1)
	if _, err := ParseDevices(blobOf(string(noise), "q")); !errors.Is(err, ErrBounds) {
		t.Errorf("error %v", err)
	}
}

func FuzzParseDevices(f *testing.F) {
	blob := q35Blob(f)
	ds, err := ParseDevices(blob)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encodeDevices(blob, ds[:2])) // not all of it: small inputs are mutated better
	f.Add(encodeDevices(blob, ds[len(ds)-4:]))
	f.Add(blobOf("", "x~\x00\x00\x00\x01\x00y", "q"))
	f.Add(append(blobOf("one"), "\x06\x00\x00\x00\x02{}"...))
	f.Add(blobOf("one", "two")[:40])
	f.Fuzz(func(t *testing.T, blob []byte) {
		ds, err := ParseDevices(blob)
		if err != nil {
			var fe *FormatError
			if !errors.As(err, &fe) || fe.Offset < 0 || fe.Offset > int64(len(blob)) {
				t.Fatalf("error %v for %d bytes", err, len(blob))
			}
			return
		}
		last := ds[len(ds)-1]
		again := encodeDevices(blob, ds)
		same(t, again, blob[:last.Offset+last.Len+footerBytes+1])
		if !Complete(again) {
			t.Fatal("parsed, but not Complete")
		}
		twice, err := ParseDevices(again)
		if err != nil || !slices.Equal(ds, twice) {
			t.Fatalf("second parse: %v\n%v\n%v", err, ds, twice)
		}
	})
}

func BenchmarkParseDevices(b *testing.B) {
	blob := q35Blob(b)
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		if _, err := ParseDevices(blob); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkComplete(b *testing.B) {
	blob := q35Blob(b)
	b.ReportAllocs()
	for b.Loop() {
		if !Complete(blob) {
			b.Fatal("not complete")
		}
	}
}
