package main

import (
	"testing"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// testLedger counts the damage it finds.
func testLedger() (*ledger, *int) {
	found := new(int)
	return newLedger(guestapi.BootID{1}, make([]byte, ledgerBytes), make([]byte, ledgerBytes), func(string) { *found++ }), found
}

func TestLedgerAppliesOnce(t *testing.T) {
	l, found := testLedger()
	apply := func(session, seq, nonce uint64) guestapi.Answer {
		return l.serve(guestapi.Request{Op: guestapi.OpApply, Session: session, Seq: seq, Nonce: nonce})
	}
	one := apply(7, 1, 100)
	if one.Status != guestapi.StatusApplied || one.Serial != 1 || one.Hash != guestapi.Chain(0, 1, 100) || one.BootID != l.bootID {
		t.Fatalf("first: %+v", one)
	}
	other := apply(8, 1, 5)
	if again := apply(7, 1, 100); again != one || other.Serial != 2 {
		t.Fatalf("a resend got %+v, the first time it was %+v; another session got %+v", again, one, other)
	}
	two := apply(7, 2, 101)
	if two.Serial != 3 || two.Hash != guestapi.Chain(one.Hash, 2, 101) {
		t.Fatalf("second: %+v", two)
	}
	for want, got := range map[guestapi.AcceptStatus]guestapi.Answer{
		guestapi.StatusOld: apply(7, 1, 100), guestapi.StatusConflict: apply(7, 2, 999), guestapi.StatusGap: apply(7, 4, 1),
	} {
		if got.Status != want || got.Seq != 2 || got.Serial != 3 {
			t.Errorf("want %v with the state, got %+v", want, got)
		}
	}
	state := l.serve(guestapi.Request{Op: guestapi.OpQuery, Session: 7})
	if two.Status = guestapi.StatusState; state != two {
		t.Errorf("state %+v, want %+v", state, two)
	}
	if nobody := l.serve(guestapi.Request{Op: guestapi.OpQuery, Session: 99}); nobody.Seq != 0 || nobody.Status != guestapi.StatusState {
		t.Errorf("an unknown session: %+v", nobody)
	}
	if gap := apply(99, 2, 1); gap.Status != guestapi.StatusGap || len(l.slots) != 2 {
		t.Errorf("an unknown session begins with 2: %+v", gap)
	}
	if *found != 0 {
		t.Errorf("%d damages of an intact ledger", *found)
	}
}

func TestLedgerIsBounded(t *testing.T) {
	l, _ := testLedger()
	for i := range uint64(guestapi.AcceptSessionsMax) {
		if a := l.serve(guestapi.Request{Op: guestapi.OpApply, Session: i + 1, Seq: 1}); a.Status != guestapi.StatusApplied {
			t.Fatalf("session %d: %+v", i+1, a)
		}
	}
	if a := l.serve(guestapi.Request{Op: guestapi.OpApply, Session: 1 << 40, Seq: 1}); a.Status != guestapi.StatusFull {
		t.Errorf("one too many: %+v", a)
	}
}

func TestLedgerFindsDamageOnce(t *testing.T) {
	for name, harm := range map[string]func(l *ledger, old []byte){
		"stale page": func(l *ledger, old []byte) { copy(l.copies[0][pageBytes:], old) },
		"lost page":  func(l *ledger, old []byte) { clear(l.copies[1][pageBytes : 2*pageBytes]) },
		"torn page":  func(l *ledger, old []byte) { copy(l.copies[1][pageBytes:pageBytes+24], old) },
		"lost head":  func(l *ledger, old []byte) { clear(l.copies[0][:pageBytes]) },
	} {
		l, found := testLedger()
		l.serve(guestapi.Request{Op: guestapi.OpApply, Session: 3, Seq: 1, Nonce: 1})
		old := append([]byte(nil), l.copies[0][pageBytes:2*pageBytes]...)
		l.serve(guestapi.Request{Op: guestapi.OpApply, Session: 3, Seq: 2, Nonce: 2})
		harm(l, old)
		for range 4 {
			l.verify()
		}
		if *found != 1 {
			t.Errorf("%s: found %d times", name, *found)
		}
		if a := l.serve(guestapi.Request{Op: guestapi.OpQuery, Session: 3}); a.Seq != 2 || a.Serial != 2 {
			t.Errorf("%s: state afterwards %+v", name, a)
		}
	}
}
