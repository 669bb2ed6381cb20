package zcstream

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// sets is a ledger that simply knows, for each number, what is lent.
type sets struct {
	ledger
	next    uint32
	current *loan // of the Send that is running
	lent    map[uint32]*loan
	size    map[uint32]uint64
	open    map[*loan]int
}

// TestLedgerAgainstSets lends and gives back in random order, with numbers that
// wrap around.
func TestLedgerAgainstSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := rapid.SampledFrom([]uint32{0, 1, math.MaxUint32, math.MaxUint32 - 7, 1 << 31}).Draw(t, "start")
		s := sets{
			ledger: ledger{base: start}, next: start, current: new(loan),
			lent: map[uint32]*loan{}, size: map[uint32]uint64{}, open: map[*loan]int{},
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				s.call(t)
			case 1: // Send returns
				s.current.over = true
				s.current = new(loan)
			case 2:
				s.giveSome(t)
			case 3:
				s.giveWrong(t)
			}
			total := uint64(0)
			for _, n := range s.size {
				total += n
			}
			if s.bytes != total {
				t.Fatalf("%d bytes lent, want %d", s.bytes, total)
			}
		}
	})
}

// call is a system call that lends, or fails.
func (s *sets) call(t *rapid.T) {
	id := s.lend(s.current)
	if id != s.next {
		t.Fatalf("number %d, want %d", id, s.next)
	}
	bytes := rapid.Uint64Range(0, 9).Draw(t, "bytes")
	if s.took(id, bytes); bytes > 0 {
		s.lent[id], s.size[id] = s.current, bytes
		s.open[s.current]++
		s.next++
	}
}

// giveSome gives back a range that is lent.
func (s *sets) giveSome(t *rapid.T) {
	lo := s.next - uint32(rapid.IntRange(1, 90).Draw(t, "ago"))
	if s.lent[lo] == nil {
		return
	}
	hi := lo
	for s.lent[hi+1] != nil && rapid.Bool().Draw(t, "longer") {
		hi++
	}
	want := map[*loan]bool{}
	for id := lo; id != hi+1; id++ {
		owner := s.lent[id]
		if s.open[owner]--; s.open[owner] == 0 && owner.over {
			want[owner] = true
		}
		delete(s.lent, id)
		delete(s.size, id)
	}
	settled, err := s.giveBack(nil, lo, hi)
	if err != nil {
		t.Fatal(err)
	}
	for _, owner := range settled {
		if !want[owner] {
			t.Fatal("a loan came back early, or twice")
		}
		delete(want, owner)
	}
	if len(want) > 0 {
		t.Fatal("a loan did not come back")
	}
}

// giveWrong gives back a range that is not lent as a whole, which must change
// nothing.
func (s *sets) giveWrong(t *rapid.T) {
	lo := s.next + uint32(rapid.IntRange(-90, 5).Draw(t, "lo"))
	hi := s.next + uint32(rapid.IntRange(-90, 5).Draw(t, "hi"))
	all := true
	for id := lo; all && id != hi+1; id++ {
		all = s.lent[id] != nil
	}
	if all {
		return // a fine one, see giveSome
	}
	if settled, err := s.giveBack(nil, lo, hi); err == nil || len(settled) > 0 {
		t.Fatalf("%d to %d were given back, and are not lent", lo, hi)
	}
}

func TestLedgerReportBeforeReturn(t *testing.T) {
	var l ledger
	lo := &loan{over: false}
	id := l.lend(lo)
	if settled, err := l.giveBack(nil, id, id); err != nil || len(settled) != 0 || lo.open != 0 {
		t.Fatalf("%v, %v, %d open: Send is not over", settled, err, lo.open)
	}
	l.took(id, 4096) // the system call returns only now
	if l.bytes != 0 || l.n != 0 {
		t.Errorf("%d bytes in %d calls lent, want none", l.bytes, l.n)
	}
}

func TestLedgerIsBounded(t *testing.T) {
	l := ledger{base: math.MaxUint32 - 5}
	lo := new(loan)
	for !l.full() {
		l.took(l.lend(lo), 1)
	}
	if l.n != outstandingMax || len(l.slots) > 2*outstandingMax {
		t.Errorf("%d calls in %d slots", l.n, len(l.slots))
	}
	lo.over = true
	settled, err := l.giveBack(nil, l.base, l.base+outstandingMax-1)
	if err != nil || len(settled) != 1 || l.n != 0 || l.bytes != 0 {
		t.Errorf("%d settled, %v, %d calls, %d bytes", len(settled), err, l.n, l.bytes)
	}
	defer func() {
		if recover() == nil {
			t.Error("lending beyond the bound is a bug, and was not noticed")
		}
	}()
	for {
		l.lend(lo)
	}
}
