package guestapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"
)

func TestRecordKeepsItsBytes(t *testing.T) {
	want := Record{Generation: 1, Slot: 2, Seq: 3, Serial: 4, Session: 5, Request: 6, Nonce: 7, Hash: 8}
	b := bytes.Repeat([]byte{0xff}, RecordBytes)
	want.Put(b)
	const head = "7666742d64726331" + "0000000000000001" + "0000000000000002" + "0000000000000003" + "0000000000000004" +
		"0000000000000005" + "0000000000000006" + "0000000000000007" + "0000000000000008"
	if got := hex.EncodeToString(b[:recordHead]); got != head {
		t.Errorf("header is %s", got)
	}
	const golden = "3ffd76c9f0cf82b0"
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:8]) != golden {
		t.Errorf("record's hash is %x, was %s", sum[:8], golden)
	}
	if got, err := ParseRecord(b); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestRecordsThatAreTorn(t *testing.T) {
	older, newer := make([]byte, RecordBytes), make([]byte, RecordBytes)
	Record{Generation: 1, Slot: 2, Seq: 3}.Put(older)
	Record{Generation: 1, Slot: 2, Seq: 4}.Put(newer)
	for at := 512; at < RecordBytes; at += 512 { // every sector's edge
		torn := append(append([]byte(nil), newer[:at]...), older[at:]...)
		if _, err := ParseRecord(torn); !errors.Is(err, ErrFormat) {
			t.Errorf("torn at %d: %v", at, err)
		}
		clear(torn[at:])
		if _, err := ParseRecord(torn); !errors.Is(err, ErrFormat) {
			t.Errorf("zero from %d on: %v", at, err)
		}
	}
	if part := append(make([]byte, RecordBytes-sectorBytes), newer[RecordBytes-sectorBytes:]...); !PartOfRecord(part) {
		t.Error("a record's last sector passes for something else")
	}
	if PartOfRecord(make([]byte, RecordBytes)) || PartOfRecord(bytes.Repeat([]byte{0x76}, RecordBytes)) || PartOfRecord(nil) {
		t.Error("what is no record passes for a part of one")
	}
	for name, b := range map[string][]byte{"short": newer[:RecordBytes-1], "nothing": nil, "zero": make([]byte, RecordBytes)} {
		if _, err := ParseRecord(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLayoutGivesEverySerialItsSlot(t *testing.T) {
	for bytes, want := range map[int64]DiskLayout{
		DiskBytesMin: {Accept: 512, Load: 256}, 96 << 20: {Accept: 8192, Load: 4096}, 1 << 40: {Accept: 1 << 15, Load: 1 << 15},
	} {
		l, err := LayoutOf(bytes)
		if err != nil || l != want || l.Slots()*RecordBytes > uint64(bytes) {
			t.Fatalf("%d bytes: %+v, %v", bytes, l, err)
		}
		seen := map[uint64]bool{}
		for serial := uint64(1000); serial < 1000+l.Accept; serial++ {
			seen[l.SlotOf(serial)] = true
		}
		if uint64(len(seen)) != l.Accept || l.SlotOf(7) != l.SlotOf(7+l.Accept) {
			t.Errorf("%d serials in a row have %d slots", l.Accept, len(seen))
		}
	}
	if _, err := LayoutOf(DiskBytesMin - 1); !errors.Is(err, ErrFormat) {
		t.Errorf("a tiny disk: %v", err)
	}
}

func FuzzParseRecord(f *testing.F) {
	b := make([]byte, RecordBytes)
	Record{Generation: 9, Slot: 1, Seq: 2}.Put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			return
		}
		again := make([]byte, RecordBytes)
		r.Put(again)
		if !bytes.Equal(again[:recordHead], b[:recordHead]) {
			t.Errorf("%x became %+v", b[:recordHead], r)
		}
	})
}
