package main

import (
	"fmt"
	"sync"
	"unsafe"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// record is what the guest knows of a session: its last request and what that
// was answered. A page holds one, so that each lies where a lost page loses it.
type record struct {
	session, seq, nonce, serial, hash uint64
	check                             uint64 // of the fields above
}

// sum of the fields. That of a zero record is not zero: a lost page shows.
func (r *record) sum() uint64 {
	h := guestapi.Chain(r.session, r.seq, r.nonce)
	return guestapi.Chain(h, r.serial, r.hash) | 1
}

// ledger holds the state of the acceptance service in two copies that lie apart
// and are compared whenever one is used, and by verify: a page that is torn,
// lost or stale is found out. Slot 0 holds the last serial number given.
//
// Its methods may be called concurrently.
type ledger struct {
	bootID  guestapi.BootID
	damaged func(text string) // called with mu held

	mu      sync.Mutex
	copies  [2][]byte
	slots   map[uint64]int // session -> slot
	checked int            // slot that verify looks at next
	applied func(record)   // told of every request that is applied, with mu held; nil: nobody
}

// tell lets applied hear of all requests from now on. Before any, ready is told
// the last serial that was given.
func (l *ledger) tell(applied func(record), ready func(since uint64)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.applied = applied
	ready(l.load(0).serial)
}

const (
	// ledgerBytes is the size of each copy.
	ledgerBytes = (guestapi.AcceptSessionsMax + 1) * pageBytes
	// recordVerifyPerSec is how often a second a record is compared, and
	// ledgerVerifyPerSec how many are at most.
	recordVerifyPerSec = 5
	ledgerVerifyPerSec = 500
)

// newLedger works on two mappings of ledgerBytes, all zero.
func newLedger(id guestapi.BootID, first, second []byte, damaged func(string)) *ledger {
	l := &ledger{bootID: id, damaged: damaged, copies: [2][]byte{first, second}, slots: map[uint64]int{}}
	l.store(0, record{})
	return l
}

func (l *ledger) at(which, slot int) *record {
	return (*record)(unsafe.Pointer(&l.copies[which][slot*pageBytes]))
}

func (l *ledger) store(slot int, r record) {
	r.check = r.sum()
	*l.at(0, slot), *l.at(1, slot) = r, r
}

// load returns a slot's record. Damage is counted once: both copies then get
// the one that is whole, or the newer one.
func (l *ledger) load(slot int) record {
	a, b := *l.at(0, slot), *l.at(1, slot)
	aWhole, bWhole := a.check == a.sum(), b.check == b.sum()
	if aWhole && bWhole && a == b {
		return a
	}
	l.damaged(fmt.Sprintf("ledger slot %d: %+v (whole: %v) and %+v (whole: %v)", slot, a, aWhole, b, bWhole))
	if !aWhole || bWhole && b.serial > a.serial {
		a = b
	}
	l.store(slot, a)
	return a
}

// verifyPerSec is how many records to compare a second: each a few times.
func (l *ledger) verifyPerSec() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return min(recordVerifyPerSec*int64(1+len(l.slots)), ledgerVerifyPerSec)
}

// verify compares the next slot in use.
func (l *ledger) verify() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.checked++; l.checked > len(l.slots) {
		l.checked = 0
	}
	l.load(l.checked)
}

// serve applies a request, or finds it applied, and returns the answer. All of
// the change is in memory before it returns.
func (l *ledger) serve(r guestapi.Request) guestapi.Answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	slot, known := l.slots[r.Session]
	last := record{session: r.Session}
	if known {
		last = l.load(slot)
	}
	if r.Op == guestapi.OpQuery {
		return l.answer(guestapi.StatusState, last)
	}
	switch {
	case known && r.Seq == last.seq && r.Nonce == last.nonce:
		return l.answer(guestapi.StatusApplied, last)
	case known && r.Seq == last.seq:
		return l.answer(guestapi.StatusConflict, last)
	case r.Seq < last.seq:
		return l.answer(guestapi.StatusOld, last)
	case r.Seq > last.seq+1:
		return l.answer(guestapi.StatusGap, last)
	}
	if !known {
		if len(l.slots) == guestapi.AcceptSessionsMax {
			return l.answer(guestapi.StatusFull, last)
		}
		slot = len(l.slots) + 1
		l.slots[r.Session] = slot
	}
	head := l.load(0)
	head.serial++
	next := record{session: r.Session, seq: r.Seq, nonce: r.Nonce, serial: head.serial, hash: guestapi.Chain(last.hash, r.Seq, r.Nonce)}
	l.store(0, head)
	l.store(slot, next)
	if l.applied != nil {
		l.applied(next)
	}
	return l.answer(guestapi.StatusApplied, next)
}

func (l *ledger) answer(s guestapi.AcceptStatus, r record) guestapi.Answer {
	return guestapi.Answer{Status: s, Session: r.session, Seq: r.seq, Nonce: r.nonce, Serial: r.serial, Hash: r.hash, BootID: l.bootID}
}
