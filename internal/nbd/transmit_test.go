package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestRequests: each request, what the backend is asked and what the client is
// answered.
func TestRequests(t *testing.T) {
	const size = 64<<10 + 100
	m := newMemory(t, size)
	s := serve(t, Options{}, map[string]Backend{"vda": m})
	simple, structured := s.dial(t).choose("vda", false), s.dial(t).choose("vda", true)
	for _, test := range []struct {
		name  string
		r     request
		want  errno
		asked string
	}{
		{"write", request{kind: cmdWrite, off: 4096, length: 8192}, 0, "write 4096 8192 false"},
		{"write fua", request{kind: cmdWrite, flags: cmdFlagFUA, off: 1, length: 1}, 0, "write 1 1 true"},
		{"write the tail", request{kind: cmdWrite, off: size - 99, length: 99}, 0, "write 65537 99 false"},
		{"write past the end", request{kind: cmdWrite, off: size - 99, length: 100}, nbdENOSPC, ""},
		{"write behind the end", request{kind: cmdWrite, off: 1 << 63, length: 100}, nbdENOSPC, ""},
		{"write at the edge of 64 bits", request{kind: cmdWrite, off: 1<<64 - 1, length: 1}, nbdENOSPC, ""},
		{"write more than there is", request{kind: cmdWrite, length: RequestBytesMax}, nbdENOSPC, ""},
		{"write nothing", request{kind: cmdWrite, off: size}, 0, ""},
		{"write with a flag", request{kind: cmdWrite, flags: cmdFlagNoHole, length: 10}, nbdEINVAL, ""},
		{"write with an unknown flag", request{kind: cmdWrite, flags: 1 << 9, length: 10}, nbdEINVAL, ""},
		{"read past the end", request{kind: cmdRead, off: 1, length: size}, nbdEINVAL, ""},
		{"read far behind the end", request{kind: cmdRead, off: 1<<64 - 1, length: 1}, nbdEINVAL, ""},
		{"read with a flag", request{kind: cmdRead, flags: cmdFlagReqOne, length: 1}, nbdEINVAL, ""},
		{"flush", request{kind: cmdFlush}, 0, "flush 0 0"},
		{"flush fua", request{kind: cmdFlush, flags: cmdFlagFUA}, 0, "flush 0 0"},
		{"flush of a range", request{kind: cmdFlush, length: 1}, nbdEINVAL, ""},
		{"trim", request{kind: cmdTrim, off: 10, length: 20}, 0, "trim 10 20 false"},
		{"trim fua", request{kind: cmdTrim, flags: cmdFlagFUA, length: size}, 0, "trim 0 65636 true"},
		{"trim past the end", request{kind: cmdTrim, length: 1<<32 - 1}, nbdEINVAL, ""},
		{"trim nothing", request{kind: cmdTrim}, 0, ""},
		{"zero", request{kind: cmdWriteZeroes, off: 1, length: 2}, 0, "zero 1 2 true false"},
		{"zero, no hole", request{kind: cmdWriteZeroes, flags: cmdFlagNoHole | cmdFlagFUA, length: 2}, 0, "zero 0 2 false true"},
		{"zero, fast", request{kind: cmdWriteZeroes, flags: cmdFlagFastZero, length: 2}, 0, "zero 0 2 true false"},
		{"zero past the end", request{kind: cmdWriteZeroes, length: size + 1}, nbdENOSPC, ""},
		{"zero nothing", request{kind: cmdWriteZeroes}, 0, ""},
		{"zero with a flag", request{kind: cmdWriteZeroes, flags: cmdFlagDF, length: 1}, nbdEINVAL, ""},
		{"status without asking for it", request{kind: cmdBlockStatus, length: 512}, nbdEINVAL, ""},
		{"cache", request{kind: 5, length: 512}, nbdEINVAL, ""},
		{"resize", request{kind: 8, length: 512}, nbdEINVAL, ""},
		{"unknown", request{kind: 4711}, nbdEINVAL, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var payload []byte
			if test.r.kind == cmdWrite {
				payload = bytes.Repeat([]byte{0xa5}, int(test.r.length))
			}
			test.r.cookie = 0x1122334455667788
			for _, c := range []*client{simple, structured} {
				c.t = t
				c.put(requestHead(test.r), payload)
				if c == structured && test.want != 0 {
					kind, data := c.chunk(test.r.cookie)
					if want := append(u32(uint32(test.want)), 0, 0); kind != chunkError || !bytes.Equal(data, want) {
						t.Errorf("chunk %#x %x", kind, data)
					}
				} else {
					c.wantSimple(test.r.cookie, test.want)
				}
				if got := strings.TrimSpace(strings.Join(m.asked(), "")); got != test.asked {
					t.Errorf("the backend was asked %q, want %q", got, test.asked)
				}
			}
		})
	}
}

