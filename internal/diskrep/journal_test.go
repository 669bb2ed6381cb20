package diskrep

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// encodeJournal is the dumb writer: a segment with these records.
func encodeJournal(h segmentHead, rs []record, data func(i int) []byte) ([]byte, uint32) {
	b, chain := h.encode()
	for i, r := range rs {
		var head [recordHeader]byte
		var d []byte
		if r.dataBytes() > 0 {
			d = data(i)
		}
		chain = r.put(head[:], chain, d)
		b = append(append(b, head[:]...), d...)
	}
	return b, chain
}

func goldenRecords() []record {
	return []record{
		{kind: recordWrite, disk: 1, epoch: 2, off: 0x1000, len: 4},
		{kind: recordWrite, flags: recordZero, disk: 0, epoch: 2, off: 0x2000, len: 0x40000000},
		{kind: recordEnd, epoch: 2, off: 2},
		{kind: recordDrop, epoch: 1},
	}
}

// The bytes on disk may not change: another version of this program reads them.
func TestJournalGolden(t *testing.T) {
	got, _ := encodeJournal(segmentHead{journal: 0x0102030405060709, number: 3, chain: 0xaabbccdd}, goldenRecords(), func(int) []byte { return []byte("data") })
	want := `
		76697274 66746a6c 00000001 aabbccdd 01020304 05060709 00000000 00000003 00000000 55166991
		65857213 01000001 00000000 00000002 00000000 00001000 00000000 00000004 64617461
		b156bb80 01010000 00000000 00000002 00000000 00002000 00000000 40000000
		7b3c6bab 02000000 00000000 00000002 00000000 00000002 00000000 00000000
		0d0adb60 03000000 00000000 00000001 00000000 00000000 00000000 00000000`
	checkGolden(t, "segment", got, want)

	s := slot{whole: true, count: 5, journal: 0x0102030405060709, first: 3}
	copy(s.disks[:], "sixteen bytes of")
	checkGolden(t, "slot", s.encode(), `
		76697274 66746a73 00000001 00000001 00000000 00000005 01020304 05060709
		00000000 00000003 73697874 65656e20 62797465 73206f66 00000000 aadd8536`)
}

func checkGolden(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	var words []string
	for b := got; len(b) > 0; b = b[min(4, len(b)):] {
		words = append(words, hex.EncodeToString(b[:min(4, len(b))]))
	}
	if w := strings.Fields(want); strings.Join(words, " ") != strings.Join(w, " ") {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(words, " "), strings.Join(w, " "))
	}
}

// readAll reads one segment as recovery does.
func readAll(b []byte, disks []Disk) (c census, chain uint32, err error) {
	c.disks = disks
	chain, err = readSegment(bytes.NewReader(b), int64(len(b)), segmentHead{journal: 9, number: 1}, true,
		func(r record, data []byte) error {
			if int64(len(data)) != r.dataBytes() {
				return errors.New("data of another length")
			}
			return c.see(r)
		})
	return c, chain, err
}

