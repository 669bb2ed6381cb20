package guestapi

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func TestAcceptRecordsKeepTheirBytes(t *testing.T) {
	r := Request{Op: OpApply, Session: 2, Seq: 3, Nonce: 4}.Append(nil)
	const wantRequest = "7666742d61637131" + "0000000000000001" + "0000000000000002" + "0000000000000003" + "0000000000000004"
	if got := hex.EncodeToString(r); got != wantRequest || len(r) != RequestBytes {
		t.Errorf("request is %s", got)
	}
	a := Answer{Status: StatusApplied, Session: 2, Seq: 3, Nonce: 4, Serial: 5, Hash: 6, BootID: BootID{7, 15: 8}}.Append(nil)
	const wantAnswer = "7666742d61636131" + "0000000000000001" + "0000000000000002" + "0000000000000003" + "0000000000000004" +
		"0000000000000005" + "0000000000000006" + "07000000000000000000000000000008"
	if got := hex.EncodeToString(a); got != wantAnswer || len(a) != AnswerBytes {
		t.Errorf("answer is %s", got)
	}
}

func TestAcceptRequestsThatAreRefused(t *testing.T) {
	good := Request{Op: OpApply, Session: 1, Seq: 1}
	for name, b := range map[string][]byte{
		"short": good.Append(nil)[:RequestBytes-1], "long": append(good.Append(nil), 0), "empty": nil,
		"magic": append([]byte{0}, good.Append(nil)[1:]...), "op": Request{Op: 3, Session: 1, Seq: 1}.Append(nil),
		"no op": Request{Session: 1, Seq: 1}.Append(nil), "session zero": Request{Op: OpApply, Seq: 1}.Append(nil),
		"seq zero": Request{Op: OpApply, Session: 1}.Append(nil),
	} {
		if _, err := ParseRequest(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, a := range map[string]Answer{"no status": {}, "status": {Status: StatusFull + 1}} {
		if _, err := ParseAnswer(a.Append(nil)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChainTellsOrderAndContent(t *testing.T) {
	seen := map[uint64]bool{}
	for _, h := range []uint64{Chain(0, 1, 7), Chain(0, 2, 7), Chain(0, 1, 8), Chain(Chain(0, 1, 7), 2, 8), Chain(Chain(0, 1, 8), 2, 7)} {
		if seen[h] || h == 0 {
			t.Errorf("hash %#x twice, or zero", h)
		}
		seen[h] = true
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(Request{Op: OpQuery, Session: 9}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ParseRequest(b); err == nil && !bytes.Equal(r.Append(nil), b) {
			t.Errorf("%x became %+v", b, r)
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(Answer{Status: StatusGap, Session: 9}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseAnswer(b); err == nil && !bytes.Equal(a.Append(nil), b) {
			t.Errorf("%x became %+v", b, a)
		}
	})
}