func TestReads(t *testing.T) {
	m := newMemory(t, RequestBytesMax+4096)
	for i := range m.data {
		m.data[i] = byte(i * i >> 8)
	}
	s := serve(t, Options{}, map[string]Backend{"vda": m})
	simple, structured := s.dial(t).choose("vda", false), s.dial(t).choose("vda", true)
	for _, r := range []request{{length: 1}, {off: 4095, length: 4098}, {off: 77, length: 1 << 20}, {off: 4096, length: RequestBytesMax}, {off: 9}} {
		r.kind, r.cookie = cmdRead, r.off
		want := m.data[r.off : r.off+uint64(r.length)]
		simple.put(requestHead(r))
		simple.wantSimple(r.cookie, 0)
		if !bytes.Equal(simple.take(len(want)), want) {
			t.Errorf("%d bytes at %d differ", r.length, r.off)
		}
		structured.put(requestHead(r))
		kind, data := structured.chunk(r.cookie)
		if r.length == 0 {
			if kind != 0 || len(data) != 0 {
				t.Errorf("nothing was read as chunk %d, %x", kind, data)
			}
			continue
		}
		if kind != chunkOffsetData || !bytes.Equal(data, append(u64(r.off), want...)) {
			t.Errorf("chunk %d for %d bytes at %d", kind, r.length, r.off)
		}
	}
	for c, want := range map[*client]errno{simple: nbdEINVAL, structured: nbdEOVERFLOW} {
		c.put(requestHead(request{kind: cmdRead, length: RequestBytesMax + 1, cookie: 5}))
		if c == simple {
			c.wantSimple(5, want)
		} else if kind, data := c.chunk(5); kind != chunkError || !bytes.Equal(data[:4], u32(uint32(want))) {
			t.Errorf("chunk %#x %x", kind, data)
		}
	}
}

// TestErrnos: which errors a client is told.
func TestErrnos(t *testing.T) {
	m := newMemory(t, 4096)
	s := serve(t, Options{}, map[string]Backend{"vda": m})
	c := s.dial(t).choose("vda", false)
	for _, test := range []struct {
		err  error
		want errno
	}{
		{errors.New("something"), nbdEIO},
		{io.ErrUnexpectedEOF, nbdEIO},
		{syscall.ENOENT, nbdEIO},
		{fmt.Errorf("journal: %w", syscall.ENOSPC), nbdENOSPC},
		{syscall.EDQUOT, nbdENOSPC},
		{syscall.EFBIG, nbdENOSPC},
		{syscall.EROFS, nbdEPERM},
		{syscall.EPERM, nbdEPERM},
		{syscall.EINVAL, nbdEINVAL},
		{syscall.ENOMEM, nbdENOMEM},
		{syscall.ESHUTDOWN, nbdESHUTDOWN},
		{syscall.ENOTSUP, nbdEIO}, // a client may only be told so about fast zeroes
	} {
		for method, kind := range map[string]uint16{"write": cmdWrite, "zero": cmdWriteZeroes, "trim": cmdTrim, "read": cmdRead, "flush": cmdFlush} {
			m.mu.Lock()
			m.fail = map[string]error{method: test.err}
			m.mu.Unlock()
			r := request{kind: kind, length: 512}
			switch kind {
			case cmdFlush:
				c.put(requestHead(request{kind: kind}))
			case cmdWrite:
				c.put(requestHead(r), make([]byte, 512))
			default:
				c.put(requestHead(r))
			}
			c.wantSimple(0, test.want)
			if kind == cmdWriteZeroes && test.err == syscall.ENOTSUP {
				r.flags = cmdFlagFastZero
				c.put(requestHead(r))
				c.wantSimple(0, nbdENOTSUP)
			}
		}
	}
}