// Cut a journal anywhere, or change any of its bytes: the epochs that are read
// are the first ones of those that were written.
func TestJournalDamage(t *testing.T) {
	disks := []Disk{{Name: "vda", SizeBytes: 1 << 20}}
	rapid.Check(t, func(rt *rapid.T) {
		var rs []record
		var ends []int // records up to the end of each epoch
		for e := range rapid.IntRange(1, 5).Draw(rt, "epochs") {
			n := rapid.IntRange(1, 4).Draw(rt, "writes")
			for range n {
				r := record{kind: recordWrite, epoch: uint64(e + 2), off: rapid.Uint64Range(0, 1<<19).Draw(rt, "off"), len: rapid.Uint64Range(1, 40).Draw(rt, "len")}
				if rapid.Bool().Draw(rt, "zero") {
					r.flags = recordZero
				}
				rs = append(rs, r)
			}
			rs = append(rs, record{kind: recordEnd, epoch: uint64(e + 2), off: uint64(n)})
			ends = append(ends, len(rs))
		}
		data := func(i int) []byte {
			b := make([]byte, rs[i].len)
			pattern(b, uint64(i))
			return b
		}
		whole, _ := encodeJournal(segmentHead{journal: 9, number: 1}, rs, data)
		if c, _, err := readAll(whole, disks); err != nil || len(c.whole) != len(ends) {
			rt.Fatalf("undamaged: %d epochs of %d, %v", len(c.whole), len(ends), err)
		}
		at := rapid.IntRange(0, len(whole)-1).Draw(rt, "at")
		b := bytes.Clone(whole)
		if rapid.Bool().Draw(rt, "cut") {
			b = b[:at]
		} else {
			b[at] ^= byte(rapid.IntRange(1, 255).Draw(rt, "flip"))
		}
		intact := 0 // epochs before the damage
		for _, n := range ends {
			if enc, _ := encodeJournal(segmentHead{journal: 9, number: 1}, rs[:n], data); len(enc) <= at {
				intact++
			}
		}
		c, _, err := readAll(b, disks)
		if len(c.whole) != intact {
			rt.Fatalf("%d epochs of %d intact ones, %v", len(c.whole), intact, err)
		}
		if len(b) == len(whole) && !errors.Is(err, errTorn) {
			rt.Fatalf("a damaged byte gives %v", err)
		}
	})
}

// A record counts only behind those that it was written behind: one of another
// journal, or of an earlier use of the same blocks, does not.
func TestJournalChain(t *testing.T) {
	rs := []record{{kind: recordWrite, flags: recordZero, epoch: 2, len: 512}, {kind: recordEnd, epoch: 2, off: 1}}
	one, _ := encodeJournal(segmentHead{journal: 9, number: 1}, rs, nil)
	other, _ := encodeJournal(segmentHead{journal: 10, number: 1}, rs, nil)
	rs[0].off = 512
	third, _ := encodeJournal(segmentHead{journal: 9, number: 1}, rs, nil)
	for _, b := range [][]byte{
		append(bytes.Clone(one[:segmentHeader]), other[segmentHeader:]...),
		append(bytes.Clone(one[:segmentHeader+recordHeader]), third[segmentHeader+recordHeader:]...),
	} {
		if c, _, err := readAll(b, nil); !errors.Is(err, errTorn) || len(c.whole) != 0 {
			t.Errorf("%d epochs, %v", len(c.whole), err)
		}
	}
}

func TestCensus(t *testing.T) {
	w := func(e uint64) record { return record{kind: recordWrite, flags: recordZero, epoch: e, len: 512} }
	end := func(e, n uint64) record { return record{kind: recordEnd, epoch: e, off: n} }
	drop := func(e uint64) record { return record{kind: recordDrop, epoch: e} }
	for _, c := range []struct {
		what string
		rs   []record
		want []uint64
		torn bool
	}{
		{"two epochs and a part", []record{w(2), end(2, 1), w(5), w(5), end(5, 2), w(6)}, []uint64{2, 5}, false},
		{"a dropped epoch comes again", []record{w(2), end(2, 1), w(3), end(3, 1), drop(2), w(3), w(3), end(3, 2)}, []uint64{2, 3}, false},
		{"a dropped part", []record{w(2), drop(1), w(2), end(2, 1)}, []uint64{2}, false},
		{"all dropped", []record{w(2), end(2, 1), w(3), drop(1)}, nil, false},
		{"a drop of nothing", []record{drop(7), w(2), drop(2), end(2, 1)}, []uint64{2}, false},
		{"another epoch within one", []record{w(2), w(3)}, nil, true},
		{"an epoch that was", []record{w(3), end(3, 1), w(2)}, []uint64{3}, true},
		{"an end of nothing", []record{end(2, 1)}, nil, true},
		{"too few writes", []record{w(2), end(2, 2)}, nil, true},
		{"beyond the disk", []record{{kind: recordWrite, flags: recordZero, epoch: 2, off: 1024, len: 1}}, nil, true},
		{"of no disk", []record{{kind: recordWrite, flags: recordZero, disk: 1, epoch: 2, len: 1}}, nil, true},
	} {
		b, _ := encodeJournal(segmentHead{journal: 9, number: 1}, c.rs, nil)
		got, _, err := readAll(b, []Disk{{Name: "vda", SizeBytes: 1024}})
		if errors.Is(err, errTorn) != c.torn || err != nil && !c.torn {
			t.Errorf("%s: %v", c.what, err)
		}
		var epochs []uint64
		for _, s := range got.whole {
			epochs = append(epochs, s.epoch)
		}
		if len(epochs) != len(c.want) || len(epochs) > 0 && epochs[len(epochs)-1] != c.want[len(epochs)-1] {
			t.Errorf("%s: %v, want %v", c.what, epochs, c.want)
		}
	}
}

