package nbd

import (
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// aheadMax bounds how much of a payload is read before its request is known,
	// and so what has to be copied when the guess was wrong.
	aheadMax = 64 << 10
	// outMax is how much of replies is collected at most.
	outMax = 16 << 10
	// coalesceMax is the largest payload that is read before the replies to
	// earlier requests are sent.
	coalesceMax = 64 << 10
)

// wire moves requests and replies over one connection without copying payloads.
//
// The head of a request and what follows are read by one call, readv, into two
// places: the head, and a buffer for the payload which is as large as the last
// payload was. If the next one has that size too, it is where it belongs. Else
// what was read ahead is copied to where it belongs, at most aheadMax bytes.
//
// Replies are collected while there is something to read, and sent before the
// goroutine waits for more.
type wire struct {
	nc   net.Conn
	raw  syscall.RawConn // nil: no readv for this kind of connection
	pool *pool
	out  []byte // replies not sent yet

	head      [requestBytes]byte // the one read last
	spec      *buffer            // read into ahead of its request; nil: none yet
	ahead     []byte             // the part of spec that is read and not used
	payloadOf int                // length of the last payload: the guess for the next

	// Of the readv under way. A closure made once does not allocate.
	first, second []byte
	once          func(fd uintptr) bool
	n             int
	err           error
}

func (w *wire) init(nc net.Conn, p *pool) {
	w.nc, w.pool = nc, p
	w.payloadOf = 1 << classBitsMin
	w.out = make([]byte, 0, outMax)
	w.once = w.readv
	if sc, ok := nc.(syscall.Conn); ok {
		w.raw, _ = sc.SyscallConn() // fails when closed; then so does reading
	}
}

// close hands back what is held.
func (w *wire) close() {
	if w.spec != nil {
		w.spec.free()
		w.spec, w.ahead = nil, nil
	}
}

// readHead reads the head of the next request into w.head, and perhaps ahead
// what follows it.
func (w *wire) readHead() error {
	head := &w.head
	n := copy(head[:], w.ahead)
	w.ahead = w.ahead[n:]
	if n == requestBytes {
		return nil
	}
	if w.spec == nil {
		w.spec = w.pool.get(w.payloadOf)
	}
	window := w.spec.data[:min(w.payloadOf, aheadMax)] // free: ahead is used up
	for n < requestBytes {
		m, err := w.fill(head[n:], window)
		if err != nil {
			if n > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if n += m; n > requestBytes {
			w.ahead = window[:n-requestBytes]
		}
	}
	return nil
}

// readPayload reads the n bytes that follow a head: 1 to RequestBytesMax.
func (w *wire) readPayload(n int) (*buffer, error) {
	var b *buffer
	have := 0
	if w.spec != nil && w.spec.class == classOf(n) && w.aheadAtStart() && len(w.ahead) <= n {
		b, have = w.spec, len(w.ahead)
		w.spec, w.ahead = nil, nil
	} else {
		b = w.pool.get(n)
		have = copy(b.data[:n], w.ahead)
		w.ahead = w.ahead[have:]
	}
	w.guess(n)
	if n-have > coalesceMax {
		if err := w.flush(); err != nil {
			b.free()
			return nil, err
		}
	}
	if err := w.readFull(b.data[have:n]); err != nil {
		b.free()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // its head was read
		}
		return nil, err
	}
	return b, nil
}

// aheadAtStart tells whether what was read ahead begins where the buffer begins.
func (w *wire) aheadAtStart() bool {
	return len(w.ahead) == 0 || &w.ahead[0] == &w.spec.data[0]
}

// guess prepares for a next payload of n bytes.
func (w *wire) guess(n int) {
	w.payloadOf = n
	if w.spec != nil && len(w.ahead) == 0 && w.spec.class != classOf(n) {
		w.spec.free()
		w.spec, w.ahead = nil, nil
	}
}

// readFull reads exactly what p takes.
func (w *wire) readFull(p []byte) error {
	n := copy(p, w.ahead)
	w.ahead = w.ahead[n:]
	for n < len(p) {
		m, err := w.fill(p[n:], nil)
		if err != nil {
			if n > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		n += m
	}
	return nil
}

// fill reads at least one byte into first, and what comes with it into first
// and then second. Before it waits it sends the collected replies.
func (w *wire) fill(first, second []byte) (int, error) {
	if w.raw == nil {
		if err := w.flush(); err != nil {
			return 0, err
		}
		n, err := w.nc.Read(first)
		if n > 0 {
			err = nil // it comes again
		}
		return n, err
	}
	w.first, w.second, w.n, w.err = first, second, 0, nil
	err := w.raw.Read(w.once)
	w.first, w.second = nil, nil
	switch {
	case err != nil: // closed, or the deadline
		return 0, err
	case w.err != nil:
		return 0, w.err
	case w.n == 0:
		return 0, io.EOF
	}
	return w.n, nil
}

// readv tries to read; false: wait until there is something.
func (w *wire) readv(fd uintptr) bool {
	iov := [2][]byte{w.first, w.second}
	for {
		n, err := unix.Readv(int(fd), iov[:])
		switch err {
		case nil:
			w.n = n
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if w.err = w.flush(); w.err != nil {
				return true
			}
			return false
		default:
			w.err = err
			return true
		}
	}
}

// queue takes the collected replies back after one was appended to out, and
// sends them when they are many.
func (w *wire) queue(out []byte) error {
	w.out = out
	if len(out) >= outMax-requestBytes {
		return w.flush()
	}
	return nil
}

// queueWith is queue for a reply whose head was appended to out and whose data
// is sent from where it is.
func (w *wire) queueWith(out, data []byte) error {
	w.out = out[:0]
	bufs := net.Buffers{out, data}
	_, err := bufs.WriteTo(w.nc)
	return err
}

// send sends b at once.
func (w *wire) send(b []byte) error {
	_, err := w.nc.Write(b)
	return err
}

// flush sends what is collected.
func (w *wire) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	b := w.out
	w.out = w.out[:0]
	return w.send(b)
}
