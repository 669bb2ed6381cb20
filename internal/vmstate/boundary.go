package vmstate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// boundary is a place in a blob that may be the end of a section: a footer,
// followed by the next section's header or by the end of the blob.
type boundary struct {
	pos  int     // of the footer
	ends uint32  // id in the footer
	last bool    // nothing but the end follows
	next Section // else the section that follows; Len unknown

	until int // boundary that ends next, on a way to the end of the blob
	later int // next boundary with the same ends, on a way to the end; -1 if none
}

// boundaries lists all candidates in ascending order. Linear: a name's check
// stops at the first byte that is not printable, and a candidate's mark 0x04 is none.
func boundaries(blob []byte) ([]boundary, error) {
	var bs []boundary
	for p := streamHeader + minHeaderBytes; p+footerBytes < len(blob); p++ {
		i := bytes.IndexByte(blob[p:len(blob)-footerBytes], markFooter)
		if i < 0 {
			break
		}
		p += i
		b := boundary{pos: p, ends: binary.BigEndian.Uint32(blob[p+1:]), until: -1, later: -1}
		var ok bool
		if b.last = endsAt(blob, p+footerBytes); !b.last {
			if b.next, ok = headerAt(blob, p+footerBytes); !ok {
				continue
			}
		}
		if len(bs) == maxBoundaries {
			return nil, &FormatError{int64(p), "section footer", fmt.Errorf("more than %d candidates: %w", maxBoundaries, ErrBounds)}
		}
		bs = append(bs, b)
	}
	return bs, nil
}

// endsAt says whether the end mark at p, and a description if there is one, are all that is left.
func endsAt(blob []byte, p int) bool {
	b := blob[p:]
	if b[0] != markEOF {
		return false
	}
	if len(b) == 1 {
		return true
	}
	const head = 1 + 1 + 4
	return len(b) >= head && b[1] == markVMDesc && uint64(binary.BigEndian.Uint32(b[2:])) == uint64(len(b)-head)
}

// linkBoundaries finds, from the back, the boundaries from which the end can be
// reached, and returns for each section id the first of them that ends it.
func linkBoundaries(bs []boundary) map[uint32]int {
	open := make(map[uint32]int, 64)
	for i := len(bs) - 1; i >= 0; i-- {
		b := &bs[i]
		if !b.last {
			if b.until = nearest(bs, open, b.next); b.until < 0 {
				continue
			}
		}
		if j, ok := open[b.ends]; ok {
			b.later = j
		}
		open[b.ends] = i
	}
	return open
}

// nearest returns the first boundary that ends s behind its header, or -1. The
// loop skips what lies within the header itself, of at most 269 bytes.
func nearest(bs []boundary, open map[uint32]int, s Section) int {
	i, ok := open[s.ID]
	if !ok {
		return -1
	}
	for i >= 0 && bs[i].pos < s.Offset {
		i = bs[i].later
	}
	return i
}

// lostAt explains why no way leads to the end: it goes forward as far as
// sections can be followed and names the one whose end is missing.
func lostAt(blob []byte, bs []boundary, s Section) error {
	steps := 0
	for i := range bs {
		if bs[i].last || bs[i].ends != s.ID || bs[i].pos < s.Offset {
			continue
		}
		s = bs[i].next
		steps++
	}
	err := error(ErrIncomplete)
	if n := len(bs); n > 0 && bs[n-1].last {
		err = errors.New("no footer leads to the end")
	}
	return &FormatError{int64(s.Offset), fmt.Sprintf("footer of section %d %q", steps, s.Name), err}
}
