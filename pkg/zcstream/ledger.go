package zcstream

import "fmt"

// outstandingMax bounds system calls whose memory is still lent. The kernel's
// own bound, option memory, is far below it unless somebody raised that.
const outstandingMax = 4096

// loan is the memory of one Send, or the part of it that was lent.
type loan struct {
	done func(error)
	// bufs keeps the memory from the garbage collector, which does not know that
	// the kernel reads it.
	bufs [][]byte
	open int   // system calls whose memory the kernel still has
	over bool  // Send has returned, with err
	err  error // what done will be told
}

// ledger says which memory belongs to the kernel. The kernel numbers the
// zero-copy system calls of a socket, from 0, and says later, in any order and
// in ranges, which of them it is through with; the numbers are of 32 bits and
// wrap around.
//
//	base                 base+n
//	  │ lent │ returned │ lent │ ...    returned ones wait for those before them
//
// It is not safe for concurrent use: the Sender has a lock.
type ledger struct {
	base  uint32
	slots []slot // a ring; its size is a power of two
	head  int    // index in slots of base
	n     int
	bytes uint64 // lent and not returned
}

type slot struct {
	loan     *loan
	bytes    uint64
	returned bool
}

func (l *ledger) at(i int) *slot { return &l.slots[(l.head+i)&(len(l.slots)-1)] }

// full says that no further system call may lend memory.
func (l *ledger) full() bool { return l.n >= outstandingMax }

// lend notes that the next zero-copy system call is made for lo, and returns its
// number. It comes before the call, because the kernel may be through with the
// memory before the call has returned to us.
func (l *ledger) lend(lo *loan) uint32 {
	if l.full() {
		panic("zcstream: more system calls lend memory than the bound allows")
	}
	if l.n == len(l.slots) {
		grown := make([]slot, max(16, 2*len(l.slots)))
		for i := range l.n {
			grown[i] = *l.at(i)
		}
		l.slots, l.head = grown, 0
	}
	*l.at(l.n) = slot{loan: lo}
	l.n++
	lo.open++
	return l.base + uint32(l.n) - 1
}

// took notes how many bytes the last call lent. 0 means that it failed: its
// number is given to the next one.
func (l *ledger) took(id uint32, bytes uint64) {
	i := int(id - l.base)
	if i < 0 || i >= l.n {
		return // returned already, and those before it too
	}
	s := l.at(i)
	switch {
	case bytes == 0 && !s.returned:
		s.loan.open--
		*s = slot{}
		l.n--
	case !s.returned:
		s.bytes = bytes
		l.bytes += bytes
	}
}

// giveBack notes that the kernel is through with the calls lo to hi, both
// included, and appends to settled the loans that are whole again. A range that
// was not lent is refused as a whole: then somebody else uses this socket, and
// believing the kernel's word would give memory back too early.
func (l *ledger) giveBack(settled []*loan, lo, hi uint32) ([]*loan, error) {
	first, count := uint64(lo-l.base), uint64(hi-lo)+1
	if first+count > uint64(l.n) {
		return settled, fmt.Errorf("the kernel gives back sends %d to %d, lent are %d from %d on", lo, hi, l.n, l.base)
	}
	for i := range int(count) {
		if l.at(int(first) + i).returned {
			return settled, fmt.Errorf("the kernel gives back send %d for the second time", lo+uint32(i))
		}
	}
	for i := range int(count) {
		s := l.at(int(first) + i)
		l.bytes -= s.bytes
		s.returned = true
		if s.loan.open--; s.loan.open == 0 && s.loan.over {
			settled = append(settled, s.loan)
		}
		s.loan, s.bytes = nil, 0
	}
	for l.n > 0 && l.at(0).returned {
		*l.at(0) = slot{}
		l.head = (l.head + 1) & (len(l.slots) - 1)
		l.base++
		l.n--
	}
	return settled, nil
}
