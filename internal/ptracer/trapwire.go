package ptracer

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// trapOrder is what a tracer is told: one packet.
//
//	0      1       4          8      16      24
//	| kind | zeros | data len | seq  | arg1  | data, TrapDataMax |
//	                 and flags in the byte after kind
type trapOrder struct {
	kind   byte
	flags  byte
	seq    uint64 // of the arming; from 1
	arg1   uint64
	data   [TrapDataMax]byte
	length int // of data
}

const (
	orderArm  byte = 1
	orderLook byte = 2 // attach, stop, detach: may we?

	flagNotBelow   byte = 1
	flagWantResult byte = 2

	trapOrderBytes = 24 + TrapDataMax
)

func (o *trapOrder) put(b []byte) {
	clear(b[:8])
	b[0], b[1] = o.kind, o.flags
	binary.LittleEndian.PutUint32(b[4:], uint32(o.length))
	binary.LittleEndian.PutUint64(b[8:], o.seq)
	binary.LittleEndian.PutUint64(b[16:], o.arg1)
	copy(b[24:], o.data[:])
}

func (o *trapOrder) parse(b []byte) bool {
	if len(b) != trapOrderBytes {
		return false
	}
	o.kind, o.flags = b[0], b[1]
	length := binary.LittleEndian.Uint32(b[4:])
	o.seq = binary.LittleEndian.Uint64(b[8:])
	o.arg1 = binary.LittleEndian.Uint64(b[16:])
	copy(o.data[:], b[24:])
	o.length = int(length)
	return length <= TrapDataMax && (o.kind == orderArm || o.kind == orderLook)
}

// set makes o the order for a change that was validated.
func (o *trapOrder) set(seq uint64, ch Change) {
	o.kind, o.flags, o.seq, o.arg1 = orderArm, 0, seq, ch.Arg1
	o.length = copy(o.data[:], ch.Data)
	if ch.NotBelow {
		o.flags |= flagNotBelow
	}
	if ch.WantResult {
		o.flags |= flagWantResult
	}
}

// trapReply is what a tracer says: one packet.
//
//	0      1       2       4       8     16    24         32
//	| kind | flags | zeros | stops | seq | ret | attached | before, after: TrapDataMax each |
//	                                                      | or a failure: a report as JSON  |
type trapReply struct {
	kind     byte
	flags    byte
	stops    uint32
	seq      uint64
	ret      int64
	attached time.Duration
	before   [TrapDataMax]byte
	after    [TrapDataMax]byte
	failure  report // replyFailed
}

const (
	replyReady  byte = 1
	replyArmed  byte = 2
	replyDone   byte = 3 // detached; what was seen
	replyFailed byte = 4 // detached; why

	flagCaught  byte = 1
	flagChanged byte = 2
	flagResult  byte = 4

	trapReplyHead  = 32
	trapReplyBytes = trapReplyHead + 2*TrapDataMax
)

func (r *trapReply) put(b []byte) {
	clear(b[:trapReplyHead])
	b[0], b[1] = r.kind, r.flags
	binary.LittleEndian.PutUint32(b[4:], r.stops)
	binary.LittleEndian.PutUint64(b[8:], r.seq)
	binary.LittleEndian.PutUint64(b[16:], uint64(r.ret))
	binary.LittleEndian.PutUint64(b[24:], uint64(r.attached))
	copy(b[trapReplyHead:], r.before[:])
	copy(b[trapReplyHead+TrapDataMax:], r.after[:])
	if r.kind == replyFailed {
		r.failure.Detail = r.failure.Detail[:min(len(r.failure.Detail), TrapDataMax/2)]
		text, _ := json.Marshal(r.failure) // strings and integers
		clear(b[trapReplyHead+copy(b[trapReplyHead:], text):])
	}
}

func (r *trapReply) parse(b []byte) error {
	if len(b) != trapReplyBytes {
		return fmt.Errorf("a tracer's packet of %d bytes", len(b))
	}
	r.kind, r.flags = b[0], b[1]
	r.stops = binary.LittleEndian.Uint32(b[4:])
	r.seq = binary.LittleEndian.Uint64(b[8:])
	r.ret = int64(binary.LittleEndian.Uint64(b[16:]))
	r.attached = time.Duration(binary.LittleEndian.Uint64(b[24:]))
	copy(r.before[:], b[trapReplyHead:])
	copy(r.after[:], b[trapReplyHead+TrapDataMax:])
	switch r.kind {
	case replyReady, replyArmed, replyDone:
		return nil
	case replyFailed:
		text := b[trapReplyHead:]
		for len(text) > 0 && text[len(text)-1] == 0 {
			text = text[:len(text)-1]
		}
		r.failure = report{}
		return json.Unmarshal(text, &r.failure)
	}
	return fmt.Errorf("a tracer's packet of kind %d", r.kind)
}

// caught is the reply as the caller gets it, for a struct of n bytes.
func (r *trapReply) caught(n int) Caught {
	c := Caught{Changed: r.flags&flagChanged != 0, Attached: r.attached, Stops: int(r.stops)}
	if r.flags&flagCaught != 0 {
		c.Before = append([]byte(nil), r.before[:n]...)
	}
	if r.flags&flagResult != 0 {
		c.Ret, c.After = r.ret, append([]byte(nil), r.after[:n]...)
	}
	return c
}

// tracerArgs is the command line of a tracer; parseTracerArgs is its inverse.
func tracerArgs(pid int, c Catch, bound time.Duration) []string {
	args := make([]string, 0, 6)
	for _, v := range []uint64{uint64(pid), c.Nr, c.Arg0, c.Arg1, uint64(c.DataBytes), uint64(bound)} {
		args = append(args, strconv.FormatUint(v, 10))
	}
	return args
}

func parseTracerArgs(args []string) (pid int, c Catch, bound time.Duration, err error) {
	if len(args) != 6 {
		return 0, c, 0, fmt.Errorf("%d arguments, want 6", len(args))
	}
	var v [6]uint64
	for i, a := range args {
		if v[i], err = strconv.ParseUint(a, 10, 64); err != nil {
			return 0, c, 0, err
		}
	}
	pid, bound = int(v[0]), time.Duration(v[5])
	c = Catch{Nr: v[1], Arg0: v[2], Arg1: v[3], DataBytes: int(v[4])}
	if pid <= 0 || bound < trapBoundMin {
		return 0, c, 0, errors.New("no process, or no bound")
	}
	return pid, c, bound, c.validate()
}
