package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"syscall"
)

// handle reads one request, lets the backend do it and queues the reply. An
// error ends the connection.
func (c *conn) handle() error {
	if err := c.wire.readHead(); err != nil {
		return gone(err)
	}
	r, ok := parseRequest(&c.wire.head)
	if !ok {
		return fmt.Errorf("a request begins with %#x", c.wire.head[:4])
	}
	switch r.kind {
	case cmdRead:
		return c.read(&r)
	case cmdWrite:
		return c.write(&r)
	case cmdDisc:
		// All before it was answered, if not sent.
		_ = c.wire.flush()
		return errGoodbye
	case cmdBlockStatus:
		return c.blockStatus(&r)
	default:
		return c.answer(&r, c.simple(&r))
	}
}

// answer queues the reply of a request without a payload.
func (c *conn) answer(r *request, e errno) error {
	if e != 0 && c.structured {
		return c.answerError(r, e)
	}
	return c.wire.queue(appendSimple(c.wire.out, e, r.cookie))
}

func (c *conn) answerError(r *request, e errno) error {
	b := appendChunk(c.wire.out, chunkError, r.cookie, 6)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return c.wire.queue(binary.BigEndian.AppendUint16(b, 0)) // no message: the log has it
}

// simple performs a request that has no payload in either direction.
func (c *conn) simple(r *request) errno {
	allowed := cmdFlagFUA
	if r.kind == cmdWriteZeroes {
		allowed |= cmdFlagNoHole | cmdFlagFastZero
	}
	if r.flags&^allowed != 0 {
		return nbdEINVAL
	}
	off, n, fua := int64(r.off), int64(r.length), r.flags&cmdFlagFUA != 0
	switch r.kind {
	case cmdFlush:
		if r.off != 0 || r.length != 0 {
			return nbdEINVAL
		}
		return errnoOf(c.call(func(ctx context.Context, b Backend) error { return b.Flush(ctx) }))
	case cmdTrim:
		if !r.fits(c.export.size) {
			return nbdEINVAL
		}
		if n == 0 {
			return 0
		}
		return errnoOf(c.call(func(ctx context.Context, b Backend) error { return b.Trim(ctx, off, n, fua) }))
	case cmdWriteZeroes:
		if !r.fits(c.export.size) {
			return nbdENOSPC
		}
		if n == 0 {
			return 0
		}
		mayTrim := r.flags&cmdFlagNoHole == 0
		err := c.call(func(ctx context.Context, b Backend) error { return b.Zero(ctx, off, n, mayTrim, fua) })
		if r.flags&cmdFlagFastZero != 0 && errors.Is(err, syscall.ENOTSUP) {
			return nbdENOTSUP // the only request that may fail so
		}
		return errnoOf(err)
	default:
		return nbdEINVAL
	}
}

// write reads the payload into a buffer and lends that to the backend.
func (c *conn) write(r *request) error {
	if r.length > RequestBytesMax {
		return fmt.Errorf("a write of %d bytes, at most %d", r.length, RequestBytesMax)
	}
	n := int(r.length)
	e := errno(0)
	switch {
	case r.flags&^cmdFlagFUA != 0:
		e = nbdEINVAL
	case !r.fits(c.export.size):
		e = nbdENOSPC
	}
	if n == 0 {
		return c.answer(r, e)
	}
	b, err := c.wire.readPayload(n)
	if err != nil {
		return gone(err)
	}
	if e != 0 {
		b.free()
		return c.answer(r, e)
	}
	lent := false
	err = c.call(func(ctx context.Context, backend Backend) error {
		lent = true
		return backend.Write(ctx, int64(r.off), b.data[:n:n], b.release, r.flags&cmdFlagFUA != 0)
	})
	if !lent { // the export was removed meanwhile
		b.free()
	}
	return c.answer(r, errnoOf(err))
}

// read answers with data, in one piece.
func (c *conn) read(r *request) error {
	n := int(r.length)
	switch {
	case r.flags&^(cmdFlagFUA|cmdFlagDF) != 0, r.flags&cmdFlagDF != 0 && !c.structured, !r.fits(c.export.size):
		return c.answer(r, nbdEINVAL)
	case r.length > RequestBytesMax && c.structured:
		return c.answer(r, nbdEOVERFLOW)
	case r.length > RequestBytesMax:
		return c.answer(r, nbdEINVAL)
	case n == 0 && c.structured:
		return c.wire.queue(appendChunk(c.wire.out, 0, r.cookie, 0))
	case n == 0:
		return c.answer(r, 0)
	}
	b := c.s.pool.get(n)
	defer b.free()
	err := c.call(func(ctx context.Context, backend Backend) error { return backend.Read(ctx, b.data[:n:n], int64(r.off)) })
	if err != nil {
		return c.answer(r, errnoOf(err))
	}
	var head []byte
	if c.structured {
		head = appendChunk(c.wire.out, chunkOffsetData, r.cookie, uint32(n)+8)
		head = binary.BigEndian.AppendUint64(head, r.off)
	} else {
		head = appendSimple(c.wire.out, 0, r.cookie)
	}
	return c.wire.queueWith(head, b.data[:n])
}

// blockStatus answers with the extents that the backend knows.
func (c *conn) blockStatus(r *request) error {
	if r.flags&^(cmdFlagFUA|cmdFlagReqOne) != 0 || c.statusOf == nil || c.statusOf != c.export || !r.fits(c.export.size) || r.length == 0 {
		return c.answer(r, nbdEINVAL)
	}
	list := extentList{left: int64(r.length), max: extentsMax}
	if r.flags&cmdFlagReqOne != 0 {
		list.max = 1
	}
	err := c.call(func(ctx context.Context, _ Backend) error {
		return c.export.extents.Extents(ctx, int64(r.off), int64(r.length), list.add)
	})
	if err == nil && len(list.all) == 0 {
		err = errors.New("the backend knows nothing about its extents")
	}
	if err != nil {
		return c.answer(r, errnoOf(err))
	}
	be := binary.BigEndian
	payload := 4 + 8*len(list.all)
	b := appendChunk(c.wire.out, chunkStatus, r.cookie, uint32(payload))
	b = be.AppendUint32(b, allocationContextID)
	for _, e := range list.all {
		b = be.AppendUint32(b, e.bytes)
		b = be.AppendUint32(b, e.state)
	}
	return c.wire.queue(b)
}

// extentList collects extents, merged where they are alike.
type extentList struct {
	all  []status
	left int64 // bytes not described yet
	max  int
}

type status struct {
	bytes uint32
	state uint32
}

// add takes the next extent. It returns false when no more are wanted.
func (l *extentList) add(e Extent) bool {
	n := min(e.Bytes, l.left, math.MaxUint32)
	if n <= 0 {
		return false
	}
	var state uint32
	if e.Hole {
		state |= stateHole
	}
	if e.Zero {
		state |= stateZero
	}
	last := len(l.all) - 1
	switch {
	case last >= 0 && l.all[last].state == state:
		l.all[last].bytes += uint32(n) // at most the request's length, which is a uint32
	case len(l.all) == l.max:
		return false
	default:
		l.all = append(l.all, status{bytes: uint32(n), state: state})
	}
	l.left -= n
	return l.left > 0
}