func TestBlockStatus(t *testing.T) {
	m := newMemory(t, 10*memoryBlock+100)
	m.mark(2*memoryBlock, 3*memoryBlock, true)
	s := serve(t, Options{}, map[string]Backend{"vda": m, "plain": blind{m}})
	c := s.dial(t).greet()
	c.option(optStructuredReply, nil)
	c.wantReply(optStructuredReply, repAck)
	c.option(optSetMeta, metaData("vda", allocationContext))
	c.wantReply(optSetMeta, repMeta)
	c.wantReply(optSetMeta, repAck)
	c.option(optGo, goData("vda"))
	for c.reply(optGo) != repAck {
	}
	const hole = stateHole | stateZero
	for _, test := range []struct {
		r    request
		want []uint32
	}{
		{request{length: 10*memoryBlock + 100}, []uint32{2 * memoryBlock, hole, 3 * memoryBlock, 0, 5*memoryBlock + 100, hole}},
		{request{off: memoryBlock + 1, length: 2 * memoryBlock}, []uint32{memoryBlock - 1, hole, memoryBlock + 1, 0}},
		{request{off: 10, length: 9 * memoryBlock, flags: cmdFlagReqOne}, []uint32{2*memoryBlock - 10, hole}},
		{request{off: 10, length: 100, flags: cmdFlagReqOne}, []uint32{100, hole}},
	} {
		test.r.kind = cmdBlockStatus
		c.put(requestHead(test.r))
		kind, data := c.chunk(0)
		want := u32(allocationContextID)
		for _, v := range test.want {
			want = append(want, u32(v)...)
		}
		if kind != chunkStatus || !bytes.Equal(data, want) {
			t.Errorf("%+v: chunk %d %x, want %x", test.r, kind, data, want)
		}
	}
	for _, r := range []request{{length: 0}, {length: 11 * memoryBlock}, {length: 1, flags: cmdFlagDF}} {
		r.kind = cmdBlockStatus
		c.put(requestHead(r))
		if kind, data := c.chunk(0); kind != chunkError || !bytes.Equal(data[:4], u32(uint32(nbdEINVAL))) {
			t.Errorf("%+v: chunk %#x %x", r, kind, data)
		}
	}
}

// TestTransmissionMisuse: what ends a connection, and what Closed says of it.
func TestTransmissionMisuse(t *testing.T) {
	s := serve(t, Options{}, map[string]Backend{"vda": newMemory(t, 1<<20)})
	for _, test := range []struct {
		name, want string
		send       []byte
	}{
		{"bad magic", "begins with", make([]byte, requestBytes)},
		{"huge write", "at most", requestHead(request{kind: cmdWrite, length: RequestBytesMax + 1})},
		{"cut head", "unexpected EOF", requestHead(request{kind: cmdWrite, length: 8})[:27]},
		{"cut payload", "unexpected EOF", append(requestHead(request{kind: cmdWrite, length: 8192}), 1, 2, 3)},
		{"no goodbye", "EOF", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := s.dial(t).choose("vda", false)
			c.put(test.send)
			c.nc.(interface{ CloseWrite() error }).CloseWrite()
			c.wantClosed()
			if err := <-s.closed; err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "vda") {
				t.Errorf("closed with %v", err)
			}
		})
	}
}