func TestSegmentsFollow(t *testing.T) {
	b, _ := encodeJournal(segmentHead{journal: 9, number: 2, chain: 77}, goldenRecords()[1:2], nil)
	read := func(want segmentHead, first bool) error {
		_, err := readSegment(bytes.NewReader(b), int64(len(b)), want, first, func(record, []byte) error { return nil })
		return err
	}
	if err := read(segmentHead{journal: 9, number: 2, chain: 77}, false); err != nil {
		t.Error(err)
	}
	if err := read(segmentHead{journal: 9, number: 2}, true); err != nil {
		t.Errorf("the first that is needed: %v", err)
	}
	for _, want := range []segmentHead{{journal: 9, number: 2, chain: 78}, {journal: 8, number: 2, chain: 77}, {journal: 9, number: 3, chain: 77}} {
		if err := read(want, false); !errors.Is(err, errTorn) {
			t.Errorf("%+v: %v", want, err)
		}
	}
}

func TestStateSlots(t *testing.T) {
	file := make([]byte, stateBytes)
	if _, err := decodeState(file); !errors.Is(err, errNoSlot) {
		t.Errorf("an empty state: %v", err)
	}
	copy(file, slot{count: 4, journal: 1}.encode())
	copy(file[slotDistance:], slot{count: 5, journal: 2}.encode())
	if s, err := decodeState(file); err != nil || s.journal != 2 {
		t.Errorf("%+v %v", s, err)
	}
	file[slotDistance+30] ^= 1 // a torn write of the newer one
	if s, err := decodeState(file); err != nil || s.journal != 1 {
		t.Errorf("%+v %v", s, err)
	}
	future := slot{count: 9}.encode()
	future[11] = 2
	resealSlot(future)
	copy(file, future)
	if _, err := decodeState(file); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("a later version: %v", err)
	}
}

// FuzzJournal: whatever is in a segment, reading it ends, panics nowhere, and
// what is taken from it is what encodes to the same bytes.
func FuzzJournal(f *testing.F) {
	golden, _ := encodeJournal(segmentHead{journal: 9, number: 1}, goldenRecords(), func(int) []byte { return []byte("data") })
	f.Add(golden, true)
	f.Add(golden[:len(golden)-5], true)
	f.Add(golden[:segmentHeader], false)
	f.Fuzz(func(t *testing.T, b []byte, reseal bool) {
		if reseal {
			b = resealJournal(bytes.Clone(b))
		}
		var rs []record
		var data [][]byte
		s, h, err := newSegmentReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for {
			r, d, err := s.next()
			if errors.Is(err, io.EOF) || errors.Is(err, errTorn) {
				break
			}
			if err != nil {
				t.Fatalf("memory cannot fail to be read: %v", err)
			}
			rs, data = append(rs, r), append(data, bytes.Clone(d))
		}
		again, _ := encodeJournal(h, rs, func(i int) []byte { return data[i] })
		if !bytes.HasPrefix(b, again) {
			t.Errorf("read and written again it differs:\n%x\n%x", b, again)
		}
		c := census{disks: []Disk{{Name: "vda", SizeBytes: 1 << 30}, {Name: "vdb", SizeBytes: 1 << 20}}}
		for _, r := range rs {
			if c.see(r) != nil {
				break
			}
		}
		last := uint64(0)
		for _, s := range c.whole {
			if s.epoch <= last || s.from >= s.to || s.to > uint64(len(rs)) {
				t.Errorf("epochs %+v", c.whole)
			}
			last = s.epoch
		}
	})
}
