package zcstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// tcpPair returns two ends of a TCP connection over loopback.
func tcpPair(tb testing.TB) (a, b net.Conn) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// unixPair returns two ends of a Unix stream connection.
func unixPair(tb testing.TB) (a, b net.Conn) {
	tb.Helper()
	ln, err := net.Listen("unix", filepath.Join(tb.TempDir(), "s"))
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("unix", ln.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// readSomehow fills p whole, or in pieces, some of them empty.
func readSomehow(ctx context.Context, rnd *rand.Rand, r *Receiver, p []byte) error {
	if rnd.IntN(2) == 0 {
		_, err := r.ReadFull(ctx, p)
		return err
	}
	var bufs [][]byte
	most := rnd.IntN(200) + 1 // so that some vectors are longer than IOV_MAX
	for rest := p; len(rest) > 0; {
		n := min(rnd.IntN(most), len(rest))
		bufs, rest = append(bufs, rest[:n]), rest[n:]
	}
	n, err := r.ReadVec(ctx, bufs)
	if err == nil && n != len(p) {
		return fmt.Errorf("ReadVec filled %d of %d bytes, and no error", n, len(p))
	}
	return err
}

// randomMessages returns 50 messages in many pieces, and all their bytes.
func randomMessages(rnd *rand.Rand) (msgs [][][]byte, all []byte) {
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for i := range 50 {
		var bufs [][]byte
		pieces, most := rnd.IntN(3000)+1, 200 // more than IOV_MAX now and then
		if i%2 == 0 {
			pieces, most = rnd.IntN(100)+1, 8000 // so many bytes each are worth lending
		}
		for range pieces {
			from := rnd.IntN(len(noise))
			buf := noise[from:min(len(noise), from+rnd.IntN(most))]
			bufs, all = append(bufs, buf), append(all, buf...)
		}
		msgs = append(msgs, bufs)
	}
	return msgs, all
}

func TestBytesArriveInOrder(t *testing.T) {
	pipe := func(testing.TB) (net.Conn, net.Conn) { return net.Pipe() }
	for name, c := range map[string]struct {
		pair func(testing.TB) (net.Conn, net.Conn)
		opts Options
	}{
		"automatic": {tcpPair, Options{}},
		"plain":     {tcpPair, Options{ZeroCopy: ModeOff}},
		"lent":      {tcpPair, Options{ZeroCopy: ModeForce, MinZeroCopyBytes: 1, LingerMax: time.Hour}},
		"unix":      {unixPair, Options{ZeroCopy: ModeForce}},
		"coalesced": {pipe, Options{ZeroCopy: ModeForce}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := c.pair(t)
			s, r := NewSenderOptions(a, c.opts), NewReceiver(b)
			defer s.Close()
			defer r.Close()
			rnd := rand.New(rand.NewPCG(1, 2))
			msgs, want := randomMessages(rnd)
			var calls atomic.Int64
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for _, bufs := range msgs {
					if err := s.Send(t.Context(), func(error) { calls.Add(1) }, bufs...); err != nil {
						t.Errorf("Send: %v", err)
					}
				}
				s.Close()
				if err := s.Drain(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			got := make([]byte, len(want))
			for off := 0; off < len(got); {
				n := min(rnd.IntN(100_000), len(got)-off)
				if err := readSomehow(t.Context(), rnd, r, got[off:off+n]); err != nil {
					t.Fatalf("at %d: %v", off, err)
				}
				off += n
			}
			if !bytes.Equal(got, want) {
				t.Error("bytes differ")
			}
			if _, err := r.ReadFull(t.Context(), make([]byte, 1)); err != io.EOF {
				t.Errorf("after the end: %v, want io.EOF", err)
			}
			<-sent
			if calls.Load() != 50 {
				t.Errorf("done ran %d times, want 50", calls.Load())
			}
		})
	}
}

func TestConcurrentSendsStayWhole(t *testing.T) {
	a, b := tcpPair(t)
	s, r := NewSender(a), NewReceiver(b)
	const senders, each, size = 8, 50, 3000
	var wg sync.WaitGroup
	for id := range senders {
		wg.Go(func() {
			half := bytes.Repeat([]byte{byte(id)}, size/2)
			for range each {
				if err := s.Send(t.Context(), nil, half, half); err != nil {
					t.Errorf("Send: %v", err)
				}
			}
		})
	}
	msg := make([]byte, size)
	for range senders * each {
		if _, err := r.ReadFull(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(msg, msg[:1]) != size {
			t.Fatal("two messages were mixed")
		}
	}
	wg.Wait()
}

func TestCloseInterrupts(t *testing.T) {
	a, b := tcpPair(t)
	s, r := NewSender(a), NewReceiver(b)
	sent, read := make(chan error, 1), make(chan error, 1)
	go func() {
		big := make([]byte, 1<<20)
		for { // until the peer's buffers are full and Send blocks, or Close came
			fromDone := make(chan error, 2)
			err := s.Send(t.Context(), func(e error) { fromDone <- e }, big)
			if err != nil { // else done may take until somebody reads
				if got := <-fromDone; got != err {
					t.Errorf("done got %v, Send returned %v", got, err)
				}
			}
			if err != nil {
				sent <- err
				return
			}
		}
	}()
	s2r := NewReceiver(a)
	go func() {
		_, err := s2r.ReadFull(t.Context(), make([]byte, 1)) // b never writes
		read <- err
	}()
	s.Close()
	if err := <-sent; !errors.Is(err, ErrClosed) {
		t.Errorf("Send: %v, want ErrClosed", err)
	}
	if err := <-read; !errors.Is(err, ErrClosed) {
		t.Errorf("ReadFull: %v, want ErrClosed", err)
	}
	if err := s.Send(t.Context(), nil, []byte{1}); !errors.Is(err, ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	r.Close()
	r.Close()
}

func TestContextBoundsIO(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		s, r := NewSender(a), NewReceiver(b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, err := r.ReadFull(ctx, make([]byte, 8)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ReadFull: %d, %v", n, err)
		}
		// A read that took nothing left the stream intact.
		go func() { _ = s.Send(t.Context(), nil, []byte("12345678")) }()
		if _, err := r.ReadFull(t.Context(), make([]byte, 8)); err != nil {
			t.Errorf("ReadFull after an early timeout: %v", err)
		}
		// A context that ended before the first byte leaves the Sender usable.
		if err := s.Send(ctx, nil, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send with an ended context: %v", err)
		}
		go func() { _ = s.Send(t.Context(), nil, []byte("y")) }()
		y := make([]byte, 1)
		if _, err := r.ReadFull(t.Context(), y); err != nil || y[0] != 'y' {
			t.Errorf("got %q, %v", y, err)
		}
		// One that was cut off in the middle does not.
		ctx2, cancel2 := context.WithTimeout(t.Context(), time.Second)
		defer cancel2()
		if err := s.Send(ctx2, nil, []byte("nobody reads this")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("blocked Send: %v", err)
		}
		if err := s.Send(t.Context(), nil, []byte("z")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send on a broken stream: %v", err)
		}
	})
}

// TestReadVecCutOff: what was read ahead survives a context that had ended, and
// a stream that ends too early says how much came.
func TestReadVecCutOff(t *testing.T) {
	for name, pair := range map[string]func(testing.TB) (net.Conn, net.Conn){
		"readv": tcpPair,
		"read":  func(testing.TB) (net.Conn, net.Conn) { return net.Pipe() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			defer b.Close()
			go func() {
				_, _ = a.Write([]byte("0123456789"))
				a.Close()
			}()
			r := NewReceiver(b)
			p := make([]byte, 4)
			if _, err := r.ReadFull(t.Context(), p); err != nil || string(p) != "0123" {
				t.Fatalf("%q, %v", p, err)
			}
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			q := make([]byte, 20_000)
			if n, err := r.ReadVec(ended, [][]byte{p, q}); n != 0 || !errors.Is(err, context.Canceled) {
				t.Fatalf("ended context: %d, %v", n, err)
			}
			if n, err := r.ReadVec(t.Context(), nil); n != 0 || err != nil {
				t.Errorf("no buffers: %d, %v", n, err)
			}
			n, err := r.ReadVec(t.Context(), [][]byte{nil, p[:2], {}, q})
			if n != 6 || !errors.Is(err, io.ErrUnexpectedEOF) || string(p[:2])+string(q[:4]) != "456789" {
				t.Errorf("%d bytes, %v, %q%q", n, err, p[:2], q[:4])
			}
			if n, err := r.ReadVec(t.Context(), [][]byte{q}); n != 0 || err != io.EOF {
				t.Errorf("after the end: %d, %v", n, err)
			}
		})
	}
}