// TestPipelining: requests of all sizes, cut at random places, sent without
// waiting. The backend sees them in order and whole; replies come in order.
func TestPipelining(t *testing.T) {
	const size = 8 << 20
	for seed := range uint64(4) {
		m := newMemory(t, size)
		s := serve(t, Options{}, map[string]Backend{"vda": m})
		c := s.dial(t).choose("vda", false)
		rnd, noise := rand.New(rand.NewPCG(seed, 1)), rand.NewChaCha8([32]byte{byte(seed)})
		model := make([]byte, size)
		var stream []byte
		const requests = 150
		for i := range requests {
			n := []int{1, 511, 512, 4096, 4097, 64 << 10, 100_000, 1 << 20}[rnd.IntN(8)]
			r := request{kind: cmdWrite, cookie: uint64(i), off: uint64(rnd.IntN(size - n + 1)), length: uint32(n)}
			if rnd.IntN(4) == 0 {
				r.kind = cmdWriteZeroes
				clear(model[r.off:][:n])
				stream = append(stream, requestHead(r)...)
				continue
			}
			stream = append(stream, requestHead(r)...)
			_, _ = noise.Read(model[r.off:][:n]) // never fails
			stream = append(stream, model[r.off:][:n]...)
		}
		sent := make(chan error, 1)
		go func() {
			var err error
			for len(stream) > 0 && err == nil {
				n := min(len(stream), []int{1, 27, 28, 29, 4124, 8248, 200_000, 1 << 20}[rnd.IntN(8)])
				_, err = c.nc.Write(stream[:n])
				stream = stream[n:]
			}
			sent <- err
		}()
		for i := range uint64(requests) {
			c.wantSimple(i, 0)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		s.Close()
		if !bytes.Equal(m.data, model) {
			t.Errorf("seed %d: the disk is not what was written", seed)
		}
	}
}

// blocking is a backend whose writes wait until they are let go, or their
// connection ends.
type blocking struct {
	*memory
	entered, letGo chan struct{}
}

func (b *blocking) Write(ctx context.Context, off int64, data []byte, release func(), fua bool) error {
	b.entered <- struct{}{}
	select {
	case <-b.letGo:
		return b.memory.Write(ctx, off, data, release, fua)
	case <-ctx.Done():
		release()
		return context.Cause(ctx)
	}
}

// TestEndings: a connection with a request under way, ended from each side.
func TestEndings(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*served)
		want error
	}{
		{"drop", func(s *served) { s.Drop() }, ErrDropped},
		{"remove", func(s *served) { s.Remove("vda") }, ErrRemoved},
		{"close", func(s *served) { s.Close() }, ErrClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := &blocking{newMemory(t, 4096), make(chan struct{}), make(chan struct{})}
			s := serve(t, Options{}, map[string]Backend{"vda": b})
			c, idle := s.dial(t).choose("vda", false), s.dial(t).choose("vda", false)
			c.put(requestHead(request{kind: cmdWrite, length: 512}), make([]byte, 512))
			<-b.entered
			test.end(s)
			for range 2 {
				if err := <-s.closed; !errors.Is(err, test.want) {
					t.Errorf("closed with %v, want %v", err, test.want)
				}
			}
			c.wantClosed()
			idle.wantClosed()
			if slices.ContainsFunc(b.asked(), func(c string) bool { return true }) {
				t.Error("the disk was written")
			}
			if test.want != ErrDropped {
				return
			}
			again := s.dial(t).choose("vda", false) // new ones are welcome
			again.put(requestHead(request{kind: cmdWrite, length: 512}), make([]byte, 512))
			<-b.entered
			b.letGo <- struct{}{}
			again.wantSimple(0, 0)
		})
	}
}

// TestRemoveFromClosed: the way a daemon lets nobody come back.
func TestRemoveFromClosed(t *testing.T) {
	server, removed := make(chan *served, 1), make(chan struct{})
	s := serve(t, Options{Closed: func(export string, _ error) {
		(<-server).Remove(export)
		close(removed)
	}}, map[string]Backend{"vda": newMemory(t, 4096)})
	server <- s
	c := s.dial(t).choose("vda", false)
	c.put(requestHead(request{kind: cmdDisc}))
	<-removed
	c = s.dial(t).greet()
	c.option(optGo, goData("vda"))
	c.wantReply(optGo, repErrUnknown)
}

func TestConnsMax(t *testing.T) {
	s := serve(t, Options{ConnsMax: 2}, map[string]Backend{"vda": newMemory(t, 4096)})
	a, b := s.dial(t).choose("vda", false), s.dial(t).choose("vda", false)
	if got := s.dial(t).wantClosed(); len(got) != 0 {
		t.Errorf("a third connection was told %q", got)
	}
	for _, c := range []*client{a, b} {
		c.put(requestHead(request{kind: cmdFlush}))
		c.wantSimple(0, 0)
	}
}

// TestReleaseTwice: a buffer with two owners would be silent corruption.
func TestReleaseTwice(t *testing.T) {
	b := new(pool).get(100)
	b.release()
	defer func() {
		if recover() == nil {
			t.Error("a second release was taken")
		}
	}()
	b.release()
}

func TestPoolClasses(t *testing.T) {
	var p pool
	for _, n := range []int{1, 4096, 4097, 8192, 1<<20 - 1, 1 << 20, 1<<20 + 1, RequestBytesMax} {
		if got := len(p.get(n).data); got < n || got > max(4096, 2*n) {
			t.Errorf("%d bytes for %d", got, n)
		}
	}
}
